// The rotation of the tokens of a step, for every rope scaling.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <utility>
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

  // Fills cos and sin, float32 [T, D/2] contiguous, for tokens at `positions`. With scalings that
  // grow the frequencies of a token beyond the fixed length follow from the length of the text up
  // to and including it, `lengths`, as when tokens are fed one by one (the reference lets them
  // follow from the whole chunk, which would make a result depend on how a prompt was cut).
  absl::Status Fill(absl::Span<const int64_t> positions, absl::Span<const int64_t> lengths,
                    const at::Tensor& cos, const at::Tensor& sin) const;

  // Says whether queries are multiplied by a factor that keys don't have, at all.
  bool scales_queries() const;
  // Multiplies the rows of cos and sin, as Fill left them, by that factor.
  absl::Status ScaleQueries(absl::Span<const int64_t> positions, const at::Tensor& cos,
                            const at::Tensor& sin) const;

  // Where a key was and where it goes: position and length, as Fill takes them.
  struct Turn {
    absl::Span<const int64_t> from_positions;
    int64_t from_length = 0;
    absl::Span<const int64_t> to_positions;
    int64_t to_length = 0;
  };
  // Returns the cos and sin, float32 [T, D/2], that turn keys rotated by Fill for `from` into what
  // Fill would have made of them for `to`.
  absl::StatusOr<std::pair<at::Tensor, at::Tensor>> TurnTable(const Turn& turn) const;

 private:
  RotaryTables(const weights::ModelConfig& config, at::Device device)
      : config_(config), device_(device) {}

  weights::ModelConfig config_;
  at::Device device_;
  at::Tensor inverse_frequencies_;  // float64 [D/2]
  double attention_factor_ = 1;
};

}  // namespace mneme::model
