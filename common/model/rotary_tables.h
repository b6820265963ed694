// The rotation of the tokens of a step, for every rope scaling.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/weights/model_config.h"

namespace mneme::model {

// Not thread-safe.
class RotaryTables {
 public:
  // INVALID_ARGUMENT: rope parameters that give no finite frequencies.
  static absl::StatusOr<RotaryTables> Create(const weights::ModelConfig& config, at::Device device);

  // Fills cos and sin, float32 [T, D/2] contiguous, for tokens at `positions`. With dynamic NTK the
  // frequencies of a token beyond the context follow from the length of the text up to and
  // including it, `lengths`, as when tokens are fed one by one (the reference lets them follow from
  // the whole chunk, which would make a result depend on how a prompt was cut).
  absl::Status Fill(absl::Span<const int64_t> positions, absl::Span<const int64_t> lengths,
                    const at::Tensor& cos, const at::Tensor& sin) const;

 private:
  RotaryTables(const weights::ModelConfig& config, at::Device device)
      : config_(config), device_(device) {}

  weights::ModelConfig config_;
  at::Device device_;
  at::Tensor inverse_frequencies_;  // float64 [D/2]
  double attention_factor_ = 1;
};

}  // namespace mneme::model
