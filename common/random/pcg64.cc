#include "common/random/pcg64.h"

#include <array>
#include <bit>

namespace mneme::random {
namespace {

// SeedSequence's hash of a seed into eight words, and its constants.
std::array<uint32_t, 8> SeedWords(uint64_t seed) {
  uint32_t a = 0x43B0D7E5u;
  const auto hash = [&a](uint32_t value) {
    value ^= a;
    a *= 0x931E8875u;
    value *= a;
    return value ^ (value >> 16);
  };
  const auto mix = [](uint32_t x, uint32_t y) {
    const uint32_t t = 0xCA01F9DDu * x - 0x4973F715u * y;
    return t ^ (t >> 16);
  };
  std::array<uint32_t, 4> pool = {hash(static_cast<uint32_t>(seed)),
                                  hash(static_cast<uint32_t>(seed >> 32)), 0, 0};
  pool[2] = hash(0);
  pool[3] = hash(0);
  for (size_t i = 0; i < pool.size(); ++i) {
    for (size_t j = 0; j < pool.size(); ++j) {
      if (i != j) pool[j] = mix(pool[j], hash(pool[i]));
    }
  }
  std::array<uint32_t, 8> words;
  uint32_t b = 0x8B51F9DDu;
  for (size_t k = 0; k < words.size(); ++k) {
    uint32_t value = pool[k % pool.size()] ^ b;
    b *= 0x58F38DEDu;
    value *= b;
    words[k] = value ^ (value >> 16);
  }
  return words;
}

absl::uint128 Step(absl::uint128 state, absl::uint128 increment) {
  return state * absl::MakeUint128(0x2360ED051FC65DA4u, 0x4385DF649FCCF645u) + increment;
}

}  // namespace

Pcg64::Pcg64(uint64_t seed) {
  const std::array<uint32_t, 8> words = SeedWords(seed);
  std::array<uint64_t, 4> q;
  for (size_t i = 0; i < q.size(); ++i) {
    q[i] = words[2 * i] | static_cast<uint64_t>(words[2 * i + 1]) << 32;
  }
  state_.increment = absl::MakeUint128(q[2], q[3]) * 2 + 1;
  state_.state = Step(state_.increment + absl::MakeUint128(q[0], q[1]), state_.increment);
}

uint64_t Pcg64::Next64() {
  state_.state = Step(state_.state, state_.increment);
  const uint64_t high = absl::Uint128High64(state_.state);
  return std::rotr(high ^ absl::Uint128Low64(state_.state), static_cast<int>(high >> 58));
}

uint32_t Pcg64::Next32() {
  if (state_.has_half) {
    state_.has_half = false;
    return state_.half;
  }
  const uint64_t both = Next64();
  state_.has_half = true;
  state_.half = static_cast<uint32_t>(both >> 32);
  return static_cast<uint32_t>(both);
}

uint32_t Pcg64::Below(uint32_t bound) {
  if (bound <= 1) return 0;
  uint64_t product = static_cast<uint64_t>(Next32()) * bound;
  if (static_cast<uint32_t>(product) < bound) {
    const uint32_t threshold = (0u - bound) % bound;
    while (static_cast<uint32_t>(product) < threshold) {
      product = static_cast<uint64_t>(Next32()) * bound;
    }
  }
  return static_cast<uint32_t>(product >> 32);
}

}  // namespace mneme::random
