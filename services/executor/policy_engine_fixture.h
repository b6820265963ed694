// Requests under memory policies to whole engines with a small model, float32.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <utility>
#include <vector>

#include "services/executor/engine.h"
#include "services/executor/loaded_model.h"
#include "services/executor/request_check.h"
#include "tests/support/temp_folder.h"

namespace mneme::executor {

class PolicyEngineTest : public ::testing::Test {
 protected:
  using Proto = inference::v1::MemoryPolicy;

  struct Answer {
    std::vector<int32_t> tokens;
    AnswerEnd end;
  };

  // A model must be written to the folder before an engine is made.
  PolicyEngineTest() {
    config_.set_model("tiny");
    config_.set_model_path(folder_.path());
    config_.set_compute("float32");
    config_.set_device("cpu");
  }

  // A new engine each time, so that nothing is left of earlier answers.
  std::unique_ptr<Engine> NewEngine(int64_t step_tokens, int64_t kv_budget_bytes) {
    auto model = LoadedModel::Load(config_);
    EXPECT_TRUE(model.ok()) << model.status();
    if (!model.ok()) return nullptr;
    limits_ = (*model)->limits();
    EngineOptions options;
    options.scheduler.step_tokens = step_tokens;
    options.scheduler.max_running = 32;
    options.scheduler.kv_budget_bytes = kv_budget_bytes;
    auto engine = Engine::Create(*std::move(model), options, &metrics_);
    EXPECT_TRUE(engine.ok()) << engine.status();
    return *std::move(engine);
  }

  static v1::GenerateRequest Request(const Proto& policy, int salt, int prompt, int answer) {
    v1::GenerateRequest request;
    *request.mutable_memory_policy() = policy;
    for (int i = 0; i < prompt; ++i) request.add_prompt_ids(3 + (i * i * 7 + salt * 29 + i) % 120);
    request.mutable_sampling()->set_max_tokens(answer);
    request.mutable_sampling()->set_temperature(0.7F);
    request.mutable_sampling()->set_seed(salt);
    request.mutable_sampling()->set_ignore_eos(true);
    return request;
  }

  std::shared_ptr<TokenStream> Submit(Engine& engine, const v1::GenerateRequest& request) {
    auto spec = CheckGenerate(request, limits_);
    EXPECT_TRUE(spec.ok()) << spec.status();
    auto stream = engine.Submit(*std::move(spec));
    EXPECT_TRUE(stream.ok()) << stream.status();
    return *std::move(stream);
  }

  static Answer Read(TokenStream& stream) {
    Answer answer;
    for (StreamEvent event; stream.Next(&event);) {
      answer.tokens.insert(answer.tokens.end(), event.token_ids.begin(), event.token_ids.end());
      if (event.end.has_value()) answer.end = *std::move(event.end);
    }
    EXPECT_TRUE(stream.status().ok()) << stream.status();
    return answer;
  }

  testing::TempFolder folder_;
  v1::ExecutorConfig config_;
  ModelLimits limits_;  // of the last engine's model
  metrics::Registry registry_;
  ExecutorMetrics metrics_{registry_};
};

}  // namespace mneme::executor
