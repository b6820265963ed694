#include "services/executor/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <random>
#include <set>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "services/executor/philox.h"

namespace mneme::executor {
namespace {

using ::testing::ElementsAre;
using ::testing::Pair;

// What the model says, made of noise whose spread decides how peaked it is.
std::vector<float> RandomLogits(int64_t size, float spread, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal(0, spread);
  std::vector<float> logits(size);
  for (float& logit : logits) logit = normal(random);
  return logits;
}

std::vector<int32_t> SortedIds(const std::vector<double>& values) {
  std::vector<int32_t> ids(values.size());
  std::iota(ids.begin(), ids.end(), 0);
  std::stable_sort(ids.begin(), ids.end(),
                   [&values](int32_t a, int32_t b) { return values[a] > values[b]; });
  return ids;
}

// The distribution that vLLM's order of operations gives, straight from its definition and in
// double: id -> probability. Sorts everything and keeps no state.
std::map<int32_t, double> Reference(const SamplingParams& params, const std::vector<float>& raw,
                                    const std::vector<int32_t>& prompt,
                                    const std::vector<int32_t>& generated) {
  std::vector<double> x(raw.begin(), raw.end());
  if (static_cast<int64_t>(generated.size()) < params.min_tokens) {
    for (const int32_t id : params.end_ids) x[id] = -std::numeric_limits<double>::infinity();
  }
  for (const auto& [id, bias] : params.logit_bias) x[id] += bias;
  std::set<int32_t> seen(prompt.begin(), prompt.end());
  seen.insert(generated.begin(), generated.end());
  for (const int32_t id : seen) {
    x[id] = x[id] > 0 ? x[id] / params.repetition_penalty : x[id] * params.repetition_penalty;
  }
  for (const int32_t id : std::set<int32_t>(generated.begin(), generated.end())) {
    x[id] -= params.presence_penalty + static_cast<double>(params.frequency_penalty) *
                                           std::count(generated.begin(), generated.end(), id);
  }
  const std::vector<int32_t> order = SortedIds(x);
  if (params.temperature == 0) return {{order[0], 1.0}};
  std::vector<double> weight(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    weight[i] = std::exp((x[i] - x[order[0]]) / params.temperature);
  }
  size_t kept = 0;
  while (kept < order.size() && weight[order[kept]] >= params.min_p &&
         (params.top_k == 0 || kept < static_cast<size_t>(params.top_k))) {
    ++kept;
  }
  double total = 0;
  for (size_t i = 0; i < kept; ++i) total += weight[order[i]];
  double sum = 0;
  std::map<int32_t, double> distribution;
  for (size_t i = 0; i < kept && (i == 0 || sum < params.top_p * total); ++i) {
    distribution[order[i]] = weight[order[i]];
    sum += weight[order[i]];
  }
  for (auto& [id, probability] : distribution) probability /= sum;
  return distribution;
}

int32_t SampleOnce(const SamplingParams& params, uint64_t seed, int64_t position,
                   std::vector<float> logits, const std::vector<int32_t>& prompt = {},
                   const std::vector<int32_t>& generated = {}) {
  Sampler sampler(std::make_shared<SamplingParams>(params), seed);
  sampler.AddPrompt(prompt);
  for (const int32_t id : generated) sampler.AddGenerated(id);
  SamplerScratch scratch;
  return sampler.Sample(absl::MakeSpan(logits), position, &scratch);
}

TEST(PhiloxTest, MatchesThePublishedKnownAnswers) {
  EXPECT_THAT(Philox({0, 0, 0, 0}, {0, 0}),
              ElementsAre(0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8));
  EXPECT_THAT(Philox({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff}),
              ElementsAre(0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd));
  EXPECT_THAT(Philox({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
              ElementsAre(0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1));
}

TEST(PhiloxTest, AnswersHaveDifferentSeedsAndTheFirstHasTheRequests) {
  std::set<uint64_t> seeds;
  for (int i = 0; i < 16; ++i) seeds.insert(SeedOfAnswer(7, i));
  EXPECT_EQ(seeds.size(), 16U);
  EXPECT_EQ(SeedOfAnswer(7, 0), 7U);
}

TEST(LogitOpsTest, ArgMaxTakesTheLowestIdAmongEqualsAtEverySize) {
  for (const int64_t size : {1, 3, 16, 63, 64, 65, 1000, 49152, 151936}) {
    std::vector<float> logits = RandomLogits(size, 2, size);
    const int32_t expected =
        static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
    EXPECT_EQ(ArgMax(logits), expected) << size;
    logits[size - 1] = 99;
    EXPECT_EQ(ArgMax(logits), size - 1) << size;
    logits[size / 2] = 99;
    logits[size / 3] = 99;
    EXPECT_EQ(ArgMax(logits), size / 3) << size;
  }
}

TEST(LogitOpsTest, RowsWithoutAFiniteMaximumHaveNoArgMax) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float infinity = std::numeric_limits<float>::infinity();
  EXPECT_EQ(ArgMax(std::vector<float>(100, nan)), -1);
  EXPECT_EQ(ArgMax(std::vector<float>(100, -infinity)), -1);
  std::vector<float> one(100, nan);
  one[71] = -5;
  EXPECT_EQ(ArgMax(one), 71);
  one[3] = infinity;
  EXPECT_EQ(ArgMax(one), -1);
}

TEST(LogitOpsTest, ExpWeightsAndLogSumExpMatchDoubles) {
  for (const int64_t size : {1, 7, 511, 512, 513, 49152}) {
    std::vector<float> logits = RandomLogits(size, 8, size);
    if (size > 5) logits[5] = -std::numeric_limits<float>::infinity();
    const float max = MaxLogit(logits);
    std::vector<float> weights(size);
    std::vector<double> blocks;
    const double sum = ExpWeights(logits, max, 0.7F, absl::MakeSpan(weights), &blocks);
    double expected_sum = 0;
    double expected_exp = 0;
    for (int64_t i = 0; i < size; ++i) {
      const double expected = std::exp((double{logits[i]} - max) * 0.7F);
      EXPECT_NEAR(weights[i], expected, 1e-5 * expected + 1e-37) << i;
      expected_sum += expected;
      expected_exp += std::exp(double{logits[i]} - max);
    }
    EXPECT_NEAR(sum, expected_sum, 1e-6 * expected_sum);
    EXPECT_NEAR(std::accumulate(blocks.begin(), blocks.end(), 0.0), sum, 1e-9 * sum);
    EXPECT_NEAR(LogSumExp(logits), max + std::log(expected_exp), 2e-6);
  }
}

TEST(LogitOpsTest, SelectTopEqualsAFullSortWithManyTies) {
  for (const int64_t size : {1, 64, 100, 4099}) {
    std::vector<float> logits = RandomLogits(size, 3, size);
    for (float& logit : logits) logit = std::round(logit);
    std::vector<double> values(logits.begin(), logits.end());
    const std::vector<int32_t> order = SortedIds(values);
    for (const int64_t k : {1, 2, 20, 33, 64, 1000, 5000}) {
      std::vector<Candidate> top;
      SelectTop(logits, k, &top);
      ASSERT_EQ(top.size(), static_cast<size_t>(std::min(k, size)));
      for (size_t i = 0; i < top.size(); ++i) {
        ASSERT_EQ(top[i].id, order[i]) << size << " " << k;
        ASSERT_EQ(RankOf(logits, top[i].id), static_cast<int32_t>(i) + 1);
      }
    }
  }
}

// Each case is one way to sample; the drawn frequencies must be those of the reference, and nothing
// outside its support may ever be drawn.
class SamplerDistributionTest : public ::testing::TestWithParam<SamplingParams> {};

TEST_P(SamplerDistributionTest, MatchesTheReference) {
  const SamplingParams params = GetParam();
  const std::vector<int32_t> prompt = {1, 2, 3, 700};
  const std::vector<int32_t> generated = {3, 5, 5, 701};
  for (const float spread : {0.3F, 2.0F, 6.0F}) {
    const std::vector<float> logits = RandomLogits(1500, spread, 11);
    const std::map<int32_t, double> expected = Reference(params, logits, prompt, generated);
    constexpr int kDraws = 6000;
    std::map<int32_t, int> counts;
    Sampler sampler(std::make_shared<SamplingParams>(params), 42);
    sampler.AddPrompt(prompt);
    for (const int32_t id : generated) sampler.AddGenerated(id);
    SamplerScratch scratch;
    for (int position = 0; position < kDraws; ++position) {
      std::vector<float> row = logits;
      ++counts[sampler.Sample(absl::MakeSpan(row), position, &scratch)];
    }
    for (const auto& [id, count] : counts) {
      ASSERT_TRUE(expected.contains(id)) << "drew " << id << " outside the support";
    }
    for (const auto& [id, probability] : expected) {
      // Five standard deviations and a little for the rarest.
      EXPECT_NEAR(counts[id], kDraws * probability, 5 * std::sqrt(kDraws * probability) + 3) << id;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Ways, SamplerDistributionTest,
    ::testing::Values(
        SamplingParams{.temperature = 0}, SamplingParams{}, SamplingParams{.temperature = 0.4},
        SamplingParams{.temperature = 3}, SamplingParams{.top_k = 1}, SamplingParams{.top_k = 5},
        SamplingParams{.top_k = 700}, SamplingParams{.top_k = 100000}, SamplingParams{.top_p = 0.1},
        SamplingParams{.top_p = 0.9}, SamplingParams{.top_p = 0.999}, SamplingParams{.top_p = 1e-9},
        SamplingParams{.min_p = 0.05}, SamplingParams{.min_p = 1},
        SamplingParams{.top_p = 0.8, .min_p = 0.02}, SamplingParams{.top_k = 40, .top_p = 0.9},
        SamplingParams{.temperature = 0.7, .top_k = 40, .top_p = 0.95, .min_p = 0.05},
        SamplingParams{.presence_penalty = 1.5}, SamplingParams{.frequency_penalty = -2},
        SamplingParams{.repetition_penalty = 1.8},
        SamplingParams{.logit_bias = {{9, 12}, {10, -9}}},
        SamplingParams{
            .temperature = 0, .logit_bias = {{9, 100}}, .end_ids = {9}, .min_tokens = 99},
        SamplingParams{.temperature = 1.3,
                       .top_k = 300,
                       .top_p = 0.97,
                       .min_p = 0.001,
                       .presence_penalty = 0.5,
                       .frequency_penalty = 0.5,
                       .repetition_penalty = 1.2,
                       .logit_bias = {{3, 4}, {700, 5}},
                       .end_ids = {4, 8},
                       .min_tokens = 5}));

TEST(SamplerTest, DrawDependsOnSeedAndPositionOnly) {
  const std::vector<float> logits = RandomLogits(49152, 1, 3);
  std::set<int32_t> drawn;
  for (uint64_t seed = 0; seed < 8; ++seed) {
    for (int64_t position = 0; position < 8; ++position) {
      const int32_t id = SampleOnce({}, seed, position, logits);
      EXPECT_EQ(id, SampleOnce({}, seed, position, logits));
      drawn.insert(id);
    }
  }
  EXPECT_GT(drawn.size(), 55U);
}

TEST(SamplerTest, NeighbouringPositionsAreUniform) {
  // 64 equal tokens: a chi-squared statistic over 64,000 consecutive positions, 63 degrees of
  // freedom; beyond 120 has a probability under 1e-5 if the draws are uniform.
  const std::vector<float> logits(64, 0.5F);
  std::vector<int> counts(64);
  for (int64_t position = 0; position < 64000; ++position) {
    ++counts[SampleOnce({}, 1234, position, logits)];
  }
  double chi = 0;
  for (const int count : counts) chi += (count - 1000.0) * (count - 1000.0) / 1000;
  EXPECT_LT(chi, 120);
}

TEST(SamplerTest, EndTokensAreMaskedOnlyBeforeMinTokens) {
  std::vector<float> logits(100, 0);
  logits[7] = 50;
  const SamplingParams params{.temperature = 0, .end_ids = {7}, .min_tokens = 2};
  EXPECT_NE(SampleOnce(params, 0, 0, logits, {}, {1}), 7);
  EXPECT_EQ(SampleOnce(params, 0, 0, logits, {}, {1, 1}), 7);
}

TEST(SamplerTest, BrokenLogitsGiveNoToken) {
  const std::vector<float> logits(100, std::numeric_limits<float>::quiet_NaN());
  EXPECT_EQ(SampleOnce({}, 0, 0, logits), -1);
  EXPECT_EQ(SampleOnce({.temperature = 0}, 0, 0, logits), -1);
  EXPECT_EQ(SampleOnce({.top_k = 3}, 0, 0, logits), -1);
}

TEST(ScoreTokenTest, LogprobsRanksAndAlternativesAreTheModelsOwn) {
  const std::vector<float> logits = RandomLogits(49152, 4, 9);
  double sum = 0;
  for (const float logit : logits) sum += std::exp(double{logit});
  SamplerScratch scratch;
  const TokenScores scores = ScoreToken(logits, 1234, 20, &scratch);
  EXPECT_EQ(scores.chosen.id, 1234);
  EXPECT_NEAR(scores.chosen.logprob, logits[1234] - std::log(sum), 1e-5);
  ASSERT_EQ(scores.top.size(), 20U);
  for (size_t i = 0; i < 20; ++i) {
    EXPECT_EQ(scores.top[i].rank, static_cast<int32_t>(i) + 1);
    EXPECT_EQ(RankOf(logits, scores.top[i].id), scores.top[i].rank);
    EXPECT_NEAR(scores.top[i].logprob, logits[scores.top[i].id] - std::log(sum), 1e-5);
  }
  EXPECT_TRUE(ScoreToken(logits, 1234, 0, &scratch).top.empty());
}

}  // namespace
}  // namespace mneme::executor
