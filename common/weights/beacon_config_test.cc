#include "common/weights/beacon_config.h"

#include "common/weights/model_config.h"
#include "common/weights/strict_json.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace mneme::weights {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(BeaconConfigTest, PlainModelsHaveNone) {
  EXPECT_FALSE((*ParseBeaconConfig(R"({"model_type": "llama"})")).has_value());
}

TEST(BeaconConfigTest, AllKeysAreRead) {
  const auto config = ParseBeaconConfig(R"({
      "beacon_window": 2048, "beacon_stride": 2048, "beacon_attn": "step-expansion",
      "beacon_attend_prev": false, "beacon_pos": "append", "beacon_param": ["q", "k", "v"],
      "beacon_ratio": [2, 2, 4], "beacon_ratio_mix": "adapt-1024", "beacon_sink_size": 1,
      "beacon_embed_init": "bos", "beacon_parallel_window": 1})");
  ASSERT_TRUE(config.ok()) << config.status();
  const BeaconConfig& read = **config;
  EXPECT_EQ(read.window, 2048);
  EXPECT_EQ(read.attention, BeaconAttention::kStepExpansion);
  EXPECT_EQ(read.placement, BeaconPlacement::kAppend);
  EXPECT_FALSE(read.attend_previous);
  EXPECT_TRUE(read.has_q && read.has_k && read.has_v && !read.has_o);
  EXPECT_THAT(read.ratios, ElementsAre(2, 2, 4));
  EXPECT_EQ(read.mix, BeaconRatioMix::kAdapt);
  EXPECT_EQ(read.adapt_reserve, 1024);
  EXPECT_EQ(read.sink_size, 1);
  EXPECT_EQ(read.embed_init, BeaconEmbedInit::kBos);
}

TEST(BeaconConfigTest, MissingKeysTakeThePublishedDefaults) {
  const BeaconConfig read = **ParseBeaconConfig(R"({"beacon_sink_size": 0})");
  EXPECT_EQ(read.window, 1024);
  EXPECT_EQ(read.stride, 1024);
  EXPECT_THAT(read.ratios, ElementsAre(2, 4, 8, 16, 32));
  EXPECT_EQ(read.mix, BeaconRatioMix::kStepRandom);
  EXPECT_FALSE(read.has_q || read.has_k || read.has_v || read.has_o);
  EXPECT_TRUE(read.attend_previous);
}

TEST(BeaconConfigTest, WrongValuesAreRefusedByName) {
  for (const auto& [key, value] : std::vector<std::pair<const char*, json>>{
           {"beacon_window", 0},
           {"beacon_window", "32"},
           {"beacon_ratio", {2, -1}},
           {"beacon_ratio_mix", "adapt-x"},
           {"beacon_param", {"q", "x"}},
           {"beacon_pos", "middle"},
           {"beacon_attn", "none"},
           {"beacon_attend_prev", 1},
           {"beacon_embed_init", "pad"},
       }) {
    const absl::Status status = ParseBeaconConfig(json{{key, value}}.dump()).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << key;
    EXPECT_THAT(status.message(), HasSubstr(key));
  }
  for (const char* text :
       {R"({"beacon_attn": "segmentation"})", R"({"beacon_window": 32, "beacon_stride": 16})"}) {
    EXPECT_EQ(ParseBeaconConfig(text).status().code(), absl::StatusCode::kUnimplemented);
  }
}

TEST(BeaconConfigTest, YarnOfABeaconModelIsItsOwn) {
  json config = {{"model_type", "qwen2"},
                 {"hidden_size", 32},
                 {"intermediate_size", 40},
                 {"num_hidden_layers", 2},
                 {"vocab_size", 48},
                 {"num_attention_heads", 4},
                 {"num_key_value_heads", 4},
                 {"max_position_embeddings", 64},
                 {"rope_scaling", {{"type", "yarn"}, {"factor", 2.0}}}};
  EXPECT_EQ(ParseHuggingFaceConfig(config.dump(), "")->rope_scaling.kind, RopeScalingKind::kYarn);
  config["beacon_window"] = 32;
  EXPECT_EQ(ParseHuggingFaceConfig(config.dump(), "")->rope_scaling.kind,
            RopeScalingKind::kBeaconYarn);
}

}  // namespace
}  // namespace mneme::weights
