#include "common/weights/rope.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

#include "absl/strings/str_cat.h"
#include "common/status/status_macros.h"

namespace mneme::weights {
namespace {

// The reference computes in float32 tensors but with double scalars; where a float is cast below, a
// tensor rounds there.

// base^(2i/D) for every pair. [D/2]
std::vector<float> Powers(double base, int64_t head_size) {
  std::vector<float> powers;
  for (int64_t i = 0; i < head_size; i += 2) {
    const float exponent = static_cast<float>(i) / static_cast<float>(head_size);
    powers.push_back(static_cast<float>(
        std::pow(static_cast<double>(static_cast<float>(base)), static_cast<double>(exponent))));
  }
  return powers;
}

std::vector<float> Inverse(std::vector<float> powers) {
  for (float& power : powers) power = 1.0f / power;
  return powers;
}

double DynamicBase(const ModelConfig& config, int64_t num_tokens) {
  const double context = static_cast<double>(config.context_length);
  const double length = std::max(context, static_cast<double>(num_tokens));
  const double factor = config.rope_scaling.factor;
  const double size = static_cast<double>(config.head_size);
  return config.rope_theta * std::pow(factor * length / context - (factor - 1), size / (size - 2));
}

double AttentionFactor(const RopeScaling& scaling) {
  if (scaling.attention_factor.has_value()) return *scaling.attention_factor;
  const auto magnitude = [&scaling](double mscale) {
    return scaling.factor <= 1 ? 1.0 : 0.1 * mscale * std::log(scaling.factor) + 1.0;
  };
  if (scaling.mscale != 0 && scaling.mscale_all_dim != 0) {
    return magnitude(scaling.mscale) / magnitude(scaling.mscale_all_dim);
  }
  return magnitude(1);
}

std::vector<float> Yarn(const ModelConfig& config, const RopeScaling& scaling,
                        double original_context) {
  const double size = static_cast<double>(config.head_size);
  // The pair that turns `rotations` times within the original context.
  const auto correction = [&](double rotations) {
    return size * std::log(original_context / (rotations * 2 * std::numbers::pi)) /
           (2 * std::log(config.rope_theta));
  };
  double low = correction(scaling.beta_fast);
  double high = correction(scaling.beta_slow);
  if (scaling.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, size - 1);
  if (low == high) high += 0.001;  // a step instead of a division by zero
  std::vector<float> frequencies = Powers(config.rope_theta, config.head_size);
  for (size_t i = 0; i < frequencies.size(); ++i) {
    const float extrapolated = 1.0f / frequencies[i];
    const float interpolated = 1.0f / (static_cast<float>(scaling.factor) * frequencies[i]);
    const float ramp = std::clamp(
        (static_cast<float>(i) - static_cast<float>(low)) / static_cast<float>(high - low), 0.0f,
        1.0f);
    const float keep = 1.0f - ramp;
    frequencies[i] = interpolated * (1.0f - keep) + extrapolated * keep;
  }
  return frequencies;
}

bool IsBeaconYarn(RopeScalingKind kind) {
  return kind == RopeScalingKind::kBeaconYarn || kind == RopeScalingKind::kYarnT ||
         kind == RopeScalingKind::kYarnTLogN;
}

// Activation Beacon's YaRN in terms of the usual one.
RopeScaling BeaconYarn(const ModelConfig& config, int64_t num_tokens) {
  RopeScaling scaling = config.rope_scaling;
  scaling.beta_fast = 128;
  scaling.beta_slow = 2;
  scaling.truncate = true;
  if (num_tokens > FixedRopeLength(config)) {
    scaling.factor = static_cast<double>(num_tokens) / static_cast<double>(config.context_length);
  }
  const bool scales_all = scaling.kind == RopeScalingKind::kBeaconYarn && scaling.factor > 1;
  scaling.attention_factor = scales_all ? 0.07 * std::log(scaling.factor) + 1 : 1;
  return scaling;
}

void ScaleLlama3(const RopeScaling& scaling, double original_context,
                 std::vector<float>& frequencies) {
  const float context = static_cast<float>(original_context);
  const float factor = static_cast<float>(scaling.factor);
  const float low = static_cast<float>(scaling.low_freq_factor);
  const float longest_scaled = static_cast<float>(original_context / scaling.low_freq_factor);
  const float longest_kept = static_cast<float>(original_context / scaling.high_freq_factor);
  for (float& frequency : frequencies) {
    const float wavelength = static_cast<float>(2 * std::numbers::pi) / frequency;
    if (wavelength > longest_scaled) {
      frequency /= factor;
    } else if (wavelength >= longest_kept) {
      const float smooth = (context / wavelength - low) /
                           static_cast<float>(scaling.high_freq_factor - scaling.low_freq_factor);
      frequency = (1.0f - smooth) * frequency / factor + smooth * frequency;
    }
  }
}

}  // namespace

absl::StatusOr<RopeFrequencies> ComputeRope(const ModelConfig& config, int64_t num_tokens) {
  const RopeScaling& scaling = config.rope_scaling;
  const auto fail = [&scaling](absl::string_view what, double value) {
    return absl::InvalidArgumentError(absl::StrCat(
        "rotary embedding (", RopeScalingName(scaling.kind), "): ", what, ": ", value));
  };
  if (config.head_size < 2 || config.head_size % 2 != 0) {
    return fail("head size must be even and positive", static_cast<double>(config.head_size));
  }
  if (!(config.rope_theta > 0) || !std::isfinite(config.rope_theta)) {
    return fail("theta must be positive", config.rope_theta);
  }
  if (!(scaling.factor > 0) || !std::isfinite(scaling.factor)) {
    return fail("factor must be positive", scaling.factor);
  }
  const double original_context =
      static_cast<double>(scaling.original_context_length > 0 ? scaling.original_context_length
                                                              : config.context_length);
  if (!(original_context > 0)) return fail("original context must be positive", original_context);

  RopeFrequencies rope;
  std::vector<float>& frequencies = rope.inverse_frequencies;
  switch (scaling.kind) {
    case RopeScalingKind::kNone:
      frequencies = Inverse(Powers(config.rope_theta, config.head_size));
      break;
    case RopeScalingKind::kLinear:
      frequencies = Inverse(Powers(config.rope_theta, config.head_size));
      for (float& frequency : frequencies) frequency /= static_cast<float>(scaling.factor);
      break;
    case RopeScalingKind::kDynamicNtk:
      if (config.head_size < 4) {
        return fail("head size must be over 2", static_cast<double>(config.head_size));
      }
      if (scaling.factor < 1) return fail("factor must be at least 1", scaling.factor);
      frequencies = Inverse(Powers(DynamicBase(config, num_tokens), config.head_size));
      break;
    case RopeScalingKind::kYarn:
      if (config.rope_theta == 1) return fail("theta must not be 1", config.rope_theta);
      if (!(scaling.beta_fast > 0) || !(scaling.beta_slow > 0)) {
        return fail("betas must be positive", std::min(scaling.beta_fast, scaling.beta_slow));
      }
      frequencies = Yarn(config, scaling, original_context);
      rope.attention_factor = AttentionFactor(scaling);
      break;
    case RopeScalingKind::kBeaconYarn:
    case RopeScalingKind::kYarnT:
    case RopeScalingKind::kYarnTLogN: {
      if (config.rope_theta == 1) return fail("theta must not be 1", config.rope_theta);
      const RopeScaling usual = BeaconYarn(config, num_tokens);
      frequencies = Yarn(config, usual, static_cast<double>(config.context_length));
      rope.attention_factor = AttentionFactor(usual);
      break;
    }
    case RopeScalingKind::kLlama3:
      if (!(scaling.low_freq_factor > 0) || !(scaling.high_freq_factor > scaling.low_freq_factor)) {
        return fail("high_freq_factor must be over low_freq_factor, and that over 0",
                    scaling.low_freq_factor);
      }
      frequencies = Inverse(Powers(config.rope_theta, config.head_size));
      ScaleLlama3(scaling, original_context, frequencies);
      break;
  }
  if (!scaling.frequency_factors.empty()) {
    if (scaling.frequency_factors.size() != frequencies.size()) {
      return fail("one frequency factor per pair is needed, not",
                  static_cast<double>(scaling.frequency_factors.size()));
    }
    for (size_t i = 0; i < frequencies.size(); ++i) frequencies[i] /= scaling.frequency_factors[i];
  }
  for (const float frequency : frequencies) {
    if (!std::isfinite(frequency)) return fail("a frequency is not finite", frequency);
  }
  if (!std::isfinite(rope.attention_factor)) {
    return fail("the attention factor is not finite", rope.attention_factor);
  }
  return rope;
}

int64_t FixedRopeLength(const ModelConfig& config) {
  const RopeScaling& scaling = config.rope_scaling;
  if (scaling.kind == RopeScalingKind::kDynamicNtk) return config.context_length;
  if (!IsBeaconYarn(scaling.kind)) return std::numeric_limits<int64_t>::max();
  const double scaled = std::ceil(static_cast<double>(config.context_length) * scaling.factor);
  return scaled < 9e18 ? static_cast<int64_t>(scaled) : std::numeric_limits<int64_t>::max();
}

double QueryScale(const ModelConfig& config, int64_t position) {
  if (position < config.context_length) return 1;
  const auto length = static_cast<double>(position + 1);
  const auto context = static_cast<double>(config.context_length);
  switch (config.rope_scaling.kind) {
    case RopeScalingKind::kYarnT: {
      const double scale = 0.07 * std::log(length / context) + 1;
      return scale * scale;
    }
    case RopeScalingKind::kYarnTLogN:
      return std::log(length) / std::log(context);
    default:
      return 1;
  }
}

}  // namespace mneme::weights
