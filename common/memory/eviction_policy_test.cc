// H2O, SnapKV and L2 key norm on sequences whose entries and attention the tests write.
#include "common/memory/eviction_policy.h"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <memory>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "common/memory/attention_sums.h"
#include "common/memory/kv_pool.h"
#include "common/memory/kv_sequence.h"
#include "common/memory/kv_tables.h"
#include "common/memory/namm_policy.h"
#include "common/status/annotate.h"
#include "kernels/paged_attention.h"

namespace mneme::memory {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

using Proto = inference::v1::MemoryPolicy;
using PolicyPointer = std::shared_ptr<const MemoryPolicy>;

constexpr int64_t kHeadSize = 8;
const KvShape kShape{.num_layers = 2, .num_kv_heads = 2, .head_size = kHeadSize};

class EvictionTest : public ::testing::Test {
 protected:
  explicit EvictionTest(int64_t num_pages = 400) {
    pool_ = *KvPool::Create(
        {.head_size = kHeadSize,
         .budget_bytes = num_pages * kernels::PageElements(kHeadSize) * int64_t{4}});
    tables_ = *KvTables::Create(kShape, at::kCPU);
  }

  KvSequence NewSequence(PolicyPointer policy) {
    KvSequence sequence(pool_.get(), kShape, std::move(policy));
    EXPECT_TRUE(sequence.Attach(*tables_).ok());
    return sequence;
  }

  // Adds `count` tokens; the key of token t has length LengthOf(t, layer, head), and its value
  // tells t.
  void Append(KvSequence& sequence, int64_t count) {
    ASSERT_TRUE(sequence.Reserve(count).ok());
    const int64_t begin = sequence.num_tokens();
    for (int64_t layer = 0; layer < kShape.num_layers; ++layer) {
      at::Tensor k = at::zeros({count, kShape.num_kv_heads, kHeadSize});
      at::Tensor v = at::zeros({count, kShape.num_kv_heads, kHeadSize});
      for (int64_t t = 0; t < count; ++t) {
        for (int64_t head = 0; head < kShape.num_kv_heads; ++head) {
          k[t][head][t % kHeadSize] = LengthOf(begin + t, layer, head);
          v[t][head].fill_(static_cast<float>(begin + t));
        }
      }
      const kernels::AttentionBatch batch{.seq_slot = at::full({1}, sequence.slot(), at::kInt),
                                          .query_start = at::tensor({int64_t{0}, count}, at::kInt),
                                          .page_table = tables_->page_table().select(1, layer),
                                          .lengths = tables_->lengths().select(1, layer)};
      kernels::KvWrite(k, v, batch, pool_->tensor());
    }
    sequence.Advance(count);
  }

  static float LengthOf(int64_t token, int64_t layer, int64_t head) {
    return static_cast<float>((token * 37 + layer * 11 + head * 5) % 101 + 1);
  }

  // Shows the sequence `count` queries, of which each gives token t the share weight(t), in both
  // layers and heads; then forgets.
  template <typename Weight>
  void Step(KvSequence& sequence, int64_t count, const Weight& weight) {
    const int64_t begin = sequence.num_tokens();
    Append(sequence, count);
    const PositionRange wanted = sequence.state()->Wanted(begin, begin + count);
    for (int64_t layer = 0; layer < kShape.num_layers; ++layer) {
      const int64_t length = sequence.length(layer, 0);
      at::Tensor weights =
          at::zeros({kShape.num_kv_heads, wanted.end - wanted.begin, length}, at::kFloat);
      for (int64_t head = 0; head < kShape.num_kv_heads; ++head) {
        for (int64_t i = 0; i < length; ++i) {
          const int64_t token = sequence.position(layer, head, i);
          for (int64_t q = 0; q < weights.size(1); ++q) {
            if (token <= wanted.begin + q) weights[head][q][i] = weight(token, wanted.begin + q);
          }
        }
      }
      if (weights.size(1) > 0) sequence.state()->Observe(layer, wanted.begin, weights);
    }
    const absl::Status status = sequence.Forget();
    ASSERT_TRUE(status.ok()) << status;
  }

  static std::vector<int64_t> Tokens(const KvSequence& sequence, int64_t layer, int64_t head) {
    std::vector<int64_t> tokens;
    for (int64_t i = 0; i < sequence.length(layer, head); ++i) {
      tokens.push_back(sequence.position(layer, head, i));
    }
    return tokens;
  }

  // Positions and what lies in the pages tell the same.
  static void ExpectEntriesAtTheirPositions(const KvSequence& sequence) {
    for (int64_t layer = 0; layer < kShape.num_layers; ++layer) {
      for (int64_t head = 0; head < kShape.num_kv_heads; ++head) {
        std::vector<int64_t> all(sequence.length(layer, head));
        std::iota(all.begin(), all.end(), 0);
        const auto entries = sequence.Read(layer, head, all);
        ASSERT_TRUE(entries.ok()) << entries.status();
        for (const int64_t i : all) {
          const int64_t token = sequence.position(layer, head, i);
          EXPECT_EQ(entries->second[i][0].item<float>(), static_cast<float>(token));
          EXPECT_EQ(entries->first[i].norm().item<float>(), LengthOf(token, layer, head));
        }
      }
    }
  }

  std::unique_ptr<KvPool> pool_;
  std::unique_ptr<KvTables> tables_;
};

TEST_F(EvictionTest, StepsEndWhereEntriesAreDropped) {
  const PolicyPointer policy = *H2oPolicy({.budget = {.tokens = 8}, .interval = 10});
  KvSequence sequence = NewSequence(policy);
  EXPECT_EQ(policy->LayOut(sequence, 100, 512).num_tokens, 10);
  EXPECT_EQ(policy->LayOut(sequence, 100, 3).num_tokens, 3);
  EXPECT_EQ(policy->LayOut(sequence, 2, 512).num_tokens, 2);
  Step(sequence, 7, [](int64_t, int64_t) { return 0.1f; });
  EXPECT_EQ(policy->LayOut(sequence, 100, 512).num_tokens, 3);
  EXPECT_EQ(sequence.length(0, 0), 7);  // over no budget, between two drops
}

TEST_F(EvictionTest, H2oKeepsTheRecentAndTheHeavy) {
  KvSequence sequence =
      NewSequence(*H2oPolicy({.budget = {.tokens = 6}, .recent = 2, .interval = 5}));
  // Tokens 1, 3 and 12 are looked at, 4 and 5 a little, the others hardly.
  const auto weight = [](int64_t token, int64_t) {
    if (token == 1 || token == 3 || token == 12) return 1.0f;
    return token == 4 || token == 5 ? 0.01f : 0.0001f;
  };
  Step(sequence, 5, weight);
  EXPECT_EQ(sequence.length(0, 0), 5);
  Step(sequence, 5, weight);
  EXPECT_THAT(Tokens(sequence, 0, 0), ElementsAre(1, 3, 4, 5, 8, 9));
  Step(sequence, 5, weight);
  // Sums go on: 4 was there longer than 5.
  EXPECT_THAT(Tokens(sequence, 1, 1), ElementsAre(1, 3, 4, 12, 13, 14));
  EXPECT_EQ(sequence.num_tokens(), 15);
  ExpectEntriesAtTheirPositions(sequence);
}

TEST_F(EvictionTest, SnapKvKeepsWhatTheWindowAttendsTo) {
  KvSequence sequence = NewSequence(
      *SnapKvPolicy({.budget = {.tokens = 6}, .window = 2, .kernel_size = 3, .interval = 10}));
  // Only the votes of queries 8 and 9 count; before, all look at token 0. They look at 4, whose
  // neighbours 3 and 5 come with it.
  Step(sequence, 10, [](int64_t token, int64_t query) {
    if (query < 8) return token == 0 ? 1.0f : 0.0f;
    return token == 4 ? 0.9f : token == 6 ? 0.01f : 0.0f;
  });
  EXPECT_THAT(Tokens(sequence, 0, 0), ElementsAre(3, 4, 5, 7, 8, 9));
  // The next window votes anew: among the entries 3 4 5 7 8 9 10 … 17 for the one of token 7.
  Step(sequence, 10,
       [](int64_t token, int64_t query) { return query >= 18 && token == 7 ? 1.0f : 0.0f; });
  EXPECT_THAT(Tokens(sequence, 1, 0), ElementsAre(5, 7, 8, 17, 18, 19));
  ExpectEntriesAtTheirPositions(sequence);
}

TEST_F(EvictionTest, L2NormKeepsTheSmallKeysPerHeadAndSkipsFirstLayers) {
  KvSequence sequence =
      NewSequence(*L2NormPolicy({.budget = {.tokens = 4}, .skip_layers = 1, .interval = 20}));
  Append(sequence, 20);
  ASSERT_TRUE(sequence.Forget().ok());
  EXPECT_EQ(sequence.length(0, 0), 20);
  EXPECT_EQ(sequence.length(0, 1), 20);
  for (int64_t head = 0; head < 2; ++head) {
    std::vector<int64_t> tokens(20);
    std::iota(tokens.begin(), tokens.end(), 0);
    std::sort(tokens.begin(), tokens.end(),
              [&](int64_t a, int64_t b) { return LengthOf(a, 1, head) < LengthOf(b, 1, head); });
    tokens.resize(4);
    std::sort(tokens.begin(), tokens.end());
    EXPECT_EQ(Tokens(sequence, 1, head), tokens);
  }
  EXPECT_NE(Tokens(sequence, 1, 0), Tokens(sequence, 1, 1));
  ExpectEntriesAtTheirPositions(sequence);
}

TEST_F(EvictionTest, AFractionGrowsWithTheTokens) {
  KvSequence sequence = NewSequence(*H2oPolicy({.budget = {.fraction = 0.25}, .interval = 16}));
  for (int64_t tokens = 16; tokens <= 64; tokens += 16) {
    Step(sequence, 16, [](int64_t token, int64_t) { return static_cast<float>(token % 3); });
    EXPECT_EQ(sequence.length(0, 0), tokens / 4);
    EXPECT_EQ(sequence.num_tokens(), tokens);
  }
}

TEST_F(EvictionTest, BudgetsHoldDuringGrowthAndEstimatesBoundThem) {
  const std::vector<PolicyPointer> policies = {
      *H2oPolicy({.budget = {.tokens = 24}, .interval = 16}),
      *SnapKvPolicy({.budget = {.tokens = 40}, .window = 8, .interval = 32}),
      *L2NormPolicy({.budget = {.fraction = 0.5}, .skip_layers = 1, .interval = 48}),
      *L2NormPolicy({.budget = {.tokens = 5}, .skip_layers = 0, .interval = 1})};
  for (const PolicyPointer& policy : policies) {
    SCOPED_TRACE(policy->Describe());
    KvSequence sequence = NewSequence(policy);
    int64_t peak = 0;
    while (sequence.num_tokens() < 200) {
      const int64_t size = policy->LayOut(sequence, 200 - sequence.num_tokens(), 23).num_tokens;
      if (sequence.state() != nullptr) {
        Step(sequence, size, [](int64_t token, int64_t) { return static_cast<float>(token % 7); });
      } else {
        Append(sequence, size);
        ASSERT_TRUE(sequence.Forget().ok());
      }
      peak = sequence.peak_bytes() / pool_->page_bytes();
      EXPECT_LE(peak, policy->EstimatePeakPages(kShape, sequence.num_tokens(), 23));
      EXPECT_EQ(sequence.num_pages(), policy->EstimateResidentPages(kShape, sequence.num_tokens()));
    }
    EXPECT_LT(sequence.num_pages(), kShape.num_heads() * 13);  // what 200 tokens need
  }
}

TEST_F(EvictionTest, ForksGoTheirOwnWayWithoutSpoilingEachOther) {
  KvSequence sequence = NewSequence(*H2oPolicy({.budget = {.tokens = 8}, .interval = 20}));
  const auto evens = [](int64_t token, int64_t) { return token % 2 == 0 ? 0.5f : 0.0f; };
  const auto odds = [](int64_t token, int64_t) { return token % 2 == 1 ? 0.9f : 0.0f; };
  Step(sequence, 18, evens);
  KvSequence fork = sequence.Fork();
  ASSERT_TRUE(fork.Attach(*tables_).ok());
  Step(fork, 2, odds);
  Step(sequence, 2, evens);
  EXPECT_THAT(Tokens(sequence, 0, 0), ElementsAre(0, 2, 4, 6, 16, 17, 18, 19));
  // Of the fork's odd tokens each has 1.8 from two queries; the first even ones have more.
  EXPECT_THAT(Tokens(fork, 0, 0), ElementsAre(0, 2, 4, 6, 16, 17, 18, 19));
  Step(fork, 20, odds);
  EXPECT_THAT(Tokens(fork, 0, 0), ElementsAre(17, 19, 21, 23, 36, 37, 38, 39));
  EXPECT_THAT(Tokens(sequence, 0, 0), ElementsAre(0, 2, 4, 6, 16, 17, 18, 19));
  ExpectEntriesAtTheirPositions(sequence);
  ExpectEntriesAtTheirPositions(fork);
}

// A fork copies shared pages before the step, so that dropping entries never lacks one.
TEST_F(EvictionTest, DroppingNeverLacksPages) {
  const PolicyPointer policy =
      *L2NormPolicy({.budget = {.tokens = 20}, .skip_layers = 0, .interval = 40});
  pool_ = nullptr;
  pool_ = *KvPool::Create(
      {.head_size = kHeadSize, .budget_bytes = 20 * kernels::PageElements(kHeadSize) * int64_t{4}});
  KvSequence sequence = NewSequence(policy);
  Append(sequence, 39);  // 3 pages in each of 4 heads
  KvSequence fork = sequence.Fork();
  ASSERT_TRUE(fork.Attach(*tables_).ok());
  // 8 pages are free, 12 would be copied: refused before anything is computed.
  EXPECT_EQ(fork.Reserve(1).code(), absl::StatusCode::kResourceExhausted);
  sequence = NewSequence(policy);
  Append(fork, 1);
  ASSERT_TRUE(fork.Forget().ok());
  EXPECT_EQ(fork.length(1, 1), 20);
  ExpectEntriesAtTheirPositions(fork);
}

TEST_F(EvictionTest, GoingBackIsRefusedOnceAnythingDependsOnLaterTokens) {
  KvSequence summed = NewSequence(*H2oPolicy({.budget = {.tokens = 8}, .interval = 20}));
  Step(summed, 10, [](int64_t, int64_t) { return 0.1f; });
  EXPECT_TRUE(summed.Truncate(10).ok());
  EXPECT_EQ(summed.Truncate(9).code(), absl::StatusCode::kFailedPrecondition);
  KvSequence by_norm =
      NewSequence(*L2NormPolicy({.budget = {.tokens = 8}, .skip_layers = 0, .interval = 20}));
  Append(by_norm, 12);
  EXPECT_TRUE(by_norm.Truncate(11).ok());
  Append(by_norm, 9);
  ASSERT_TRUE(by_norm.Forget().ok());
  EXPECT_EQ(by_norm.Truncate(19).code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(EvictionTest, SumsDoNotDependOnHowQueriesAreCutAndSurviveStorage) {
  const auto weights = [](int64_t first, int64_t count, int64_t entries) {
    at::Tensor w = at::zeros({2, count, entries});
    for (int64_t h = 0; h < 2; ++h) {
      for (int64_t q = 0; q < count; ++q) {
        for (int64_t e = 0; e <= first + q; ++e) {
          w[h][q][e] = 1 / static_cast<float>(3 + (h * 13 + (first + q) * 7 + e) % 29);
        }
      }
    }
    return w;
  };
  AttentionSums together(kShape, SummedQueries());
  together.Observe(1, 0, weights(0, 12, 12));
  AttentionSums apart(kShape, SummedQueries());
  apart.Observe(1, 0, weights(0, 5, 5));
  for (int64_t q = 5; q < 12; ++q) apart.Observe(1, q, weights(q, 1, q + 1));
  EXPECT_EQ(together.sums(1, 1), apart.sums(1, 1));

  const std::string bytes = together.Serialise();
  const auto restored = AttentionSums::Restore(kShape, SummedQueries(), bytes);
  ASSERT_TRUE(restored.ok()) << restored.status();
  EXPECT_EQ((*restored)->Serialise(), bytes);
  EXPECT_EQ((*restored)->sums(1, 0), together.sums(1, 0));
  for (size_t size = 0; size < bytes.size(); ++size) {
    EXPECT_FALSE(AttentionSums::Restore(kShape, SummedQueries(), bytes.substr(0, size)).ok());
  }
  EXPECT_FALSE(AttentionSums::Restore(kShape, SummedQueries(), bytes + "x").ok());
}

class PolicyRequestTest : public ::testing::Test {
 protected:
  PolicyRequestTest() {
    resources_.shape = kShape;
    resources_.entry_bytes = 2 * kHeadSize * 4;
  }

  absl::Status Error(const Proto& policy) { return CreatePolicy(policy, resources_).status(); }
  std::string Field(const Proto& policy) {
    const absl::Status status = Error(policy);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    return status::PayloadOf(status, status::kFieldPayload);
  }

  PolicyResources resources_;
};

TEST_F(PolicyRequestTest, BudgetsComeInThreeForms) {
  Proto proto;
  proto.mutable_h2o()->mutable_budget()->set_tokens(64);
  EXPECT_EQ((*CreatePolicy(proto, resources_))->Describe(), "h2o(tokens=64,interval=128,recent=0)");
  // A page of every head: 4 * 16 * 64 bytes.
  proto.mutable_h2o()->mutable_budget()->set_bytes(3 * 4096 + 4095);
  EXPECT_EQ((*CreatePolicy(proto, resources_))->Describe(), "h2o(tokens=48,interval=128,recent=0)");
  proto.mutable_h2o()->mutable_budget()->set_bytes(4095);
  EXPECT_EQ(Field(proto), "memory_policy.h2o.budget.bytes");
  proto.mutable_h2o()->mutable_budget()->set_fraction(0.125);
  EXPECT_EQ((*CreatePolicy(proto, resources_))->Describe(),
            "h2o(fraction=0.125,interval=128,recent=0)");
  for (const double fraction : {0.0, 1.0, -1.0, std::numeric_limits<double>::quiet_NaN()}) {
    proto.mutable_h2o()->mutable_budget()->set_fraction(fraction);
    EXPECT_EQ(Field(proto), "memory_policy.h2o.budget.fraction");
  }
  proto.mutable_h2o()->clear_budget();
  EXPECT_EQ(Field(proto), "memory_policy.h2o.budget");
}

TEST_F(PolicyRequestTest, WhatCannotWorkIsRefusedByName) {
  Proto proto;
  proto.mutable_snapkv()->mutable_budget()->set_tokens(32);  // no room beside the window
  EXPECT_EQ(Field(proto), "memory_policy.snapkv.budget");
  proto.mutable_snapkv()->mutable_budget()->set_tokens(33);
  EXPECT_TRUE(Error(proto).ok());
  proto.mutable_snapkv()->set_window(129);
  EXPECT_EQ(Field(proto), "memory_policy.snapkv.window");
  proto.mutable_snapkv()->set_window(8);
  proto.mutable_snapkv()->set_kernel_size(4);
  EXPECT_EQ(Field(proto), "memory_policy.snapkv.kernel_size");
  proto.mutable_l2norm()->mutable_budget()->set_tokens(16);
  proto.mutable_l2norm()->set_skip_layers(-1);
  EXPECT_EQ(Field(proto), "memory_policy.l2norm.skip_layers");
  proto.mutable_l2norm()->set_skip_layers(0);
  proto.mutable_l2norm()->set_interval(-5);
  EXPECT_EQ(Field(proto), "memory_policy.l2norm.interval");
  proto.mutable_h2o()->mutable_budget()->set_tokens(16);
  proto.mutable_h2o()->set_recent(16);  // nothing would be left to choose
  EXPECT_EQ(Field(proto), "memory_policy.h2o.budget");
}

TEST_F(PolicyRequestTest, ModelsWithWindowsOfTheirOwnDoNotGoWithMovingEntries) {
  Proto proto;
  proto.mutable_h2o()->mutable_budget()->set_tokens(64);
  resources_.shape.sliding_windows = {0, 32};
  EXPECT_EQ(Field(proto), "memory_policy");
  proto.mutable_full();
  EXPECT_TRUE(Error(proto).ok());
}

TEST_F(PolicyRequestTest, NammNeedsItsArtifact) {
  Proto proto;
  proto.mutable_namm()->set_artifact("mine");
  const absl::Status missing = Error(proto);
  EXPECT_EQ(missing.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(missing.message()), HasSubstr("\"mine\"; loaded: none"));
  const NammConfig config;
  BamOptions network = config.network;
  network.input_size = 25;
  const std::vector<float> parameters(BamNetwork::NumParameters(network), 0.0f);
  resources_.namm["mine"] =
      std::make_shared<const NammModel>(*NammModel::Create(config, parameters, {}));
  EXPECT_EQ((*CreatePolicy(proto, resources_))->name(), "namm");
  const std::string whole = (*CreatePolicy(proto, resources_))->Describe();
  proto.mutable_namm()->set_cache_size(100);
  EXPECT_NE((*CreatePolicy(proto, resources_))->Describe(), whole);
  proto.mutable_namm()->set_cache_size(-1);
  EXPECT_EQ(Field(proto), "memory_policy.namm.cache_size");
  proto.mutable_namm()->set_cache_size(0);
  proto.mutable_namm()->set_delay(100);  // no multiple of 16
  EXPECT_EQ(Field(proto), "memory_policy.namm.delay");
}

}  // namespace
}  // namespace mneme::memory
