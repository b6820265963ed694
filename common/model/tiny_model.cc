#include "common/model/tiny_model.h"

#include <cmath>
#include <deque>
#include <fstream>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/status/status_macros.h"
#include "common/weights/safetensors.h"
#include "common/weights/tensor_view.h"

namespace mneme::model {
namespace {

// Uniform numbers in [-1, 1) that depend on the seed only (SplitMix64; Steele et al. 2014).
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  float Next() {
    state_ += 0x9E3779B97F4A7C15u;
    uint64_t z = state_;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    z ^= z >> 31;
    return static_cast<float>(z >> 40) / static_cast<float>(1 << 23) - 1.0f;
  }

 private:
  uint64_t state_;
};

class Writer {
 public:
  explicit Writer(const TinyModel& options) : options_(options), random_(options.seed) {}

  void Matrix(const std::string& name, int64_t rows, int64_t width) {
    Add(name, {rows, width}, 0, std::sqrt(3.0f / static_cast<float>(width)));
  }
  void Norm(const std::string& name) { Add(name, {options_.hidden_size}, 1, 0.3f); }
  void Bias(const std::string& name, int64_t size) { Add(name, {size}, 0, 0.5f); }

  absl::Status Write(const std::string& path) const {
    return weights::WriteSafetensors(path, views_, {{"format", "pt"}});
  }

 private:
  void Add(const std::string& name, std::vector<int64_t> shape, float middle, float spread) {
    if (name == options_.missing_tensor) return;
    if (name == options_.short_tensor) --shape[0];
    std::vector<float>& values = values_.emplace_back(*weights::CountElements(shape));
    for (float& value : values) value = middle + spread * random_.Next();
    views_.push_back({.name = name,
                      .type = weights::TensorType::kF32,
                      .shape = std::move(shape),
                      .data = reinterpret_cast<const uint8_t*>(values.data()),
                      .size_bytes = values.size() * sizeof(float)});
  }

  const TinyModel& options_;
  Random random_;
  std::deque<std::vector<float>> values_;
  std::vector<weights::TensorView> views_;
};

}  // namespace

absl::Status WriteTinyModel(absl::string_view folder, const TinyModel& options) {
  nlohmann::json config = {{"model_type", options.model_type},
                           {"vocab_size", options.vocab_size},
                           {"hidden_size", options.hidden_size},
                           {"intermediate_size", options.intermediate_size},
                           {"num_hidden_layers", options.num_layers},
                           {"num_attention_heads", options.num_heads},
                           {"num_key_value_heads", options.num_kv_heads},
                           {"head_dim", options.head_size},
                           {"max_position_embeddings", options.context_length},
                           {"rms_norm_eps", 1e-5},
                           {"rope_theta", 10000.0},
                           {"hidden_act", "silu"},
                           {"bos_token_id", 1},
                           {"eos_token_id", 2},
                           {"tie_word_embeddings", options.tie_word_embeddings}};
  config["sliding_window"] =
      options.sliding_window == 0 ? nlohmann::json() : nlohmann::json(options.sliding_window);
  const std::string config_path = absl::StrCat(folder, "/config.json");
  std::ofstream file(config_path);
  file << config.dump(1) << "\n";
  file.close();
  if (!file) return absl::NotFoundError(absl::StrCat("cannot write ", config_path));

  Writer writer(options);
  const int64_t q_width = options.num_heads * options.head_size;
  const int64_t kv_width = options.num_kv_heads * options.head_size;
  writer.Matrix("model.embed_tokens.weight", options.vocab_size, options.hidden_size);
  for (int64_t i = 0; i < options.num_layers; ++i) {
    const std::string layer = absl::StrCat("model.layers.", i, ".");
    writer.Norm(layer + "input_layernorm.weight");
    writer.Matrix(layer + "self_attn.q_proj.weight", q_width, options.hidden_size);
    writer.Matrix(layer + "self_attn.k_proj.weight", kv_width, options.hidden_size);
    writer.Matrix(layer + "self_attn.v_proj.weight", kv_width, options.hidden_size);
    if (options.model_type == "qwen2") {
      writer.Bias(layer + "self_attn.q_proj.bias", q_width);
      writer.Bias(layer + "self_attn.k_proj.bias", kv_width);
      writer.Bias(layer + "self_attn.v_proj.bias", kv_width);
    }
    writer.Matrix(layer + "self_attn.o_proj.weight", options.hidden_size, q_width);
    writer.Norm(layer + "post_attention_layernorm.weight");
    writer.Matrix(layer + "mlp.gate_proj.weight", options.intermediate_size, options.hidden_size);
    writer.Matrix(layer + "mlp.up_proj.weight", options.intermediate_size, options.hidden_size);
    writer.Matrix(layer + "mlp.down_proj.weight", options.hidden_size, options.intermediate_size);
  }
  writer.Norm("model.norm.weight");
  if (!options.tie_word_embeddings) {
    writer.Matrix("lm_head.weight", options.vocab_size, options.hidden_size);
  }
  return writer.Write(absl::StrCat(folder, "/model.safetensors"));
}

}  // namespace mneme::model
