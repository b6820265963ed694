#include "common/weights/model_config.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"

namespace mneme::weights {

absl::string_view ArchitectureName(Architecture architecture) {
  switch (architecture) {
    case Architecture::kLlama:
      return "llama";
    case Architecture::kMistral:
      return "mistral";
    case Architecture::kQwen2:
      return "qwen2";
  }
  return "";
}

absl::string_view RopeScalingName(RopeScalingKind kind) {
  switch (kind) {
    case RopeScalingKind::kNone:
      return "none";
    case RopeScalingKind::kLinear:
      return "linear";
    case RopeScalingKind::kDynamicNtk:
      return "dynamic";
    case RopeScalingKind::kYarn:
      return "yarn";
    case RopeScalingKind::kLlama3:
      return "llama3";
    case RopeScalingKind::kBeaconYarn:
      return "beacon yarn";
    case RopeScalingKind::kYarnT:
      return "yarn-t";
    case RopeScalingKind::kYarnTLogN:
      return "yarn-t-logn";
  }
  return "";
}

bool ModelConfig::has_sliding_window() const {
  return std::any_of(sliding_windows.begin(), sliding_windows.end(),
                     [](int64_t window) { return window > 0; });
}

absl::Status CheckConfig(const ModelConfig& config) {
  struct Bound {
    absl::string_view what;
    int64_t value;
    int64_t min;
    int64_t max;
  };
  for (const Bound& bound : {
           Bound{"hidden size", config.hidden_size, 1, 1 << 20},
           Bound{"intermediate size", config.intermediate_size, 1, 1 << 22},
           Bound{"number of layers", config.num_layers, 1, 4096},
           Bound{"number of attention heads", config.num_heads, 1, 4096},
           Bound{"number of key-value heads", config.num_kv_heads, 1, 4096},
           Bound{"head size", config.head_size, 2, 4096},
           Bound{"vocabulary size", config.vocab_size, 1, 1 << 26},
           Bound{"context length", config.context_length, 1, int64_t{1} << 40},
       }) {
    if (bound.value < bound.min || bound.value > bound.max) {
      return absl::InvalidArgumentError(absl::StrCat("model config: ", bound.what,
                                                     " is not between ", bound.min, " and ",
                                                     bound.max, ": ", bound.value));
    }
  }
  if (config.num_heads % config.num_kv_heads != 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "model config: attention heads are no multiple of key-value heads: ", config.num_heads,
        " and ", config.num_kv_heads));
  }
  if (config.head_size % 2 != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("model config: head size is odd: ", config.head_size));
  }
  if (!(config.rms_norm_eps >= 0 && config.rms_norm_eps < 1)) {
    return absl::InvalidArgumentError(
        absl::StrCat("model config: rms_norm_eps is not in [0, 1): ", config.rms_norm_eps));
  }
  if (!(config.rope_theta > 0) || !std::isfinite(config.rope_theta)) {
    return absl::InvalidArgumentError(
        absl::StrCat("model config: rope_theta is not positive: ", config.rope_theta));
  }
  for (const int64_t window : config.sliding_windows) {
    if (window < 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("model config: sliding window is negative: ", window));
    }
  }
  return absl::OkStatus();
}

}  // namespace mneme::weights
