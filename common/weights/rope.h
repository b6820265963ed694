// Rotary frequencies for every scaling that the supported models use, with the formulas and float32
// rounding of transformers 5 (modeling_rope_utils).
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "common/weights/model_config.h"

namespace mneme::weights {

struct RopeFrequencies {
  // Angle of pair i at position p is p * inverse_frequencies[i]. [D/2]
  std::vector<float> inverse_frequencies;
  // cos and sin are multiplied by this (YaRN; 1 otherwise), on queries and keys alike.
  double attention_factor = 1;
};

// Returns the frequencies for a sequence of `num_tokens`. Up to FixedRopeLength they do not depend
// on it. INVALID_ARGUMENT: an odd head size or
// parameters that give no finite frequency (factor <= 0, theta <= 0, equal llama3 bounds, …).
absl::StatusOr<RopeFrequencies> ComputeRope(const ModelConfig& config, int64_t num_tokens);

// Returns the length up to which all lengths have the same frequencies: the context with dynamic
// NTK, the scaled context with beacon YaRN and its kin. Beyond, every length has its own: with the
// first another base, with the others another factor.
int64_t FixedRopeLength(const ModelConfig& config);

// Returns by what a query at `position` is multiplied beside the rotation: not 1 with yarn-t and
// yarn-t-logn from the context length on.
double QueryScale(const ModelConfig& config, int64_t position);

}  // namespace mneme::weights
