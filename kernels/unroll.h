// Loops that must be unrolled for their arrays of vectors to live in registers.
#pragma once

namespace mneme::kernels {
namespace {

// Calls body.template operator()<i>() for i in [kBegin, kEnd).
template <int kBegin, int kEnd, typename Body>
__attribute__((always_inline)) inline void Unroll(Body&& body) {
  if constexpr (kBegin < kEnd) {
    body.template operator()<kBegin>();
    Unroll<kBegin + 1, kEnd>(body);
  }
}

}  // namespace
}  // namespace mneme::kernels
