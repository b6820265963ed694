#include "common/weights/model_files.h"

#include <cmath>
#include <filesystem>

#include "common/weights/dequantize.h"
#include "common/weights/rope.h"
#include "common/weights/test_data.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/temp_folder.h"

namespace mneme::weights {
namespace {

using ::testing::AllOf;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::vector<float> Values(const TensorView& tensor) {
  std::vector<float> values(static_cast<size_t>(tensor.num_elements()));
  EXPECT_TRUE(Dequantize(tensor, absl::MakeSpan(values)).ok());
  return values;
}

std::unique_ptr<ModelFiles> OpenOrDie(const std::string& path) {
  auto model = ModelFiles::Open(path);
  EXPECT_TRUE(model.ok()) << model.status();
  return model.ok() ? *std::move(model) : nullptr;
}

// Puts the rows of a GGUF q or k matrix into Hugging Face order, as the header describes.
std::vector<float> Unpermute(const std::vector<float>& file, int64_t num_heads, int64_t head_size,
                             int64_t width) {
  std::vector<float> rows(file.size());
  for (int64_t head = 0; head < num_heads; ++head) {
    for (int64_t i = 0; i < head_size / 2; ++i) {
      for (int64_t part = 0; part < 2; ++part) {
        const int64_t from = head * head_size + 2 * i + part;
        const int64_t to = head * head_size + part * head_size / 2 + i;
        std::copy_n(file.begin() + from * width, width, rows.begin() + to * width);
      }
    }
  }
  return rows;
}

TEST(ModelFilesTest, GgufAndHuggingFaceFormsOfAModelAgree) {
  const auto folder = OpenOrDie(TestData("tiny_llama"));
  const auto gguf = OpenOrDie(TestData("tiny_llama.gguf"));
  ASSERT_TRUE(folder != nullptr && gguf != nullptr);
  const ModelConfig& a = folder->config();
  const ModelConfig& b = gguf->config();
  EXPECT_EQ(a.hidden_size, b.hidden_size);
  EXPECT_EQ(a.intermediate_size, b.intermediate_size);
  EXPECT_EQ(a.num_layers, b.num_layers);
  EXPECT_EQ(a.num_heads, b.num_heads);
  EXPECT_EQ(a.num_kv_heads, b.num_kv_heads);
  EXPECT_EQ(a.head_size, b.head_size);
  EXPECT_EQ(a.vocab_size, b.vocab_size);
  EXPECT_EQ(a.context_length, b.context_length);
  EXPECT_EQ(static_cast<float>(a.rms_norm_eps), static_cast<float>(b.rms_norm_eps));
  EXPECT_EQ(a.tie_word_embeddings, b.tie_word_embeddings);
  EXPECT_EQ(a.bos_token_id, b.bos_token_id);
  EXPECT_EQ(a.eos_token_ids, b.eos_token_ids);
  EXPECT_EQ(a.sliding_windows, b.sliding_windows);
  EXPECT_EQ(folder->num_parameters(), gguf->num_parameters());
  EXPECT_EQ(folder->file_type(), "F16");
  EXPECT_EQ(gguf->file_type(), "F16");
  EXPECT_EQ(folder->gguf(), nullptr);
  EXPECT_EQ(*gguf->gguf()->GetString("general.name"), "Tiny");

  const std::vector<std::string> names = folder->names();
  EXPECT_EQ(names.size(), 21u);
  for (const std::string& name : names) {
    SCOPED_TRACE(name);
    const auto expected = folder->Find(name);
    const auto actual = gguf->Find(name);
    ASSERT_TRUE(expected.ok() && actual.ok()) << actual.status();
    EXPECT_EQ(actual->view.shape, expected->view.shape);
    EXPECT_FALSE(expected->qk_permuted);
    std::vector<float> values = Values(actual->view);
    const bool q = name.find("q_proj") != std::string::npos;
    const bool k = name.find("k_proj") != std::string::npos;
    EXPECT_EQ(actual->qk_permuted, q || k);
    if (actual->qk_permuted) {
      EXPECT_NE(values, Values(expected->view));
      values = Unpermute(values, q ? a.num_heads : a.num_kv_heads, a.head_size, a.hidden_size);
    }
    EXPECT_EQ(values, Values(expected->view));
  }
}

TEST(ModelFilesTest, Llama3ScalingIsTheSameFromParametersAndFromFactors) {
  const auto folder = OpenOrDie(TestData("tiny_llama"));
  const auto gguf = OpenOrDie(TestData("tiny_llama.gguf"));
  ASSERT_TRUE(folder != nullptr && gguf != nullptr);
  EXPECT_EQ(folder->config().rope_scaling.kind, RopeScalingKind::kLlama3);
  EXPECT_EQ(gguf->config().rope_scaling.kind, RopeScalingKind::kNone);
  EXPECT_THAT(gguf->config().rope_scaling.frequency_factors, ::testing::SizeIs(4));
  const auto a = ComputeRope(folder->config(), 1);
  const auto b = ComputeRope(gguf->config(), 1);
  ASSERT_TRUE(a.ok() && b.ok());
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_NEAR(a->inverse_frequencies[i] / b->inverse_frequencies[i], 1, 1e-6);
  }
}

TEST(ModelFilesTest, FolderWithOneGgufIsOpened) {
  const testing::TempFolder folder;
  EXPECT_EQ(ModelFiles::Open(folder.path()).status().code(), absl::StatusCode::kNotFound);
  std::filesystem::copy(TestData("tiny_llama.gguf"), folder.File("a.gguf"));
  EXPECT_NE(OpenOrDie(folder.path()), nullptr);
  std::filesystem::copy(TestData("tiny_llama.gguf"), folder.File("b.gguf"));
  EXPECT_EQ(ModelFiles::Open(folder.path()).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(ModelFiles::Open("/nowhere").status().code(), absl::StatusCode::kNotFound);
}

TEST(ModelFilesTest, MissingTensorAndWrongShapeAreNamed) {
  const testing::TempFolder folder;
  const auto whole = SafetensorsModel::Open(TestData("tiny_llama"));
  ASSERT_TRUE(whole.ok());
  std::filesystem::copy(TestData("tiny_llama/config.json"), folder.File("config.json"));
  const auto open_with = [&](const auto& change) {
    std::vector<TensorView> tensors;
    for (const TensorView* tensor : (*whole)->tensors()) {
      TensorView copy = *tensor;
      if (change(copy)) tensors.push_back(copy);
    }
    EXPECT_TRUE(WriteSafetensors(folder.File("model.safetensors"), tensors, {}).ok());
    return ModelFiles::Open(folder.path()).status();
  };
  EXPECT_TRUE(open_with([](TensorView&) { return true; }).ok());
  const absl::Status missing = open_with(
      [](const TensorView& tensor) { return tensor.name != "model.layers.1.mlp.up_proj.weight"; });
  EXPECT_EQ(missing.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(missing.message()), HasSubstr("model.layers.1.mlp.up_proj.weight"));
  const absl::Status turned = open_with([](TensorView& tensor) {
    if (tensor.name == "model.layers.0.self_attn.k_proj.weight") tensor.shape = {32, 16};
    return true;
  });
  EXPECT_THAT(std::string(turned.message()),
              AllOf(HasSubstr("model.layers.0.self_attn.k_proj.weight"), HasSubstr("F16 [32, 16]"),
                    HasSubstr("[16, 32]"), HasSubstr("at byte")));
  const absl::Status integers = open_with([](TensorView& tensor) {
    if (tensor.name == "model.norm.weight") tensor.type = TensorType::kI32;
    return true;
  });
  EXPECT_EQ(integers.code(), absl::StatusCode::kUnimplemented);
  const absl::Status bias = open_with([](TensorView& tensor) {
    if (tensor.name == "lm_head.weight") tensor.name = "model.layers.0.self_attn.q_proj.bias";
    return true;
  });
  EXPECT_FALSE(bias.ok());
}

TEST(ModelFilesTest, TensorsOfAnUnknownNameAreNotFound) {
  const auto model = OpenOrDie(TestData("tiny_llama"));
  EXPECT_EQ(model->Find("model.layers.9.mlp.up_proj.weight").status().code(),
            absl::StatusCode::kNotFound);
  EXPECT_FALSE(model->Has("lm_head.bias"));
}

TEST(ModelFilesTest, FingerprintKnowsACopyFromAnEdit) {
  const std::string original = OpenOrDie(TestData("tiny_llama"))->fingerprint();
  EXPECT_EQ(original.size(), 64u);
  EXPECT_NE(original, OpenOrDie(TestData("tiny_llama.gguf"))->fingerprint());
  // One file instead of two shards, and another tool's remarks in the config: the same model.
  const testing::TempFolder folder;
  const auto whole = SafetensorsModel::Open(TestData("tiny_llama"));
  std::vector<TensorView> tensors;
  for (const TensorView* tensor : (*whole)->tensors()) tensors.push_back(*tensor);
  ASSERT_TRUE(WriteSafetensors(folder.File("model.safetensors"), tensors, {}).ok());
  std::string config;
  for (const uint8_t byte : ReadBytes(TestData("tiny_llama/config.json"))) {
    config.push_back(static_cast<char>(byte));
  }
  config.replace(config.find('{'), 1, R"({"transformers_version": "9", "_name_or_path": "x",)");
  WriteBytes(folder.File("config.json"), config);
  EXPECT_EQ(OpenOrDie(folder.path())->fingerprint(), original);
  // One number changed.
  for (TensorView& tensor : tensors) {
    if (tensor.name != "model.norm.weight") continue;
    std::vector<uint8_t> changed(tensor.data, tensor.data + tensor.size_bytes);
    changed[5] ^= 1;
    tensor.data = changed.data();
    ASSERT_TRUE(WriteSafetensors(folder.File("model.safetensors"), tensors, {}).ok());
  }
  EXPECT_NE(OpenOrDie(folder.path())->fingerprint(), original);
}

TEST(HuggingFaceNameTest, NamesAreTranslated) {
  EXPECT_EQ(HuggingFaceName("token_embd.weight"), "model.embed_tokens.weight");
  EXPECT_EQ(HuggingFaceName("output_norm.weight"), "model.norm.weight");
  EXPECT_EQ(HuggingFaceName("output.weight"), "lm_head.weight");
  EXPECT_EQ(HuggingFaceName("blk.12.attn_output.bias"), "model.layers.12.self_attn.o_proj.bias");
  EXPECT_EQ(HuggingFaceName("blk.0.ffn_norm.weight"),
            "model.layers.0.post_attention_layernorm.weight");
  for (const char* unknown :
       {"", "rope_freqs.weight", "blk.0", "blk..attn_q.weight", "blk.0.weight",
        "blk.01.attn_q.weight", "blk.-1.attn_q.weight", "blk.x.attn_q.weight", "blk.0.attn_q.scale",
        "blk.0.attn_q_norm.weight"}) {
    EXPECT_EQ(HuggingFaceName(unknown), "") << unknown;
  }
}

}  // namespace
}  // namespace mneme::weights
