// Sixteen lanes of 32 bits with AVX-512 (F, BW, VL, DQ) and VNNI: one of the instruction sets that
// the kernels in *_tile.h are written over. Include only in files compiled for it.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace mneme::kernels {
namespace {

struct Avx512 {
  using F = __m512;
  using I = __m512i;
  static constexpr int kLanes = 16;
  static constexpr int kMaxTokens = 8;
  static constexpr bool kNarrowSums = false;

  static F Load(const float* p) { return _mm512_loadu_ps(p); }
  static void Store(float* p, F v) { _mm512_storeu_ps(p, v); }
  static F Set(float v) { return _mm512_set1_ps(v); }
  static F Add(F a, F b) { return _mm512_add_ps(a, b); }
  static F Sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F Mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F Div(F a, F b) { return _mm512_div_ps(a, b); }
  static F Fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F Max(F a, F b) { return _mm512_max_ps(a, b); }
  static F Min(F a, F b) { return _mm512_min_ps(a, b); }
  static F Abs(F a) { return _mm512_abs_ps(a); }
  static F LoadHalf(const void* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
  }
  static F LoadBFloat16(const void* p) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
  }
  static F LoadUnsigned8(const void* p) {
    return _mm512_cvtepi32_ps(
        _mm512_cvtepu8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p))));
  }
  static F LoadSigned8(const void* p) {
    return _mm512_cvtepi32_ps(
        _mm512_cvtepi8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p))));
  }
  static float Sum(F v) { return _mm512_reduce_add_ps(v); }
  static float MaxLane(F v) { return _mm512_reduce_max_ps(v); }

  static I LoadInt(const void* p) { return _mm512_loadu_si512(p); }
  static I SetInt(int32_t v) { return _mm512_set1_epi32(v); }
  static I BroadcastWord(const void* p) {
    int32_t word;
    std::memcpy(&word, p, 4);
    return _mm512_set1_epi32(word);
  }
  static I And(I a, I b) { return _mm512_and_si512(a, b); }
  static I Or(I a, I b) { return _mm512_or_si512(a, b); }
  static I AddInt(I a, I b) { return _mm512_add_epi32(a, b); }
  template <int kBits>
  static I ShiftLeft(I a) {
    return _mm512_slli_epi32(a, kBits);
  }
  template <int kBits>
  static I ShiftRight(I a) {
    return _mm512_srli_epi32(a, kBits);
  }
  template <int kBits>
  static I ShiftRightSigned(I a) {
    return _mm512_srai_epi32(a, kBits);
  }
  static F ToFloat(I a) { return _mm512_cvtepi32_ps(a); }
  static F AsFloat(I a) { return _mm512_castsi512_ps(a); }
  static I ToIntNearest(F a) { return _mm512_cvtps_epi32(a); }
  static int32_t SumInt(I v) { return _mm512_reduce_add_epi32(v); }
  static void StoreBytes(int8_t* p, I v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(v));
  }

  static I DotUnsigned(I sum, I w, I a) { return _mm512_dpbusd_epi32(sum, w, a); }
  static I Widen(I sum) { return sum; }
  // The instruction wants one operand unsigned: w + 128, made up for by the start value.
  static I StartSigned(int32_t sum_of_a) { return _mm512_set1_epi32(-128 * sum_of_a); }
  static I DotSigned(I sum, I w, I a) {
    return _mm512_dpbusd_epi32(sum, _mm512_xor_si512(w, _mm512_set1_epi8(-128)), a);
  }
};

}  // namespace
}  // namespace mneme::kernels
