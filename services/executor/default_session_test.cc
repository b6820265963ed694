// Sessions of the default model that come back from stored memory, in both compute types: the very
// same tokens and log-probabilities as without an interruption. Through the stubs.
#include <grpcpp/grpcpp.h>

#include "common/rpc/client.h"
#include "common/rpc/server.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "services/executor/executor_service.h"
#include "services/executor/fake_memory_service.h"
#include "services/executor/loaded_model.h"
#include "services/executor/test_requests.h"

namespace mneme::executor {
namespace {

struct Answer {
  std::vector<int32_t> ids;
  std::vector<float> logprobs;
  v1::GenerateResponse last;
};

class DefaultSessionTest : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    prompts_ = GoldenPrompts();
    ASSERT_GE(prompts_.size(), 4U) << "golden/models is missing; set MNEME_GOLDEN";
    auto model = LoadedModel::Load(DefaultModelConfig(GetParam()));
    ASSERT_TRUE(model.ok()) << model.status() << "; run the set-up to fetch the default model";
    memory_server_ = *rpc::Server::Start({.listen = "127.0.0.1:0"}, {&memory_});
    EngineOptions options;
    options.scheduler.step_tokens = 48;
    options.scheduler.max_running = 32;
    options.scheduler.kv_budget_bytes = int64_t{256} << 20;
    options.sessions.model_fingerprint = (*model)->Describe().fingerprint();
    options.sessions.link.host_cache_bytes = 0;
    options.sessions.close_timeout = std::chrono::minutes(1);
    options.sessions.link.fetch.manifest_timeout = absl::Minutes(1);
    options.sessions.link.fetch.chunk_timeout = absl::Minutes(1);
    options.memory_service =
        memory::v1::MemoryService::NewStub(rpc::ConnectTo(memory_server_->address()));
    engine_ = *Engine::Create(*std::move(model), options, &metrics_);
    service_.SetEngine(engine_.get(), {});
    server_ = *rpc::Server::Start({}, {&service_});
    stub_ = v1::ExecutorService::NewStub(server_->InProcessChannel());
  }

  void TearDown() override {
    if (server_ != nullptr) server_->Shutdown(absl::Seconds(10));
    if (memory_server_ != nullptr) memory_server_->Shutdown(absl::Seconds(1));
  }

  Answer Generate(const v1::GenerateRequest& request) {
    Answer answer;
    grpc::ClientContext context;
    const auto reader = stub_->Generate(&context, request);
    v1::GenerateResponse response;
    while (reader->Read(&response)) {
      answer.ids.insert(answer.ids.end(), response.token_ids().begin(), response.token_ids().end());
      for (const auto& logprob : response.logprobs()) answer.logprobs.push_back(logprob.logprob());
      answer.last = response;
    }
    const grpc::Status status = reader->Finish();
    EXPECT_TRUE(status.ok()) << status.error_message();
    return answer;
  }

  void ForgetHot() {
    v1::ForgetMemoryRequest forget;
    forget.set_tenant("t");
    grpc::ClientContext context;
    v1::ForgetMemoryResponse forgotten;
    ASSERT_TRUE(stub_->ForgetMemory(&context, forget, &forgotten).ok());
  }

  // Three turns, each of which finds neither hot pages nor copies.
  void ExpectSameTexts(const v1::GenerateRequest& settings) {
    v1::GenerateRequest request = settings;
    request.set_tenant("t");
    request.set_session_id("s");
    request.set_lease_token(1);
    for (uint64_t version = 0; version < 3; ++version) {
      const std::vector<int32_t>& more = prompts_[version + 1].prompt_ids;
      request.mutable_prompt_ids()->Add(more.begin(), more.end());
      request.set_parent_version(version);
      request.set_snapshot_version(version);
      v1::GenerateRequest plain = request;
      plain.clear_tenant();
      plain.clear_session_id();
      const Answer expected = Generate(plain);

      ForgetHot();
      const Answer answer = Generate(request);
      EXPECT_EQ(answer.ids, expected.ids) << version;
      EXPECT_EQ(answer.logprobs, expected.logprobs) << version;
      const auto& receipt = answer.last.receipt();
      EXPECT_EQ(receipt.restored_tokens() > 0, version > 0) << version;
      EXPECT_EQ(receipt.restored_tokens() + receipt.prefilled_tokens(), request.prompt_ids_size());
      ASSERT_TRUE(memory_.Commit("t", "s", version + 1, answer.last.snapshot_id()))
          << receipt.not_persisted_reason();
      request.mutable_prompt_ids()->Add(answer.ids.begin(), answer.ids.end());
    }
  }

  v1::GenerateRequest Settings() const {
    v1::GenerateRequest request;
    request.mutable_prompt_ids()->Assign(prompts_[0].prompt_ids.begin(),
                                         prompts_[0].prompt_ids.end());
    request.mutable_sampling()->set_max_tokens(11);
    request.mutable_sampling()->set_temperature(0.8F);
    request.mutable_sampling()->set_seed(9);
    request.mutable_sampling()->set_ignore_eos(true);
    request.mutable_sampling()->set_logprobs(0);
    return request;
  }

  std::vector<GoldenPrompt> prompts_;
  FakeMemoryService memory_;
  std::unique_ptr<rpc::Server> memory_server_;
  metrics::Registry registry_;
  ExecutorMetrics metrics_{registry_};
  std::unique_ptr<Engine> engine_;
  ExecutorServiceImpl service_;
  std::unique_ptr<rpc::Server> server_;
  std::unique_ptr<v1::ExecutorService::Stub> stub_;
};

TEST_P(DefaultSessionTest, ComeBackBitForBit) {
  ExpectSameTexts(Settings());
  EXPECT_EQ(memory_.Committed("t", "s", 3).chunks(0).encoding(),
            std::string(GetParam()) == "float32" ? snapshot::v1::ENCODING_FLOAT32
                                                 : snapshot::v1::ENCODING_BFLOAT16);
}

TEST_P(DefaultSessionTest, ComeBackBitForBitWithAWindow) {
  v1::GenerateRequest request = Settings();
  request.mutable_memory_policy()->mutable_window()->set_sinks(4);
  request.mutable_memory_policy()->mutable_window()->set_recent(40);
  ExpectSameTexts(request);
}

std::vector<inference::v1::MemoryPolicy> DroppingPolicies() {
  std::vector<inference::v1::MemoryPolicy> policies(3);
  policies[0].mutable_h2o()->mutable_budget()->set_tokens(40);
  policies[0].mutable_h2o()->set_interval(16);
  policies[1].mutable_snapkv()->mutable_budget()->set_fraction(0.5);
  policies[1].mutable_snapkv()->set_window(8);
  policies[1].mutable_snapkv()->set_interval(24);
  policies[2].mutable_l2norm()->mutable_budget()->set_tokens(32);
  policies[2].mutable_l2norm()->set_interval(20);
  return policies;
}

// What the policy remembers comes back with the entries.
TEST_P(DefaultSessionTest, ComeBackBitForBitWhereEntriesAreDropped) {
  for (const inference::v1::MemoryPolicy& policy : DroppingPolicies()) {
    SCOPED_TRACE(policy.ShortDebugString());
    v1::GenerateRequest request = Settings();
    *request.mutable_memory_policy() = policy;
    ExpectSameTexts(request);
    EXPECT_GT(memory_.Committed("t", "s", 3).held_size(), 1);  // heads differ
  }
}

// A session that kept everything goes on under a policy that does not, without its history being
// computed again: hot and restored alike.
TEST_P(DefaultSessionTest, AFullMemoryIsTightenedByTheNextTurn) {
  v1::GenerateRequest request = Settings();
  request.set_tenant("t");
  request.set_session_id("s");
  request.set_lease_token(1);
  for (const int i : {1, 2, 3}) {
    request.mutable_prompt_ids()->Add(prompts_[i].prompt_ids.begin(), prompts_[i].prompt_ids.end());
  }
  const v1::GenerateRequest first = request;
  const Answer one = Generate(first);
  ASSERT_TRUE(memory_.Commit("t", "s", 1, one.last.snapshot_id()));
  const int num_covered = request.prompt_ids_size() + static_cast<int>(one.ids.size()) - 1;
  request.mutable_prompt_ids()->Add(one.ids.begin(), one.ids.end());
  request.mutable_prompt_ids()->Add(prompts_[0].prompt_ids.begin(), prompts_[0].prompt_ids.end());
  request.set_parent_version(1);
  request.set_snapshot_version(1);
  std::vector<inference::v1::MemoryPolicy> policies = DroppingPolicies();
  policies.emplace_back().mutable_window()->set_recent(40);
  for (const inference::v1::MemoryPolicy& policy : policies) {
    SCOPED_TRACE(policy.ShortDebugString());
    *request.mutable_memory_policy() = policy;
    ForgetHot();
    const Answer restored = Generate(request);
    EXPECT_EQ(restored.last.receipt().restored_tokens(), num_covered);
    EXPECT_EQ(restored.last.receipt().prefilled_tokens(), request.prompt_ids_size() - num_covered);
    EXPECT_GT(restored.last.receipt().evicted_tokens(), 0);
    EXPECT_THAT(restored.last.receipt().policy(), ::testing::Not("full"));
    EXPECT_EQ(restored.last.receipt().not_persisted_reason(), "");
    ForgetHot();
    Generate(first);
    const Answer hot = Generate(request);
    EXPECT_EQ(hot.last.receipt().tier(), "hot");
    EXPECT_EQ(hot.last.receipt().reused_tokens(), num_covered);
    EXPECT_EQ(hot.ids, restored.ids);
    EXPECT_EQ(hot.logprobs, restored.logprobs);
  }
}

// What a guard has made of a budget holds for the session: an interrupted one ends as one that
// makes all probes in one turn.
TEST_P(DefaultSessionTest, AGuardsBudgetComesBackWithTheMemory) {
  v1::GenerateRequest request = Settings();
  const std::vector<int32_t>& text = prompts_[1].prompt_ids;
  while (request.prompt_ids_size() < 300) {
    request.mutable_prompt_ids()->Add(text.begin(), text.end());
  }
  inference::v1::MemoryPolicy& policy = *request.mutable_memory_policy();
  policy.mutable_h2o()->mutable_budget()->set_tokens(40);
  policy.mutable_h2o()->set_interval(16);
  policy.mutable_guard()->set_max_kl(1e-6);
  policy.mutable_guard()->set_probe_every(64);
  ExpectSameTexts(request);
  const std::string stored = memory_.Committed("t", "s", 3).lineage().policy();
  EXPECT_THAT(stored, ::testing::HasSubstr("h2o(tokens="));
  EXPECT_THAT(stored, ::testing::Not(::testing::HasSubstr("tokens=40,")));
}

INSTANTIATE_TEST_SUITE_P(ComputeTypes, DefaultSessionTest, ::testing::Values("float32", "bfloat16"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace mneme::executor
