// ModelConfig from config.json and generation_config.json.
#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status/annotate.h"
#include "common/status/status_macros.h"
#include "common/weights/model_config.h"
#include "common/weights/strict_json.h"

namespace mneme::weights {
namespace {

using nlohmann::json;

constexpr uint64_t kMaxConfigBytes = 16 << 20;
constexpr int kMaxConfigDepth = 32;

// What transformers assumes for keys that config.json leaves out.
struct Defaults {
  Architecture architecture;
  int64_t num_kv_heads;  // 0: as many as attention heads
  int64_t context_length;
  int64_t bos_token_id;  // -1: none
  int64_t eos_token_id;
};

constexpr Defaults kLlamaDefaults{Architecture::kLlama, 0, 2048, 1, 2};
constexpr Defaults kMistralDefaults{Architecture::kMistral, 8, 131072, 1, 2};
constexpr Defaults kQwen2Defaults{Architecture::kQwen2, 32, 32768, -1, -1};
constexpr int64_t kDefaultSlidingWindow = 4096;
constexpr int64_t kDefaultMaxWindowLayers = 28;

absl::Status WrongType(absl::string_view key, absl::string_view asked, const json& value) {
  return absl::InvalidArgumentError(
      absl::StrCat("config.json: ", key, " must be ", asked, " and is ", value.type_name()));
}

// The member, or null where it is missing or null.
const json* Get(const json& object, const char* key) {
  const auto found = object.find(key);
  return found == object.end() || found->is_null() ? nullptr : &*found;
}

absl::StatusOr<int64_t> IntValue(const char* key, const json& value) {
  // Some files write whole numbers as 32768.0.
  if (value.is_number_float()) {
    const double number = value.get<double>();
    if (number >= -9e15 && number <= 9e15 &&
        number == static_cast<double>(static_cast<int64_t>(number))) {
      return static_cast<int64_t>(number);
    }
  }
  if (!value.is_number_integer() ||
      (value.is_number_unsigned() && value.get<uint64_t>() > static_cast<uint64_t>(INT64_MAX))) {
    return WrongType(key, "a whole number below 2^63", value);
  }
  return value.get<int64_t>();
}

absl::StatusOr<int64_t> IntOr(const json& object, const char* key, int64_t missing) {
  const json* value = Get(object, key);
  return value == nullptr ? missing : IntValue(key, *value);
}

absl::StatusOr<int64_t> Int(const json& object, const char* key) {
  const json* value = Get(object, key);
  if (value == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat("config.json: key is missing: ", key));
  }
  return IntValue(key, *value);
}

absl::StatusOr<double> FloatOr(const json& object, const char* key, double missing) {
  const json* value = Get(object, key);
  if (value == nullptr) return missing;
  if (!value->is_number()) return WrongType(key, "a number", *value);
  return value->get<double>();
}

absl::StatusOr<bool> BoolOr(const json& object, const char* key, bool missing) {
  const json* value = Get(object, key);
  if (value == nullptr) return missing;
  if (!value->is_boolean()) return WrongType(key, "true or false", *value);
  return value->get<bool>();
}

absl::StatusOr<std::string> StringOr(const json& object, const char* key, const char* missing) {
  const json* value = Get(object, key);
  if (value == nullptr) return std::string(missing);
  if (!value->is_string()) return WrongType(key, "text", *value);
  return value->get<std::string>();
}

// One token id or a list of them; ids below 0 mean "none" in older files.
absl::StatusOr<std::vector<int64_t>> TokenIds(const json& object, const char* key) {
  std::vector<int64_t> ids;
  const json* value = Get(object, key);
  if (value == nullptr) return ids;
  const json list = value->is_array() ? *value : json::array({*value});
  for (const json& item : list) {
    ASSIGN_OR_RETURN(const int64_t id, IntValue(key, item));
    if (id >= 0) ids.push_back(id);
  }
  return ids;
}

absl::StatusOr<std::optional<int64_t>> TokenId(const json& object, const char* key,
                                               int64_t missing) {
  if (!object.contains(key)) {
    return missing < 0 ? std::nullopt : std::optional<int64_t>(missing);
  }
  ASSIGN_OR_RETURN(const std::vector<int64_t> ids, TokenIds(object, key));
  return ids.empty() ? std::nullopt : std::optional<int64_t>(ids[0]);
}

absl::StatusOr<Defaults> FindDefaults(const json& config) {
  ASSIGN_OR_RETURN(const std::string type, StringOr(config, "model_type", ""));
  for (const Defaults& defaults : {kLlamaDefaults, kMistralDefaults, kQwen2Defaults}) {
    if (type == ArchitectureName(defaults.architecture)) return defaults;
  }
  return absl::UnimplementedError(
      absl::StrCat("model type is not supported (llama, mistral and qwen2 are): '", type, "'"));
}

absl::Status RefuseUnsupported(const json& config) {
  ASSIGN_OR_RETURN(const std::string activation, StringOr(config, "hidden_act", "silu"));
  if (activation != "silu" && activation != "swish") {
    return absl::UnimplementedError(
        absl::StrCat("activation function is not supported (silu is): '", activation, "'"));
  }
  if (Get(config, "quantization_config") != nullptr) {
    return absl::UnimplementedError(
        "quantised Hugging Face weights are not supported (quantization_config in config.json): "
        "take the unquantised model or a GGUF file");
  }
  return absl::OkStatus();
}

absl::Status ReadRope(const json& config, ModelConfig& model) {
  // Older files hold rope_theta beside rope_scaling, newer ones all in rope_parameters.
  const json* parameters = Get(config, "rope_scaling");
  if (parameters == nullptr || parameters->empty()) parameters = Get(config, "rope_parameters");
  const json empty = json::object();
  if (parameters == nullptr) parameters = &empty;
  if (!parameters->is_object()) return WrongType("rope parameters", "an object", *parameters);
  const json& rope = *parameters;
  ASSIGN_OR_RETURN(const double outer_theta, FloatOr(config, "rope_theta", 10000));
  ASSIGN_OR_RETURN(model.rope_theta, FloatOr(rope, "rope_theta", outer_theta));
  ASSIGN_OR_RETURN(const double outer_part, FloatOr(config, "partial_rotary_factor", 1));
  ASSIGN_OR_RETURN(const double part, FloatOr(rope, "partial_rotary_factor", outer_part));
  if (part != 1) {
    return absl::UnimplementedError(
        absl::StrCat("partial rotary embedding is not supported: partial_rotary_factor ", part));
  }

  RopeScaling& scaling = model.rope_scaling;
  ASSIGN_OR_RETURN(const std::string old_type, StringOr(rope, "type", "default"));
  ASSIGN_OR_RETURN(const std::string type, StringOr(rope, "rope_type", old_type.c_str()));
  if (type == "default") return absl::OkStatus();
  if (type == "linear") {
    scaling.kind = RopeScalingKind::kLinear;
  } else if (type == "dynamic") {
    scaling.kind = RopeScalingKind::kDynamicNtk;
  } else if (type == "yarn") {
    scaling.kind = model.beacon.has_value() ? RopeScalingKind::kBeaconYarn : RopeScalingKind::kYarn;
  } else if (type == "yarn-t") {
    scaling.kind = RopeScalingKind::kYarnT;
  } else if (type == "yarn-t-logn") {
    scaling.kind = RopeScalingKind::kYarnTLogN;
  } else if (type == "llama3") {
    scaling.kind = RopeScalingKind::kLlama3;
  } else {
    return absl::UnimplementedError(
        absl::StrCat("rope type is not supported (default, linear, dynamic, yarn, yarn-t, "
                     "yarn-t-logn, llama3 are): "
                     "'",
                     type, "'"));
  }
  ASSIGN_OR_RETURN(const int64_t inner_context,
                   IntOr(rope, "original_max_position_embeddings", model.context_length));
  ASSIGN_OR_RETURN(scaling.original_context_length,
                   IntOr(config, "original_max_position_embeddings", inner_context));
  if (Get(rope, "factor") != nullptr) {
    ASSIGN_OR_RETURN(scaling.factor, FloatOr(rope, "factor", 1));
  } else if (scaling.kind == RopeScalingKind::kYarn && scaling.original_context_length > 0) {
    scaling.factor = static_cast<double>(model.context_length) /
                     static_cast<double>(scaling.original_context_length);
  } else {
    return absl::InvalidArgumentError(
        absl::StrCat("config.json: rope type needs a factor: '", type, "'"));
  }
  if (Get(rope, "attention_factor") != nullptr) {
    ASSIGN_OR_RETURN(scaling.attention_factor, FloatOr(rope, "attention_factor", 1));
  }
  // A beta of 0 counts as not given, as in transformers.
  ASSIGN_OR_RETURN(scaling.beta_fast, FloatOr(rope, "beta_fast", 32));
  if (scaling.beta_fast == 0) scaling.beta_fast = 32;
  ASSIGN_OR_RETURN(scaling.beta_slow, FloatOr(rope, "beta_slow", 1));
  if (scaling.beta_slow == 0) scaling.beta_slow = 1;
  ASSIGN_OR_RETURN(scaling.mscale, FloatOr(rope, "mscale", 0));
  ASSIGN_OR_RETURN(scaling.mscale_all_dim, FloatOr(rope, "mscale_all_dim", 0));
  ASSIGN_OR_RETURN(scaling.truncate, BoolOr(rope, "truncate", true));
  ASSIGN_OR_RETURN(scaling.low_freq_factor, FloatOr(rope, "low_freq_factor", 1));
  ASSIGN_OR_RETURN(scaling.high_freq_factor, FloatOr(rope, "high_freq_factor", 4));
  return absl::OkStatus();
}

absl::Status ReadSlidingWindows(const json& config, ModelConfig& model) {
  model.sliding_windows.assign(static_cast<size_t>(model.num_layers), 0);
  if (model.architecture == Architecture::kLlama) return absl::OkStatus();
  // Null means none; a missing key means the default.
  int64_t window = kDefaultSlidingWindow;
  if (config.contains("sliding_window")) {
    ASSIGN_OR_RETURN(window, IntOr(config, "sliding_window", 0));
  }
  if (model.architecture == Architecture::kMistral) {
    std::fill(model.sliding_windows.begin(), model.sliding_windows.end(), window);
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(const bool use, BoolOr(config, "use_sliding_window", false));
  if (!use) window = 0;
  if (const json* types = Get(config, "layer_types"); types != nullptr) {
    if (!types->is_array() || types->size() != model.sliding_windows.size()) {
      return WrongType("layer_types", "a list with one entry per layer", *types);
    }
    for (size_t i = 0; i < types->size(); ++i) {
      if ((*types)[i] == "sliding_attention") {
        model.sliding_windows[i] = window;
      } else if ((*types)[i] != "full_attention") {
        return absl::UnimplementedError(absl::StrCat(
            "layer type is not supported (full_attention and sliding_attention are): layer ", i));
      }
    }
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(const int64_t first,
                   IntOr(config, "max_window_layers", kDefaultMaxWindowLayers));
  for (int64_t i = std::max<int64_t>(first, 0); i < model.num_layers; ++i) {
    model.sliding_windows[static_cast<size_t>(i)] = window;
  }
  return absl::OkStatus();
}

absl::Status ReadTokenIds(const json& config, const json& generation, const Defaults& defaults,
                          ModelConfig& model) {
  ASSIGN_OR_RETURN(model.bos_token_id, TokenId(config, "bos_token_id", defaults.bos_token_id));
  ASSIGN_OR_RETURN(model.pad_token_id, TokenId(config, "pad_token_id", -1));
  ASSIGN_OR_RETURN(model.eos_token_ids, TokenIds(generation, "eos_token_id"));
  if (!model.eos_token_ids.empty()) return absl::OkStatus();
  ASSIGN_OR_RETURN(model.eos_token_ids, TokenIds(config, "eos_token_id"));
  if (!config.contains("eos_token_id") && defaults.eos_token_id >= 0) {
    model.eos_token_ids = {defaults.eos_token_id};
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ModelConfig> ParseHuggingFaceConfig(absl::string_view config_text,
                                                   absl::string_view generation_config) {
  absl::StatusOr<json> parsed = ParseStrictJson(config_text, kMaxConfigDepth);
  if (!parsed.ok()) return status::Annotate(parsed.status(), "config.json");
  const json config = *std::move(parsed);
  if (!config.is_object()) return absl::InvalidArgumentError("config.json: not a JSON object");
  json generation = json::object();
  if (!generation_config.empty()) {
    parsed = ParseStrictJson(generation_config, kMaxConfigDepth);
    if (!parsed.ok()) return status::Annotate(parsed.status(), "generation_config.json");
    generation = *std::move(parsed);
    if (!generation.is_object()) {
      return absl::InvalidArgumentError("generation_config.json: not a JSON object");
    }
  }

  ASSIGN_OR_RETURN(const Defaults defaults, FindDefaults(config));
  RETURN_IF_ERROR(RefuseUnsupported(config));
  ModelConfig model;
  model.architecture = defaults.architecture;
  ASSIGN_OR_RETURN(model.name, StringOr(config, "_name_or_path", ""));
  ASSIGN_OR_RETURN(model.hidden_size, Int(config, "hidden_size"));
  ASSIGN_OR_RETURN(model.intermediate_size, Int(config, "intermediate_size"));
  ASSIGN_OR_RETURN(model.num_layers, Int(config, "num_hidden_layers"));
  ASSIGN_OR_RETURN(model.num_heads, Int(config, "num_attention_heads"));
  // Null means as many as attention heads; a missing key means the default.
  const int64_t missing_kv_heads =
      config.contains("num_key_value_heads") ? 0 : defaults.num_kv_heads;
  ASSIGN_OR_RETURN(model.num_kv_heads, IntOr(config, "num_key_value_heads", missing_kv_heads));
  if (model.num_kv_heads == 0) model.num_kv_heads = model.num_heads;
  if (Get(config, "head_dim") == nullptr &&
      (model.num_heads < 1 || model.hidden_size % model.num_heads != 0)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "config.json: hidden_size is no multiple of num_attention_heads: ", model.hidden_size,
        " and ", model.num_heads));
  }
  ASSIGN_OR_RETURN(
      model.head_size,
      IntOr(config, "head_dim", model.num_heads < 1 ? 0 : model.hidden_size / model.num_heads));
  ASSIGN_OR_RETURN(model.vocab_size, Int(config, "vocab_size"));
  ASSIGN_OR_RETURN(model.context_length,
                   IntOr(config, "max_position_embeddings", defaults.context_length));
  ASSIGN_OR_RETURN(model.rms_norm_eps, FloatOr(config, "rms_norm_eps", 1e-6));
  ASSIGN_OR_RETURN(model.tie_word_embeddings, BoolOr(config, "tie_word_embeddings", false));
  if (model.architecture == Architecture::kLlama) {
    ASSIGN_OR_RETURN(model.qkv_bias, BoolOr(config, "attention_bias", false));
    model.output_bias = model.qkv_bias;
    ASSIGN_OR_RETURN(model.mlp_bias, BoolOr(config, "mlp_bias", false));
  } else {
    model.qkv_bias = model.architecture == Architecture::kQwen2;
  }
  ASSIGN_OR_RETURN(model.beacon, ParseBeaconConfig(config_text));
  RETURN_IF_ERROR(ReadRope(config, model));
  RETURN_IF_ERROR(ReadTokenIds(config, generation, defaults, model));
  RETURN_IF_ERROR(CheckConfig(model));
  RETURN_IF_ERROR(ReadSlidingWindows(config, model));
  RETURN_IF_ERROR(CheckConfig(model));
  return model;
}

absl::StatusOr<ModelConfig> ReadHuggingFaceConfig(absl::string_view folder) {
  const std::string root(folder);
  ASSIGN_OR_RETURN(const std::string config,
                   ReadTextFile(absl::StrCat(root, "/config.json"), kMaxConfigBytes));
  std::string generation;
  const std::string generation_path = absl::StrCat(root, "/generation_config.json");
  std::error_code ignored;
  if (std::filesystem::exists(generation_path, ignored)) {
    ASSIGN_OR_RETURN(generation, ReadTextFile(generation_path, kMaxConfigBytes));
  }
  absl::StatusOr<ModelConfig> model = ParseHuggingFaceConfig(config, generation);
  if (!model.ok()) return status::Annotate(model.status(), root);
  return model;
}

}  // namespace mneme::weights
