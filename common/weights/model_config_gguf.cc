// ModelConfig from GGUF metadata.
#include <algorithm>
#include <cmath>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "common/status/annotate.h"
#include "common/status/status_macros.h"
#include "common/weights/dequantize.h"
#include "common/weights/model_config.h"

namespace mneme::weights {

namespace {

// Reads the keys of one architecture: "llama.block_count" and so on.
class Keys {
 public:
  Keys(const GgufFile& file, absl::string_view architecture)
      : file_(file), prefix_(absl::StrCat(architecture, ".")) {}

  bool Has(absl::string_view key) const { return file_.Has(absl::StrCat(prefix_, key)); }
  absl::StatusOr<int64_t> Int(absl::string_view key) const {
    return file_.GetInt(absl::StrCat(prefix_, key));
  }
  absl::StatusOr<int64_t> IntOr(absl::string_view key, int64_t missing) const {
    return file_.GetIntOr(absl::StrCat(prefix_, key), missing);
  }
  absl::StatusOr<double> FloatOr(absl::string_view key, double missing) const {
    return file_.GetFloatOr(absl::StrCat(prefix_, key), missing);
  }
  absl::StatusOr<absl::string_view> StringOr(absl::string_view key,
                                             absl::string_view missing) const {
    return file_.GetStringOr(absl::StrCat(prefix_, key), missing);
  }

 private:
  const GgufFile& file_;
  const std::string prefix_;
};

absl::Status ReadRope(const GgufFile& file, const Keys& keys, ModelConfig& model) {
  ASSIGN_OR_RETURN(model.rope_theta, keys.FloatOr("rope.freq_base", 10000));
  ASSIGN_OR_RETURN(const int64_t rope_size, keys.IntOr("rope.dimension_count", model.head_size));
  if (rope_size != model.head_size) {
    return absl::UnimplementedError(
        absl::StrCat("partial rotary embedding is not supported: ", rope_size, " of ",
                     model.head_size, " dimensions in ", file.path()));
  }
  RopeScaling& scaling = model.rope_scaling;
  // Files from before the scaling keys hold only a linear scale.
  ASSIGN_OR_RETURN(const double old_scale, keys.FloatOr("rope.scale_linear", 1));
  ASSIGN_OR_RETURN(scaling.factor, keys.FloatOr("rope.scaling.factor", old_scale));
  const bool scaled = scaling.factor != 0 && scaling.factor != 1;
  ASSIGN_OR_RETURN(const absl::string_view type,
                   keys.StringOr("rope.scaling.type", scaled ? "linear" : "none"));
  if (!scaled) scaling.factor = 1;
  if (type == "linear") {
    scaling.kind = scaled ? RopeScalingKind::kLinear : RopeScalingKind::kNone;
  } else if (type == "yarn") {
    scaling.kind = RopeScalingKind::kYarn;
    ASSIGN_OR_RETURN(scaling.original_context_length,
                     keys.IntOr("rope.scaling.original_context_length", model.context_length));
    ASSIGN_OR_RETURN(scaling.beta_fast, keys.FloatOr("rope.scaling.yarn_beta_fast", 32));
    ASSIGN_OR_RETURN(scaling.beta_slow, keys.FloatOr("rope.scaling.yarn_beta_slow", 1));
    // llama.cpp multiplies this factor onto the one that follows from the scaling factor.
    ASSIGN_OR_RETURN(const double extra, keys.FloatOr("rope.scaling.attn_factor", 1));
    if (extra != 1) {
      const double derived = scaling.factor <= 1 ? 1 : 0.1 * std::log(scaling.factor) + 1;
      scaling.attention_factor = extra * derived;
    }
  } else if (type != "none") {
    return absl::UnimplementedError(
        absl::StrCat("rope scaling is not supported in GGUF (none, linear, yarn are): '", type,
                     "' in ", file.path()));
  }
  if (const TensorView* factors = file.FindTensor("rope_freqs.weight"); factors != nullptr) {
    if (factors->num_elements() != model.head_size / 2) {
      return absl::InvalidArgumentError(absl::StrCat(
          "tensor rope_freqs.weight has not one factor per pair of the head size ", model.head_size,
          ": ", factors->Describe(), " at byte ", factors->file_offset, " of ", file.path()));
    }
    scaling.frequency_factors.resize(static_cast<size_t>(factors->num_elements()));
    RETURN_IF_ERROR(Dequantize(*factors, absl::MakeSpan(scaling.frequency_factors)));
    for (const float factor : scaling.frequency_factors) {
      if (!(factor > 0) || !std::isfinite(factor)) {
        return absl::InvalidArgumentError(
            absl::StrCat("tensor rope_freqs.weight holds a factor that is not positive: ", factor,
                         " in ", file.path()));
      }
    }
  }
  return absl::OkStatus();
}

absl::Status ReadTokenIds(const GgufFile& file, ModelConfig& model) {
  const auto add = [&model](int64_t id) {
    std::vector<int64_t>& ids = model.eos_token_ids;
    if (id >= 0 && std::find(ids.begin(), ids.end(), id) == ids.end()) ids.push_back(id);
  };
  for (const absl::string_view key : {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id",
                                      "tokenizer.ggml.eom_token_id"}) {
    ASSIGN_OR_RETURN(const int64_t id, file.GetIntOr(key, -1));
    add(id);
  }
  ASSIGN_OR_RETURN(const int64_t bos, file.GetIntOr("tokenizer.ggml.bos_token_id", -1));
  if (bos >= 0) model.bos_token_id = bos;
  ASSIGN_OR_RETURN(const int64_t pad, file.GetIntOr("tokenizer.ggml.padding_token_id", -1));
  if (pad >= 0) model.pad_token_id = pad;
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ModelConfig> ReadGgufConfig(const GgufFile& file) {
  ASSIGN_OR_RETURN(const absl::string_view architecture, file.GetString("general.architecture"));
  ModelConfig model;
  if (architecture == "llama") {
    model.architecture = Architecture::kLlama;
  } else if (architecture == "qwen2") {
    model.architecture = Architecture::kQwen2;
  } else {
    return absl::UnimplementedError(
        absl::StrCat("GGUF architecture is not supported (llama, which Mistral, Falcon3 and SmolLM "
                     "files use too, and qwen2 are): '",
                     absl::Utf8SafeCEscape(architecture.substr(0, 100)), "' in ", file.path()));
  }
  const Keys keys(file, architecture);
  ASSIGN_OR_RETURN(const int64_t num_experts, keys.IntOr("expert_count", 0));
  if (num_experts > 0) {
    return absl::UnimplementedError(
        absl::StrCat("mixture-of-experts models are not supported: ", file.path()));
  }
  ASSIGN_OR_RETURN(const absl::string_view name, file.GetStringOr("general.name", ""));
  model.name = std::string(name);
  ASSIGN_OR_RETURN(model.hidden_size, keys.Int("embedding_length"));
  ASSIGN_OR_RETURN(model.intermediate_size, keys.Int("feed_forward_length"));
  ASSIGN_OR_RETURN(model.num_layers, keys.Int("block_count"));
  ASSIGN_OR_RETURN(model.num_heads, keys.Int("attention.head_count"));
  ASSIGN_OR_RETURN(model.num_kv_heads, keys.IntOr("attention.head_count_kv", model.num_heads));
  const bool divides = model.num_heads > 0 && model.hidden_size % model.num_heads == 0;
  if (!divides && !keys.Has("attention.key_length")) {
    return absl::InvalidArgumentError(
        absl::StrCat("GGUF embedding length is no multiple of the head count: ", model.hidden_size,
                     " and ", model.num_heads, " in ", file.path()));
  }
  const int64_t derived = divides ? model.hidden_size / model.num_heads : 0;
  ASSIGN_OR_RETURN(model.head_size, keys.IntOr("attention.key_length", derived));
  ASSIGN_OR_RETURN(const int64_t value_size, keys.IntOr("attention.value_length", model.head_size));
  if (value_size != model.head_size) {
    return absl::UnimplementedError(
        absl::StrCat("value heads of another size than key heads are not supported: ", value_size,
                     " and ", model.head_size, " in ", file.path()));
  }
  const TensorView* embedding = file.FindTensor("token_embd.weight");
  if (embedding == nullptr || embedding->shape.size() != 2) {
    return absl::InvalidArgumentError(absl::StrCat(
        "GGUF file has no matrix token_embd.weight: is it a language model? ", file.path()));
  }
  model.vocab_size = embedding->shape[0];
  ASSIGN_OR_RETURN(model.context_length, keys.Int("context_length"));
  ASSIGN_OR_RETURN(model.rms_norm_eps, keys.FloatOr("attention.layer_norm_rms_epsilon", 1e-6));
  model.tie_word_embeddings = file.FindTensor("output.weight") == nullptr;
  model.qkv_bias = file.FindTensor("blk.0.attn_q.bias") != nullptr;
  model.output_bias = file.FindTensor("blk.0.attn_output.bias") != nullptr;
  model.mlp_bias = file.FindTensor("blk.0.ffn_gate.bias") != nullptr;
  RETURN_IF_ERROR(status::Annotate(CheckConfig(model), file.path()));
  ASSIGN_OR_RETURN(const int64_t window, keys.IntOr("attention.sliding_window", 0));
  model.sliding_windows.assign(static_cast<size_t>(model.num_layers), window);
  RETURN_IF_ERROR(ReadRope(file, keys, model));
  RETURN_IF_ERROR(ReadTokenIds(file, model));
  RETURN_IF_ERROR(status::Annotate(CheckConfig(model), file.path()));
  return model;
}

}  // namespace mneme::weights
