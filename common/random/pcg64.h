// The random generator behind NumPy's default_rng, bit for bit: PCG64 (XSL-RR output; O'Neill 2014)
// seeded by SeedSequence. The published implementation of Activation Beacon draws ratios and
// passkeys with it.
#pragma once

#include <cstdint>

#include "absl/numeric/int128.h"

namespace mneme::random {

// A value: copies go on alike. Not thread-safe.
class Pcg64 {
 public:
  // Everything that decides what comes next.
  struct State {
    absl::uint128 state = 0;
    absl::uint128 increment = 0;
    bool has_half = false;  // the high half of a 64-bit draw is left over
    uint32_t half = 0;

    bool operator==(const State&) const = default;
  };

  // default_rng(seed)
  explicit Pcg64(uint64_t seed);
  explicit Pcg64(const State& state) : state_(state) {}

  // Returns a number below `bound`, uniform (Lemire 2019); `bound` at least 1. Draws nothing where
  // it is 1. A choice from a list of that size takes the element at the result.
  uint32_t Below(uint32_t bound);
  // integers(low, high): from low to high - 1.
  int64_t Integers(int64_t low, int64_t high) {
    return low + Below(static_cast<uint32_t>(high - low));
  }

  const State& state() const { return state_; }

 private:
  uint64_t Next64();
  uint32_t Next32();

  State state_;
};

}  // namespace mneme::random
