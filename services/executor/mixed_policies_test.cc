// Requests under all memory policies in one batch, on a small model, float32: each gets the tokens
// that it gets alone, and budgets hold while prompts are read.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "common/memory/untrained_namm.h"
#include "common/model/tiny_model.h"
#include "kernels/parallel.h"
#include "services/executor/admission.h"
#include "services/executor/policy_engine_fixture.h"

namespace mneme::executor {
namespace {

using Proto = inference::v1::MemoryPolicy;

class MixedPoliciesTest : public PolicyEngineTest {
 protected:
  void SetUp() override {
    ASSERT_TRUE(model::WriteTinyModel(
                    folder_.path(),
                    {.num_layers = 3, .num_heads = 4, .num_kv_heads = 2, .context_length = 512})
                    .ok());
    ASSERT_TRUE(memory::WriteUntrainedNamm(folder_.File("mine.safetensors")).ok());
    auto* const artifact = config_.add_namm_artifacts();
    artifact->set_name("mine");
    artifact->set_path(folder_.File("mine.safetensors"));
  }

  static std::vector<Proto> Policies() {
    std::vector<Proto> policies(7);
    policies[0].mutable_full();
    policies[1].mutable_window()->set_sinks(4);
    policies[1].mutable_window()->set_recent(40);
    policies[2].mutable_h2o()->mutable_budget()->set_tokens(48);
    policies[2].mutable_h2o()->set_interval(16);
    policies[3].mutable_snapkv()->mutable_budget()->set_fraction(0.5);
    policies[3].mutable_snapkv()->set_window(8);
    policies[3].mutable_snapkv()->set_interval(32);
    policies[4].mutable_l2norm()->mutable_budget()->set_tokens(32);
    policies[4].mutable_l2norm()->set_skip_layers(1);
    policies[4].mutable_l2norm()->set_interval(48);
    policies[5].mutable_namm()->set_artifact("mine");
    policies[5].mutable_namm()->set_cache_size(64);
    policies[6].mutable_beacon()->add_ratios(4);
    policies[6].mutable_beacon()->add_ratios(8);
    policies[6].mutable_beacon()->set_window(32);
    return policies;
  }
};

TEST_F(MixedPoliciesTest, EachGetsTheTokensThatItGetsAlone) {
  const std::vector<Proto> policies = Policies();
  std::vector<v1::GenerateRequest> requests;
  for (int i = 0; i < 32; ++i) {
    requests.push_back(
        Request(policies[i % policies.size()], i, 20 + i * 37 % 130, 20 + i * 13 % 80));
  }
  std::vector<Answer> alone;
  {
    const auto engine = NewEngine(/*step_tokens=*/512, int64_t{64} << 20);
    for (const v1::GenerateRequest& request : requests) {
      alone.push_back(Read(*Submit(*engine, request)));
    }
  }
  // Small steps, so that prompts are cut; then so few pages that most requests wait for others.
  for (const int64_t budget : {int64_t{64} << 20, int64_t{1} << 18}) {
    const auto engine = NewEngine(/*step_tokens=*/40, budget);
    std::vector<std::shared_ptr<TokenStream>> streams;
    for (const v1::GenerateRequest& request : requests) {
      streams.push_back(Submit(*engine, request));
    }
    for (size_t i = 0; i < streams.size(); ++i) {
      const Answer together = Read(*streams[i]);
      EXPECT_EQ(together.tokens, alone[i].tokens) << requests[i].memory_policy().ShortDebugString();
      EXPECT_EQ(together.end.receipt.resident_tokens(), alone[i].end.receipt.resident_tokens());
    }
  }
}

TEST_F(MixedPoliciesTest, BudgetsHoldWhilePromptsAreRead) {
  const auto engine = NewEngine(/*step_tokens=*/512, int64_t{64} << 20);
  const std::vector<Proto> policies = Policies();
  const int64_t page_bytes = 16 * limits_.policies.entry_bytes;
  const auto pages = [](int64_t entries) { return (entries + 15) / 16; };
  // Entries per head at most: budget and what an interval adds.
  const Answer h2o = Read(*Submit(*engine, Request(policies[2], 1, 400, 20)));
  EXPECT_LE(h2o.end.receipt.kv_bytes_peak(), 6 * pages(48 + 16) * page_bytes);
  EXPECT_GT(h2o.end.receipt.evicted_tokens(), 300);
  const Answer namm = Read(*Submit(*engine, Request(policies[5], 1, 400, 20)));
  EXPECT_LE(namm.end.receipt.kv_bytes_peak(), 6 * pages(64 + 32) * page_bytes);
  // The first of three layers keeps all.
  const Answer l2norm = Read(*Submit(*engine, Request(policies[4], 1, 400, 20)));
  EXPECT_LE(l2norm.end.receipt.kv_bytes_peak(), (2 * pages(420) + 4 * pages(32 + 48)) * page_bytes);
  const Answer full = Read(*Submit(*engine, Request(policies[0], 1, 400, 20)));
  EXPECT_EQ(full.end.receipt.evicted_tokens(), 0);
  EXPECT_NE(full.tokens, h2o.tokens);
}

TEST_F(MixedPoliciesTest, EstimatesAreKept) {
  const auto engine = NewEngine(/*step_tokens=*/64, int64_t{64} << 20);
  for (const Proto& policy : Policies()) {
    SCOPED_TRACE(policy.ShortDebugString());
    for (const int num_prompt : {30, 200, 400}) {
      const auto made = memory::CreatePolicy(policy, limits_.policies);
      ASSERT_TRUE(made.ok()) << made.status();
      const inference::v1::MemoryEstimate estimate =
          EstimateMemory(**made, engine->limits(), num_prompt + 20, engine->page_bytes());
      const Answer answer = Read(*Submit(*engine, Request(policy, 1, num_prompt, 20)));
      const inference::v1::MemoryReceipt& receipt = answer.end.receipt;
      EXPECT_LE(receipt.kv_bytes_peak(), estimate.peak_bytes());
      EXPECT_LE(receipt.kv_bytes_resident(), estimate.resident_bytes());
      EXPECT_LE(receipt.kv_bytes_full(), estimate.full_bytes());
      EXPECT_LE(estimate.resident_pages(), estimate.peak_pages());
      EXPECT_TRUE(estimate.fits());
      EXPECT_EQ(estimate.policy(), (*made)->Describe());
    }
  }
}

TEST_F(MixedPoliciesTest, SeveralAnswersShareAPromptUnderAPolicy) {
  const auto engine = NewEngine(/*step_tokens=*/64, int64_t{64} << 20);
  for (const Proto& policy : Policies()) {
    if (policy.has_beacon()) continue;  // takes one answer only
    SCOPED_TRACE(policy.ShortDebugString());
    v1::GenerateRequest request = Request(policy, 5, 90, 30);
    request.mutable_sampling()->set_n(3);
    const auto stream = Submit(*engine, request);
    std::vector<std::vector<int32_t>> answers(3);
    for (StreamEvent event; stream->Next(&event);) {
      std::vector<int32_t>& answer = answers[event.index];
      answer.insert(answer.end(), event.token_ids.begin(), event.token_ids.end());
    }
    ASSERT_TRUE(stream->status().ok()) << stream->status();
    request.mutable_sampling()->set_n(1);
    EXPECT_EQ(answers[0], Read(*Submit(*engine, request)).tokens);
    EXPECT_EQ(answers[2].size(), 30u);
  }
}

TEST_F(MixedPoliciesTest, ArtifactsNeedNamesOfTheirOwn) {
  *config_.add_namm_artifacts() = config_.namm_artifacts(0);
  EXPECT_EQ(LoadedModel::Load(config_).status().code(), absl::StatusCode::kInvalidArgument);
  config_.mutable_namm_artifacts(1)->set_name("other");
  EXPECT_TRUE(LoadedModel::Load(config_).ok());
  config_.mutable_namm_artifacts(1)->set_path(folder_.File("missing.safetensors"));
  EXPECT_EQ(LoadedModel::Load(config_).status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace mneme::executor
