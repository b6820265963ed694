// Normalisation of NAMM's spectrogram features: one mean and one variance per frequency, shared by
// all layers and heads. Measured once and frozen with the trained network, or, for a network that
// comes without, measured as a sequence goes on.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"

namespace mneme::memory {

// Plain values; a default one has counted nothing.
struct FrequencyStatistics {
  std::vector<double> mean;      // [F]
  std::vector<double> variance;  // [F], biased
  std::vector<int64_t> count;    // [F]

  bool empty() const { return mean.empty(); }

  // Of `rows` rows of `num_frequencies` numbers; rows where `valid` (empty: all) is 0 don't
  // count.
  static FrequencyStatistics Measure(absl::Span<const float> values, int64_t num_frequencies,
                                     absl::Span<const uint8_t> valid = {});

  // Becomes the statistics of both samples together.
  void Merge(const FrequencyStatistics& other);

  // normalised = (value - mean) / max(sqrt(variance), 1e-7), rows of F numbers. May be in place.
  void Normalise(absl::Span<const float> values, float* normalised) const;
};

// What a process that measures has: what was loaded, and what came since the last merge.
struct RunningStatistics {
  FrequencyStatistics stored;
  FrequencyStatistics fresh;

  // What features are normalised with: the stored values where there are any, else the fresh ones.
  const FrequencyStatistics& effective() const { return stored.empty() ? fresh : stored; }
  // Merges the fresh values into the stored ones; the fresh ones begin anew.
  void Fold();
};

}  // namespace mneme::memory
