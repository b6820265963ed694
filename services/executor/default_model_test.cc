// The engine on the default model, float32: batching must never change a text. Through the stub.
#include <grpcpp/grpcpp.h>

#include <thread>

#include "common/rpc/grpc_status.h"
#include "common/rpc/server.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "services/executor/executor_service.h"
#include "services/executor/loaded_model.h"
#include "services/executor/test_requests.h"

namespace mneme::executor {
namespace {

using ::testing::SizeIs;

// Loading takes seconds, so all cases share one executor.
class DefaultModelTest : public ::testing::Test {
 protected:
  struct Executor {
    metrics::Registry registry;
    ExecutorMetrics metrics{registry};
    std::unique_ptr<Engine> engine;
    ExecutorServiceImpl service;
    std::unique_ptr<rpc::Server> server;
  };

  static void SetUpTestSuite() {
    auto model = LoadedModel::Load(DefaultModelConfig("float32"));
    ASSERT_TRUE(model.ok()) << model.status() << "; run the set-up to fetch the default model";
    executor_ = new Executor;
    v1::GetModelResponse description = (*model)->Describe();
    // Small steps, so that prompts are cut and mixed with decodes.
    EngineOptions options;
    options.scheduler.step_tokens = 48;
    options.scheduler.max_running = 32;
    options.scheduler.kv_budget_bytes = int64_t{512} << 20;
    executor_->engine = *Engine::Create(*std::move(model), options, &executor_->metrics);
    executor_->service.SetEngine(executor_->engine.get(), description);
    executor_->server = *rpc::Server::Start({}, {&executor_->service});
  }

  static void TearDownTestSuite() {
    if (executor_ == nullptr) return;
    executor_->server->Shutdown(absl::Seconds(10));
    delete executor_;
  }

  void SetUp() override {
    ASSERT_NE(executor_, nullptr);
    prompts_ = GoldenPrompts();
    ASSERT_FALSE(prompts_.empty()) << "golden/models is missing; set MNEME_GOLDEN";
    stub_ = v1::ExecutorService::NewStub(executor_->server->InProcessChannel());
  }

  std::vector<int32_t> Generate(const v1::GenerateRequest& request) {
    grpc::ClientContext context;
    const auto reader = stub_->Generate(&context, request);
    v1::GenerateResponse response;
    std::vector<int32_t> ids;
    while (reader->Read(&response)) {
      ids.insert(ids.end(), response.token_ids().begin(), response.token_ids().end());
    }
    const grpc::Status status = reader->Finish();
    EXPECT_TRUE(status.ok()) << status.error_message();
    return ids;
  }

  v1::GenerateRequest Request(const std::vector<int32_t>& prompt, int max_tokens) const {
    v1::GenerateRequest request;
    request.mutable_prompt_ids()->Assign(prompt.begin(), prompt.end());
    request.mutable_sampling()->set_max_tokens(max_tokens);
    request.mutable_sampling()->set_temperature(0);
    return request;
  }

  static Executor* executor_;
  std::vector<GoldenPrompt> prompts_;
  std::unique_ptr<v1::ExecutorService::Stub> stub_;
};

DefaultModelTest::Executor* DefaultModelTest::executor_ = nullptr;

TEST_F(DefaultModelTest, ConcurrentRequestsAnswerAsOneAtATime) {
  std::vector<v1::GenerateRequest> requests;
  for (int i = 0; i < 20; ++i) {
    v1::GenerateRequest request = Request(prompts_[i % prompts_.size()].prompt_ids, 8 + i * 5 % 17);
    if (i % 2 == 1) {
      // Longer prompts, sampled.
      const std::vector<int32_t>& more = prompts_[(i + 7) % prompts_.size()].prompt_ids;
      for (int copy = 0; copy < i % 4; ++copy) {
        request.mutable_prompt_ids()->Add(more.begin(), more.end());
      }
      request.mutable_sampling()->set_temperature(0.8F);
      request.mutable_sampling()->set_top_p(i % 4 == 1 ? 0.9F : 1.0F);
      request.mutable_sampling()->set_seed(1000 + i);
      request.mutable_sampling()->set_repetition_penalty(1.1F);
      request.mutable_sampling()->set_ignore_eos(true);
    }
    if (i % 5 == 4) {
      request.mutable_memory_policy()->mutable_window()->set_sinks(4);
      request.mutable_memory_policy()->mutable_window()->set_recent(24);
    }
    requests.push_back(std::move(request));
  }
  std::vector<std::vector<int32_t>> alone;
  for (const v1::GenerateRequest& request : requests) alone.push_back(Generate(request));
  std::vector<std::vector<int32_t>> together(requests.size());
  std::vector<std::thread> threads;
  for (size_t i = 0; i < requests.size(); ++i) {
    threads.emplace_back([&, i] { together[i] = Generate(requests[i]); });
  }
  for (std::thread& thread : threads) thread.join();
  for (size_t i = 0; i < requests.size(); ++i) {
    EXPECT_EQ(together[i], alone[i]) << "request " << i;
    EXPECT_FALSE(alone[i].empty());
  }
}

TEST_F(DefaultModelTest, GreedyIdsAreTheReferences) {
  std::vector<std::vector<int32_t>> answers(prompts_.size());
  std::vector<std::thread> threads;
  for (size_t i = 0; i < prompts_.size(); ++i) {
    threads.emplace_back([&, i] {
      answers[i] = Generate(
          Request(prompts_[i].prompt_ids, static_cast<int>(prompts_[i].generated_ids.size())));
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (size_t i = 0; i < prompts_.size(); ++i) {
    EXPECT_EQ(answers[i], prompts_[i].generated_ids) << "prompt " << i;
  }
}

TEST_F(DefaultModelTest, ScoreOfAPromptIsTheReferencesLikelihood) {
  for (const GoldenPrompt& prompt : prompts_) {
    v1::ScoreRequest request;
    request.add_context_ids(prompt.prompt_ids[0]);
    request.add_continuations()->mutable_token_ids()->Add(prompt.prompt_ids.begin() + 1,
                                                          prompt.prompt_ids.end());
    grpc::ClientContext context;
    v1::ScoreResponse response;
    ASSERT_TRUE(stub_->Score(&context, request, &response).ok());
    EXPECT_NEAR(-response.scores(0).sum(), prompt.nll_sum, 1e-3 * prompt.nll_sum + 1e-3);
  }
}

TEST_F(DefaultModelTest, GenerationResumesAfterTokensOfAnotherExecutor) {
  v1::GenerateRequest request = Request(prompts_[0].prompt_ids, 24);
  request.mutable_sampling()->set_temperature(0.9F);
  request.mutable_sampling()->set_seed(5);
  request.mutable_sampling()->set_presence_penalty(0.5F);
  request.mutable_sampling()->set_ignore_eos(true);
  const std::vector<int32_t> whole = Generate(request);
  ASSERT_THAT(whole, SizeIs(24));
  request.mutable_generated_ids()->Add(whole.begin(), whole.begin() + 9);
  EXPECT_EQ(Generate(request), std::vector<int32_t>(whole.begin() + 9, whole.end()));
}

TEST_F(DefaultModelTest, SharedBeginningsAndHotSessionsChangeNoText) {
  v1::GenerateRequest request = Request(prompts_[0].prompt_ids, 12);
  request.mutable_prompt_ids()->Add(prompts_[1].prompt_ids.begin(), prompts_[1].prompt_ids.end());
  request.mutable_sampling()->set_temperature(0.9F);
  request.mutable_sampling()->set_seed(5);
  request.mutable_sampling()->set_ignore_eos(true);
  for (const bool is_windowed : {false, true}) {
    if (is_windowed) {
      request.mutable_memory_policy()->mutable_window()->set_sinks(4);
      request.mutable_memory_policy()->mutable_window()->set_recent(40);
    }
    for (int turn = 0; turn < 3; ++turn) {
      v1::GenerateRequest kept = request;
      kept.set_tenant("shared");
      kept.set_session_id(is_windowed ? "windowed" : "");
      const std::vector<int32_t> ids = Generate(request);
      const double hits = executor_->metrics.prefix_cache_hits.Value();
      EXPECT_EQ(Generate(kept), ids) << turn;
      EXPECT_EQ(executor_->metrics.prefix_cache_hits.Value() > hits, turn > 0) << turn;
      request.mutable_prompt_ids()->Add(ids.begin(), ids.end());
      request.mutable_prompt_ids()->Add(prompts_[2].prompt_ids.begin(),
                                        prompts_[2].prompt_ids.end());
    }
  }
}

TEST_F(DefaultModelTest, ModelDescribesItself) {
  grpc::ClientContext context;
  v1::GetModelResponse response;
  ASSERT_TRUE(stub_->GetModel(&context, {}, &response).ok());
  EXPECT_EQ(response.architecture(), "llama");
  EXPECT_EQ(response.weight_type(), "Q4_1");
  EXPECT_EQ(response.compute_type(), "float32");
  EXPECT_EQ(response.vocab_size(), 49152);
  EXPECT_EQ(response.context_length(), 8192);
  EXPECT_EQ(response.num_layers(), 30);
  EXPECT_THAT(response.fingerprint(), SizeIs(64));
  EXPECT_FALSE(response.eos_token_ids().empty());
}

TEST(LoadedModelTest, WrongSettingsAreRefused) {
  v1::ExecutorConfig config = DefaultModelConfig("float16");
  EXPECT_EQ(LoadedModel::Load(config).status().code(), absl::StatusCode::kInvalidArgument);
  config = DefaultModelConfig("float32");
  config.set_device("tpu");
  EXPECT_EQ(LoadedModel::Load(config).status().code(), absl::StatusCode::kInvalidArgument);
  config = DefaultModelConfig("float32");
  config.set_context_length(100000);
  EXPECT_EQ(LoadedModel::Load(config).status().code(), absl::StatusCode::kInvalidArgument);
  config = DefaultModelConfig("float32");
  config.set_model_path("/nowhere/model.gguf");
  EXPECT_EQ(LoadedModel::Load(config).status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace mneme::executor
