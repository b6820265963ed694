// Guards on whole engines with a small model: what they see, what they do about it, and that nobody
// else notices.
#include "services/executor/quality_guard.h"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <gmock/gmock.h>

#include <cmath>

#include "common/model/tiny_model.h"
#include "services/executor/policy_engine_fixture.h"

namespace mneme::executor {
namespace {

using ::testing::HasSubstr;
using Proto = inference::v1::MemoryPolicy;

constexpr int64_t kNoBound = int64_t{64} << 20;

class QualityGuardTest : public PolicyEngineTest {
 protected:
  void SetUp() override {
    ASSERT_TRUE(model::WriteTinyModel(
                    folder_.path(),
                    {.num_layers = 3, .num_heads = 4, .num_kv_heads = 2, .context_length = 1024})
                    .ok());
  }

  // One of each kind that takes a guard, dropping every 32 tokens and looked at every 64.
  static std::vector<Proto> Policies(double max_kl) {
    std::vector<Proto> policies(3);
    policies[0].mutable_h2o()->mutable_budget()->set_tokens(40);
    policies[0].mutable_h2o()->set_interval(32);
    policies[1].mutable_snapkv()->mutable_budget()->set_fraction(0.2);
    policies[1].mutable_snapkv()->set_window(8);
    policies[1].mutable_snapkv()->set_interval(32);
    policies[2].mutable_l2norm()->mutable_budget()->set_tokens(40);
    policies[2].mutable_l2norm()->set_skip_layers(1);
    policies[2].mutable_l2norm()->set_interval(32);
    for (Proto& policy : policies) {
      policy.mutable_guard()->set_max_kl(max_kl);
      policy.mutable_guard()->set_probe_every(64);
    }
    return policies;
  }
};

TEST(MeanDivergenceTest, IsThatOfTheDistributions) {
  // Logarithms of 1/2, 1/4, 1/4 and of thirds, shifted; then equal ones.
  const at::Tensor exact =
      at::tensor({std::log(2.0F), 0.0F, 0.0F, 1.0F, 2.0F, 3.0F}, at::kFloat).reshape({2, 3});
  const at::Tensor other =
      at::tensor({5.0F, 5.0F, 5.0F, -9.0F, -8.0F, -7.0F}, at::kFloat).reshape({2, 3});
  const double first = 0.5 * std::log(1.5) + 0.5 * std::log(0.75);
  EXPECT_NEAR(MeanDivergence(exact, other), first / 2, 1e-6);
  EXPECT_EQ(MeanDivergence(exact, exact), 0);
}

TEST_F(QualityGuardTest, OverTheBoundBudgetsGrow) {
  const auto engine = NewEngine(/*step_tokens=*/512, kNoBound);
  for (const Proto& policy : Policies(1e-9)) {
    SCOPED_TRACE(policy.ShortDebugString());
    Proto plain = policy;
    plain.clear_guard();
    const Answer unguarded = Read(*Submit(*engine, Request(plain, 1, 500, 30)));
    EXPECT_FALSE(unguarded.end.receipt.has_guard());
    const Answer answer = Read(*Submit(*engine, Request(policy, 1, 500, 30)));
    const inference::v1::MemoryReceipt& receipt = answer.end.receipt;
    EXPECT_GE(receipt.guard().probes(), 2);
    EXPECT_GE(receipt.guard().back_offs(), 2);
    EXPECT_EQ(receipt.guard().skipped(), 0);
    EXPECT_GT(receipt.guard().worst_kl(), 1e-9);
    EXPECT_NE(receipt.policy(), unguarded.end.receipt.policy());
    EXPECT_GT(receipt.resident_tokens(), unguarded.end.receipt.resident_tokens());
  }
  const Answer h2o = Read(*Submit(*engine, Request(Policies(1e-9)[0], 1, 320, 10)));
  EXPECT_EQ(h2o.end.receipt.guard().back_offs(), 2);  // at 256 and 320 tokens
  EXPECT_THAT(h2o.end.receipt.policy(), HasSubstr("tokens=160"));
}

TEST_F(QualityGuardTest, UnderTheBoundNothingChanges) {
  const auto engine = NewEngine(/*step_tokens=*/100, kNoBound);
  for (const Proto& policy : Policies(1e9)) {
    SCOPED_TRACE(policy.ShortDebugString());
    Proto plain = policy;
    plain.clear_guard();
    const Answer answer = Read(*Submit(*engine, Request(policy, 2, 500, 80)));
    const Answer unguarded = Read(*Submit(*engine, Request(plain, 2, 500, 80)));
    EXPECT_EQ(answer.tokens, unguarded.tokens);
    EXPECT_EQ(answer.end.receipt.policy(), unguarded.end.receipt.policy());
    EXPECT_EQ(answer.end.receipt.kv_bytes_peak(), unguarded.end.receipt.kv_bytes_peak());
    EXPECT_EQ(answer.end.receipt.guard().probes(), 6);  // at 256, 320, …, 576 tokens
    EXPECT_EQ(answer.end.receipt.guard().back_offs(), 0);
  }
}

TEST_F(QualityGuardTest, EachGetsTheTokensThatItGetsAlone) {
  std::vector<v1::GenerateRequest> requests;
  for (const double max_kl : {1e-9, 1e-3, 0.05}) {
    for (const Proto& policy : Policies(max_kl)) {
      const int i = static_cast<int>(requests.size());
      requests.push_back(Request(policy, i, 200 + i * 37 % 130, 70));
    }
  }
  std::vector<Answer> alone;
  {
    const auto engine = NewEngine(/*step_tokens=*/512, kNoBound);
    for (const v1::GenerateRequest& request : requests) {
      alone.push_back(Read(*Submit(*engine, request)));
    }
  }
  const auto engine = NewEngine(/*step_tokens=*/40, kNoBound);
  std::vector<std::shared_ptr<TokenStream>> streams;
  for (const v1::GenerateRequest& request : requests) streams.push_back(Submit(*engine, request));
  for (size_t i = 0; i < streams.size(); ++i) {
    const Answer together = Read(*streams[i]);
    EXPECT_EQ(together.tokens, alone[i].tokens) << requests[i].memory_policy().ShortDebugString();
    EXPECT_EQ(together.end.receipt.policy(), alone[i].end.receipt.policy());
    EXPECT_EQ(together.end.receipt.guard().worst_kl(), alone[i].end.receipt.guard().worst_kl());
  }
}

TEST_F(QualityGuardTest, WithoutPagesForAProbeTheAnswerGoesOn) {
  NewEngine(/*step_tokens=*/64, kNoBound);
  // 6 heads: 24 pages each, of which the sequence takes up to 5; a probe takes 16 and 17.
  const int64_t page_bytes = 16 * limits_.policies.entry_bytes;
  const auto engine = NewEngine(/*step_tokens=*/64, page_bytes * 6 * 24);
  Proto policy = Policies(1e-9)[0];
  const Answer answer = Read(*Submit(*engine, Request(policy, 1, 300, 40)));
  EXPECT_EQ(answer.tokens.size(), 40U);
  EXPECT_EQ(answer.end.receipt.guard().probes(), 0);
  EXPECT_EQ(answer.end.receipt.guard().skipped(), 2);  // at 256 and 320
  EXPECT_EQ(answer.end.receipt.guard().back_offs(), 0);
}

}  // namespace
}  // namespace mneme::executor
