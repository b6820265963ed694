// The default model's weights against the sums that the reference made of them.
#include <cmath>
#include <filesystem>

#include "common/weights/dequantize.h"
#include "common/weights/model_files.h"
#include "common/weights/strict_json.h"
#include "common/weights/test_data.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace mneme::weights {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;

std::string ModelPath() {
  const std::string cache = Environment("MNEME_CACHE", Environment("HOME", "") + "/.cache/mneme");
  return cache + "/models/smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf";
}

json LoadGolden() {
  const std::string folder = Environment("MNEME_GOLDEN", SourceFolder() + "/../shared/golden");
  const auto text = ReadTextFile(folder + "/models/smollm2-135m-instruct-q4_1.json", 64 << 20);
  if (!text.ok()) return nullptr;
  const auto document = ParseStrictJson(*text, 64);
  return document.ok() ? *document : nullptr;
}

class DefaultModelTest : public ::testing::Test {
 protected:
  void SetUp() override {
    golden_ = LoadGolden();
    if (golden_.is_null()) GTEST_SKIP() << "no golden files: set MNEME_GOLDEN";
    auto model = ModelFiles::Open(ModelPath());
    ASSERT_TRUE(model.ok()) << model.status() << "; run deploy/setup.sh";
    model_ = *std::move(model);
  }
  json golden_;
  std::unique_ptr<ModelFiles> model_;
};

TEST_F(DefaultModelTest, ConfigIsWhatTransformersReads) {
  const json& expected = golden_["config"];
  const ModelConfig& config = model_->config();
  EXPECT_EQ(ArchitectureName(config.architecture), expected["model_type"].get<std::string>());
  EXPECT_EQ(config.vocab_size, expected["vocab_size"]);
  EXPECT_EQ(config.hidden_size, expected["hidden_size"]);
  EXPECT_EQ(config.intermediate_size, expected["intermediate_size"]);
  EXPECT_EQ(config.num_layers, expected["num_hidden_layers"]);
  EXPECT_EQ(config.num_heads, expected["num_attention_heads"]);
  EXPECT_EQ(config.num_kv_heads, expected["num_key_value_heads"]);
  EXPECT_EQ(config.head_size, expected["head_dim"]);
  EXPECT_EQ(config.context_length, expected["max_position_embeddings"]);
  EXPECT_EQ(config.rms_norm_eps, expected["rms_norm_eps"].get<double>());
  EXPECT_EQ(config.tie_word_embeddings, expected["tie_word_embeddings"]);
  EXPECT_EQ(config.rope_theta, expected["rope_parameters"]["rope_theta"].get<double>());
  EXPECT_EQ(config.rope_scaling.kind, RopeScalingKind::kNone);
  EXPECT_FALSE(config.qkv_bias || config.output_bias || config.mlp_bias);
  EXPECT_EQ(config.bos_token_id, 1);
  EXPECT_THAT(config.eos_token_ids, ElementsAre(2));
  EXPECT_EQ(model_->file_type(), "Q4_1");
  EXPECT_EQ(model_->num_parameters(), 134515008);
  EXPECT_EQ(model_->gguf()->GetStrings("tokenizer.ggml.tokens")->size(), 49152u);
}

TEST_F(DefaultModelTest, DequantisedWeightsHaveTheReferenceSums) {
  for (const auto& [name, expected] : golden_["weight_sums_shape_sum_abssum"].items()) {
    SCOPED_TRACE(name);
    const auto weight = model_->Find(name);
    ASSERT_TRUE(weight.ok()) << weight.status();
    EXPECT_EQ(weight->view.shape, expected[0].get<std::vector<int64_t>>());
    std::vector<float> values(static_cast<size_t>(weight->view.num_elements()));
    ASSERT_TRUE(Dequantize(weight->view, absl::MakeSpan(values)).ok());
    double sum = 0;
    double magnitude = 0;
    for (const float value : values) {
      sum += value;
      magnitude += std::abs(static_cast<double>(value));
    }
    // The reference's numbers are rounded to four places.
    EXPECT_NEAR(sum, expected[1].get<double>(), 1e-4);
    EXPECT_NEAR(magnitude, expected[2].get<double>(), 1e-4);
  }
}

}  // namespace
}  // namespace mneme::weights
