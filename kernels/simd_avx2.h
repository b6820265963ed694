// Eight lanes of 32 bits with AVX2, FMA and F16C: one of the instruction sets that the kernels in
// *_tile.h are written over. Include only in files compiled for it.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace mneme::kernels {
namespace {

struct Avx2 {
  using F = __m256;
  using I = __m256i;
  static constexpr int kLanes = 8;
  static constexpr int kMaxTokens = 4;  // tokens per register tile of the linear kernels
  // Dot products of four bytes first go to 16-bit sums, which overflow: see DotUnsigned.
  static constexpr bool kNarrowSums = true;

  static F Load(const float* p) { return _mm256_loadu_ps(p); }
  static void Store(float* p, F v) { _mm256_storeu_ps(p, v); }
  static F Set(float v) { return _mm256_set1_ps(v); }
  static F Add(F a, F b) { return _mm256_add_ps(a, b); }
  static F Sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static F Mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F Div(F a, F b) { return _mm256_div_ps(a, b); }
  static F Fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static F Max(F a, F b) { return _mm256_max_ps(a, b); }
  static F Min(F a, F b) { return _mm256_min_ps(a, b); }
  static F Abs(F a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
  static F LoadHalf(const void* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(static_cast<const __m128i*>(p)));
  }
  static F LoadBFloat16(const void* p) {
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p)));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
  }
  static F LoadUnsigned8(const void* p) {
    return _mm256_cvtepi32_ps(
        _mm256_cvtepu8_epi32(_mm_loadl_epi64(static_cast<const __m128i*>(p))));
  }
  static F LoadSigned8(const void* p) {
    return _mm256_cvtepi32_ps(
        _mm256_cvtepi8_epi32(_mm_loadl_epi64(static_cast<const __m128i*>(p))));
  }
  // Sums the lanes: pairs at distance 4, then 2, then 1.
  static float Sum(F v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
  }
  static float MaxLane(F v) {
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
  }

  static I LoadInt(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
  static I SetInt(int32_t v) { return _mm256_set1_epi32(v); }
  static I BroadcastWord(const void* p) {
    int32_t word;
    std::memcpy(&word, p, 4);
    return _mm256_set1_epi32(word);
  }
  static I And(I a, I b) { return _mm256_and_si256(a, b); }
  static I Or(I a, I b) { return _mm256_or_si256(a, b); }
  static I AddInt(I a, I b) { return _mm256_add_epi32(a, b); }
  template <int kBits>
  static I ShiftLeft(I a) {
    return _mm256_slli_epi32(a, kBits);
  }
  template <int kBits>
  static I ShiftRight(I a) {
    return _mm256_srli_epi32(a, kBits);
  }
  template <int kBits>
  static I ShiftRightSigned(I a) {
    return _mm256_srai_epi32(a, kBits);
  }
  static F ToFloat(I a) { return _mm256_cvtepi32_ps(a); }
  static F AsFloat(I a) { return _mm256_castsi256_ps(a); }
  static I ToIntNearest(F a) { return _mm256_cvtps_epi32(a); }
  static int32_t SumInt(I v) {
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1));
    return _mm_cvtsi128_si32(s);
  }
  // Stores the low bytes of the lanes.
  static void StoreBytes(int8_t* p, I v) {
    const __m256i order =
        _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 0, 4, 8, 12,
                         -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
    const __m256i packed = _mm256_shuffle_epi8(v, order);
    const int32_t low = _mm_cvtsi128_si32(_mm256_castsi256_si128(packed));
    const int32_t high = _mm_cvtsi128_si32(_mm256_extracti128_si256(packed, 1));
    std::memcpy(p, &low, 4);
    std::memcpy(p + 4, &high, 4);
  }

  // Adds to each lane of `sum` the products of its four unsigned bytes of `w` and signed bytes of
  // `a`. Sums are 16-bit pairs: at most 32767 / (2 * 127 * max(w)) calls before Widen.
  static I DotUnsigned(I sum, I w, I a) {
    return _mm256_add_epi16(sum, _mm256_maddubs_epi16(w, a));
  }
  static I Widen(I sum) { return _mm256_madd_epi16(sum, _mm256_set1_epi16(1)); }
  // The same for signed bytes, into 32-bit sums that start as StartSigned(sum of all bytes of a).
  static I StartSigned(int32_t) { return _mm256_setzero_si256(); }
  static I DotSigned(I sum, I w, I a) {
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(a, w));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
};

}  // namespace
}  // namespace mneme::kernels
