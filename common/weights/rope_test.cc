#include "common/weights/rope.h"

#include <cmath>

#include "common/weights/strict_json.h"
#include "common/weights/test_data.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace mneme::weights {
namespace {

using nlohmann::json;
using ::testing::Each;
using ::testing::HasSubstr;
using ::testing::Pointwise;

MATCHER_P(RelativelyNear, tolerance, "") {
  const double actual = std::get<0>(arg);
  const double expected = std::get<1>(arg);
  return std::abs(actual - expected) <= tolerance * std::abs(expected);
}

// rope.json comes from transformers' functions in float32. The tolerance is what two float32 `pow`
// and a few roundings after it may differ by.
TEST(RopeTest, EveryScalingMatchesTransformers) {
  const auto text = ReadTextFile(TestData("rope.json"), 1 << 20);
  ASSERT_TRUE(text.ok()) << text.status();
  const auto cases = ParseStrictJson(*text, 8);
  ASSERT_TRUE(cases.ok()) << cases.status();
  EXPECT_EQ(cases->size(), 16u);
  for (const json& wanted : *cases) {
    SCOPED_TRACE(wanted["rope_parameters"].dump());
    const int64_t head_size = wanted["head_dim"];
    const json config_json = {{"model_type", "llama"},
                              {"hidden_size", head_size * 4},
                              {"intermediate_size", 8},
                              {"num_hidden_layers", 1},
                              {"num_attention_heads", 4},
                              {"vocab_size", 10},
                              {"max_position_embeddings", wanted["max_position_embeddings"]},
                              {"rope_parameters", wanted["rope_parameters"]}};
    const auto config = ParseHuggingFaceConfig(config_json.dump(), "");
    ASSERT_TRUE(config.ok()) << config.status();
    const auto rope = ComputeRope(*config, wanted["num_tokens"]);
    ASSERT_TRUE(rope.ok()) << rope.status();
    EXPECT_THAT(
        rope->inverse_frequencies,
        Pointwise(RelativelyNear(1e-6), wanted["inverse_frequencies"].get<std::vector<double>>()));
    EXPECT_NEAR(rope->attention_factor, wanted["attention_factor"].get<double>(), 1e-9);
  }
}

TEST(RopeTest, DynamicNtkWithinTheContextIsPlain) {
  ModelConfig config;
  config.head_size = 64;
  config.context_length = 2048;
  const auto plain = ComputeRope(config, 4000);
  config.rope_scaling.kind = RopeScalingKind::kDynamicNtk;
  config.rope_scaling.factor = 2;
  EXPECT_EQ(ComputeRope(config, 2048)->inverse_frequencies, plain->inverse_frequencies);
  EXPECT_NE(ComputeRope(config, 2049)->inverse_frequencies, plain->inverse_frequencies);
}

TEST(RopeTest, BeaconYarnGrowsBeyondTheScaledContext) {
  ModelConfig config;
  config.head_size = 64;
  config.context_length = 100;
  config.rope_scaling = {.kind = RopeScalingKind::kBeaconYarn, .factor = 2.5};
  EXPECT_EQ(FixedRopeLength(config), 250);
  EXPECT_EQ(ComputeRope(config, 250)->inverse_frequencies,
            ComputeRope(config, 1)->inverse_frequencies);
  EXPECT_NEAR(ComputeRope(config, 1)->attention_factor, 0.07 * std::log(2.5) + 1, 1e-12);
  const auto grown = ComputeRope(config, 400);
  EXPECT_NEAR(grown->attention_factor, 0.07 * std::log(4) + 1, 1e-12);
  config.rope_scaling.factor = 4;
  EXPECT_EQ(grown->inverse_frequencies, ComputeRope(config, 1)->inverse_frequencies);
}

TEST(RopeTest, YarnTScalesLateQueriesInsteadOfKeys) {
  ModelConfig config;
  config.head_size = 64;
  config.context_length = 100;
  config.rope_scaling = {.kind = RopeScalingKind::kYarnT, .factor = 4};
  EXPECT_EQ(ComputeRope(config, 1)->attention_factor, 1);
  EXPECT_EQ(QueryScale(config, 99), 1);
  EXPECT_NEAR(QueryScale(config, 199), std::pow(0.07 * std::log(2) + 1, 2), 1e-12);
  config.rope_scaling.kind = RopeScalingKind::kYarnTLogN;
  EXPECT_NEAR(QueryScale(config, 199), std::log(200) / std::log(100), 1e-12);
  config.rope_scaling.kind = RopeScalingKind::kYarn;
  EXPECT_EQ(QueryScale(config, 199), 1);
}

TEST(RopeTest, FrequencyFactorsDivide) {
  ModelConfig config;
  config.head_size = 4;
  config.context_length = 16;
  const std::vector<float> plain = ComputeRope(config, 1)->inverse_frequencies;
  config.rope_scaling.frequency_factors = {1, 8};
  const std::vector<float> scaled = ComputeRope(config, 1)->inverse_frequencies;
  EXPECT_EQ(scaled[0], plain[0]);
  EXPECT_EQ(scaled[1], plain[1] / 8);
}

TEST(RopeTest, ParametersWithoutFiniteFrequenciesAreRefused) {
  ModelConfig good;
  good.head_size = 64;
  good.context_length = 2048;
  ASSERT_TRUE(ComputeRope(good, 1).ok());
  std::vector<ModelConfig> bad(9, good);
  bad[0].head_size = 63;
  bad[1].rope_theta = 0;
  bad[2].rope_theta = std::nan("");
  bad[3].rope_scaling.factor = 0;
  bad[4].context_length = 0;
  bad[5].rope_scaling = {
      .kind = RopeScalingKind::kLlama3, .low_freq_factor = 4, .high_freq_factor = 4};
  bad[6].rope_scaling = {.kind = RopeScalingKind::kYarn, .factor = 2, .beta_fast = -1};
  bad[7].rope_scaling.frequency_factors = {1, 2};
  bad[8].rope_scaling = {.kind = RopeScalingKind::kDynamicNtk, .factor = 0.5};
  for (const ModelConfig& config : bad) {
    EXPECT_EQ(ComputeRope(config, 4096).status().code(), absl::StatusCode::kInvalidArgument);
  }
}

}  // namespace
}  // namespace mneme::weights
