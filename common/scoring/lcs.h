// Longest common subsequences of two sequences of symbols (ids of words, characters). The table of
// lengths L[i][j] is held as one bit per cell, whether L[i][j] > L[i][j-1], and 64 cells are
// computed at a time (Hyyrö, "Bit-Parallel LCS-length Computation Revisited", 2004).
//
// For m rows and n columns: time O(m n / 64); memory O(n) bits for the length, O(n (m / 256 + 256))
// bits for a subsequence, whose rows are computed twice instead of being kept. Thread-safe.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"

namespace mneme::scoring {

int64_t LongestCommonLength(absl::Span<const uint32_t> rows, absl::Span<const uint32_t> columns);

// Returns that longest common subsequence which is found from the ends of both: equal symbols are
// taken; else one row up if the length there is strictly larger than one column to the left, else
// one column to the left.
std::vector<uint32_t> LongestCommonSubsequence(absl::Span<const uint32_t> rows,
                                               absl::Span<const uint32_t> columns);

}  // namespace mneme::scoring
