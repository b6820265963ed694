// Which tokens of a layer stay, given their scores (NAMM specification, section 5).
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/types/span.h"

namespace mneme::memory {

// The scores of one head's tokens, oldest first.
struct HeadScores {
  absl::Span<const float> scores;   // [K]
  absl::Span<const uint8_t> valid;  // [K]; empty: all; 0: padding
};

struct Selection {
  std::vector<std::vector<int64_t>> kept;  // per head, ascending indices
  // Per head, how many of the kept ones reached the threshold; the others fill up.
  std::vector<int64_t> above_threshold;
};

struct ThresholdSelection {
  float threshold = 0;                // a token with this score stays
  std::optional<int64_t> cache_size;  // none: no cap
};

// Keeps the tokens at or above the threshold, the newest one always. All heads keep as many as the
// head that has the most of them: the others fill up with their best ones below it, so that a layer
// has one length. Under a cap only the cache_size best of a head are candidates.
//
// Padding counts as worst; of equal scores the newer token is the better one; NaN is worst. All
// heads have the same number of tokens, at least one.
Selection SelectByThreshold(absl::Span<const HeadScores> heads, const ThresholdSelection& options);

// Keeps the `size` best of every head, no threshold, nothing protected.
Selection SelectTopK(absl::Span<const HeadScores> heads, int64_t size);

// Returns the indices of the latest `size` of `num_tokens`: the recency baseline.
std::vector<int64_t> SelectRecent(int64_t num_tokens, int64_t size);

// Returns the indices of the `size` largest of `scores`, ascending; of equal ones the later; NaN
// is the smallest.
std::vector<int64_t> LargestIndices(absl::Span<const float> scores, int64_t size);

}  // namespace mneme::memory
