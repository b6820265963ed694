#include "common/weights/model_config.h"

#include "common/weights/rope.h"
#include "common/weights/strict_json.h"
#include "common/weights/test_data.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace mneme::weights {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

json TinyConfig() {
  return {{"model_type", "llama"},        {"hidden_size", 32}, {"intermediate_size", 40},
          {"num_hidden_layers", 2},       {"vocab_size", 48},  {"num_attention_heads", 4},
          {"max_position_embeddings", 64}};
}

absl::Status ParseWith(const char* key, json value) {
  json config = TinyConfig();
  config[key] = std::move(value);
  return ParseHuggingFaceConfig(config.dump(), "").status();
}

// configs.json: published configs and what transformers' classes read from them.
TEST(ModelConfigTest, PublishedConfigsAreReadAsTransformersReadsThem) {
  const auto text = ReadTextFile(TestData("configs.json"), 1 << 20);
  ASSERT_TRUE(text.ok()) << text.status();
  const auto cases = ParseStrictJson(*text, 16);
  ASSERT_TRUE(cases.ok()) << cases.status();
  EXPECT_EQ(cases->size(), 15u);
  for (const json& item : *cases) {
    SCOPED_TRACE(item["name"].get<std::string>());
    const json& expected = item["expected"];
    const auto config = ParseHuggingFaceConfig(item["config"].dump(), "");
    ASSERT_TRUE(config.ok()) << config.status();
    EXPECT_EQ(ArchitectureName(config->architecture),
              item["config"]["model_type"].get<std::string>());
    EXPECT_EQ(config->hidden_size, expected["hidden_size"]);
    EXPECT_EQ(config->intermediate_size, expected["intermediate_size"]);
    EXPECT_EQ(config->num_layers, expected["num_hidden_layers"]);
    EXPECT_EQ(config->num_heads, expected["num_attention_heads"]);
    EXPECT_EQ(config->num_kv_heads, expected["num_key_value_heads"]);
    EXPECT_EQ(config->head_size, expected["head_dim"]);
    EXPECT_EQ(config->vocab_size, expected["vocab_size"]);
    EXPECT_EQ(config->context_length, expected["max_position_embeddings"]);
    EXPECT_EQ(config->rms_norm_eps, expected["rms_norm_eps"].get<double>());
    EXPECT_EQ(config->tie_word_embeddings, expected["tie_word_embeddings"]);
    EXPECT_EQ(config->eos_token_ids, expected["eos_token_ids"].get<std::vector<int64_t>>());
    EXPECT_EQ(config->bos_token_id.has_value(), !expected["bos_token_id"].is_null());
    if (config->bos_token_id.has_value()) {
      EXPECT_EQ(*config->bos_token_id, expected["bos_token_id"]);
    }
    EXPECT_EQ(config->sliding_windows, expected["sliding_windows"].get<std::vector<int64_t>>());
    const bool qwen2 = config->architecture == Architecture::kQwen2;
    EXPECT_EQ(config->qkv_bias, qwen2 || expected["attention_bias"].get<bool>());
    EXPECT_EQ(config->output_bias, expected["attention_bias"].get<bool>());
    EXPECT_EQ(config->mlp_bias, expected["mlp_bias"].get<bool>());

    const json& rope = expected["rope_parameters"];
    const std::string type = rope["rope_type"];
    const RopeScaling& scaling = config->rope_scaling;
    EXPECT_EQ(config->rope_theta, rope["rope_theta"].get<double>());
    EXPECT_EQ(RopeScalingName(scaling.kind), type == "default" ? "none" : type);
    EXPECT_EQ(scaling.factor, rope.value("factor", 1.0));
    if (rope.contains("original_max_position_embeddings")) {
      EXPECT_EQ(scaling.original_context_length, rope["original_max_position_embeddings"]);
    }
    EXPECT_EQ(scaling.low_freq_factor, rope.value("low_freq_factor", 1.0));
    EXPECT_EQ(scaling.high_freq_factor, rope.value("high_freq_factor", 4.0));
  }
}

TEST(ModelConfigTest, GenerationConfigNamesTheEndTokens) {
  const std::string config = TinyConfig().dump();
  EXPECT_THAT(ParseHuggingFaceConfig(config, R"({"eos_token_id":[7,9]})")->eos_token_ids,
              ElementsAre(7, 9));
  EXPECT_THAT(ParseHuggingFaceConfig(config, "{}")->eos_token_ids, ElementsAre(2));
  EXPECT_FALSE(ParseHuggingFaceConfig(config, "[]").ok());
}

TEST(ModelConfigTest, UnsupportedModelsSayWhatIsSupported) {
  const auto expect = [](const absl::Status& status, const char* asked, const char* supported) {
    EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented) << status;
    EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr(asked), HasSubstr(supported)));
  };
  expect(ParseWith("model_type", "gpt2"), "gpt2", "llama, mistral and qwen2");
  expect(ParseWith("hidden_act", "gelu"), "gelu", "silu");
  expect(ParseWith("rope_scaling", {{"rope_type", "longrope"}}), "longrope", "yarn");
  expect(ParseWith("partial_rotary_factor", 0.5), "0.5", "partial");
  expect(ParseWith("quantization_config", {{"bits", 4}}), "quantization_config", "GGUF");
}

TEST(ModelConfigTest, BadValuesNameTheirKey) {
  const auto expect = [](const absl::Status& status, const char* part) {
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(part));
  };
  expect(ParseWith("hidden_size", "32"), "hidden_size");
  expect(ParseWith("hidden_size", nullptr), "hidden_size");
  expect(ParseWith("hidden_size", -32), "hidden size");
  expect(ParseWith("hidden_size", 33), "hidden_size");
  expect(ParseWith("num_hidden_layers", 1e9), "layers");
  expect(ParseWith("num_attention_heads", 0), "num_attention_heads");
  expect(ParseWith("num_key_value_heads", 3), "key-value");
  expect(ParseWith("num_key_value_heads", -1), "key-value");
  expect(ParseWith("head_dim", 7), "odd");
  expect(ParseWith("vocab_size", 1.5), "vocab_size");
  expect(ParseWith("vocab_size", uint64_t{1} << 63), "vocab_size");
  expect(ParseWith("rms_norm_eps", -1), "rms_norm_eps");
  expect(ParseWith("rope_theta", 0), "rope_theta");
  expect(ParseWith("rope_theta", "big"), "rope_theta");
  expect(ParseWith("rope_scaling", {{"type", "linear"}}), "factor");
  expect(ParseWith("rope_scaling", 3), "rope parameters");
  expect(ParseWith("eos_token_id", "two"), "eos_token_id");
  expect(ParseWith("tie_word_embeddings", 1), "tie_word_embeddings");
  expect(ParseHuggingFaceConfig("", "").status(), "JSON");
  expect(ParseHuggingFaceConfig("[]", "").status(), "object");
  expect(ParseHuggingFaceConfig(std::string(100000, '['), "").status(), "nested");
  expect(ParseHuggingFaceConfig(R"({"model_type":"llama","model_type":"llama"})", "").status(),
         "twice");
}

TEST(ModelConfigTest, FlippedAndCutConfigsNeverCrash) {
  const std::string whole = R"({"model_type":"qwen2","hidden_size":32,"intermediate_size":40,)"
                            R"("num_hidden_layers":2,"vocab_size":48,"num_attention_heads":4,)"
                            R"("num_key_value_heads":2,"use_sliding_window":true,)"
                            R"("max_window_layers":1,"eos_token_id":[1,2],"rope_scaling":)"
                            R"({"type":"yarn","factor":4.0,"beta_fast":3e1}})";
  ASSERT_TRUE(ParseHuggingFaceConfig(whole, whole).ok());
  int accepted = 0;
  for (size_t at = 0; at < whole.size(); ++at) {
    EXPECT_FALSE(ParseHuggingFaceConfig(whole.substr(0, at), "").ok());
    for (int bit = 0; bit < 8; ++bit) {
      std::string flipped = whole;
      flipped[at] = static_cast<char>(flipped[at] ^ 1 << bit);
      const auto config = ParseHuggingFaceConfig(flipped, "");
      if (!config.ok()) continue;
      ++accepted;
      EXPECT_EQ(config->sliding_windows.size(), static_cast<size_t>(config->num_layers));
      ComputeRope(*config, 100).status().IgnoreError();
    }
  }
  EXPECT_GT(accepted, 0);
}

TEST(ModelConfigTest, FolderWithoutConfigIsNotFound) {
  EXPECT_EQ(ReadHuggingFaceConfig("/nowhere").status().code(), absl::StatusCode::kNotFound);
}

TEST(ModelConfigTest, GgufOfAnotherArchitectureSaysWhatIsSupported) {
  const auto file = GgufFile::Open(TestData("quants.gguf"));
  ASSERT_TRUE(file.ok());
  const absl::Status status = ReadGgufConfig(**file).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr("'test'"), HasSubstr("qwen2")));
}

}  // namespace
}  // namespace mneme::weights
