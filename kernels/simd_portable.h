// Eight lanes of 32 bits in plain C++, for processors without AVX2 and as the proof of the other
// instruction sets: the kernels in *_tile.h are written over either.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace mneme::kernels {
namespace {

struct Portable {
  static constexpr int kLanes = 8;
  static constexpr int kMaxTokens = 4;
  static constexpr bool kNarrowSums = false;
  using F = float __attribute__((vector_size(32)));
  using I = int32_t __attribute__((vector_size(32)));

  template <typename To, typename From>
  static To Each(From&& lane) {
    To result;
    for (int i = 0; i < kLanes; ++i) result[i] = lane(i);
    return result;
  }

  static F Load(const float* p) {
    F v;
    std::memcpy(&v, p, sizeof(v));
    return v;
  }
  static void Store(float* p, F v) { std::memcpy(p, &v, sizeof(v)); }
  static F Set(float v) { return F{v, v, v, v, v, v, v, v}; }
  static F Add(F a, F b) { return a + b; }
  static F Sub(F a, F b) { return a - b; }
  static F Mul(F a, F b) { return a * b; }
  static F Div(F a, F b) { return a / b; }
  static F Fma(F a, F b, F c) { return a * b + c; }
  static F Max(F a, F b) { return a > b ? a : b; }
  static F Min(F a, F b) { return a < b ? a : b; }
  static F Abs(F a) {
    return Each<F>([&](int i) { return std::fabs(a[i]); });
  }
  static float Half(uint16_t bits) {
    const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16;
    const uint32_t exponent = (bits >> 10) & 31;
    const uint32_t fraction = bits & 1023;
    if (exponent == 0) {
      const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
      return sign != 0 ? -magnitude : magnitude;
    }
    const uint32_t wide = sign | ((exponent == 31 ? 255 : exponent + 112) << 23) | fraction << 13;
    float value;
    std::memcpy(&value, &wide, sizeof(value));
    return value;
  }
  static F LoadHalf(const void* p) {
    uint16_t bits[kLanes];
    std::memcpy(bits, p, sizeof(bits));
    return Each<F>([&](int i) { return Half(bits[i]); });
  }
  static F LoadBFloat16(const void* p) {
    uint16_t bits[kLanes];
    std::memcpy(bits, p, sizeof(bits));
    return AsFloat(Each<I>([&](int i) { return static_cast<int32_t>(uint32_t{bits[i]} << 16); }));
  }
  static F LoadUnsigned8(const void* p) {
    return Each<F>([&](int i) { return static_cast<float>(static_cast<const uint8_t*>(p)[i]); });
  }
  static F LoadSigned8(const void* p) {
    return Each<F>([&](int i) { return static_cast<float>(static_cast<const int8_t*>(p)[i]); });
  }
  static float Sum(F v) {
    return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
  }
  static float MaxLane(F v) {
    float max = v[0];
    for (int i = 1; i < kLanes; ++i) max = v[i] > max ? v[i] : max;
    return max;
  }

  static I LoadInt(const void* p) {
    I v;
    std::memcpy(&v, p, sizeof(v));
    return v;
  }
  static I SetInt(int32_t v) { return I{v, v, v, v, v, v, v, v}; }
  static I BroadcastWord(const void* p) {
    int32_t word;
    std::memcpy(&word, p, 4);
    return SetInt(word);
  }
  static I And(I a, I b) { return a & b; }
  static I Or(I a, I b) { return a | b; }
  static I AddInt(I a, I b) { return a + b; }
  template <int kBits>
  static I ShiftLeft(I a) {
    return Each<I>(
        [&](int i) { return static_cast<int32_t>(static_cast<uint32_t>(a[i]) << kBits); });
  }
  template <int kBits>
  static I ShiftRight(I a) {
    return Each<I>(
        [&](int i) { return static_cast<int32_t>(static_cast<uint32_t>(a[i]) >> kBits); });
  }
  template <int kBits>
  static I ShiftRightSigned(I a) {
    return a >> kBits;
  }
  static F ToFloat(I a) { return __builtin_convertvector(a, F); }
  static F AsFloat(I a) {
    F v;
    std::memcpy(&v, &a, sizeof(v));
    return v;
  }
  static I ToIntNearest(F a) {
    return Each<I>([&](int i) { return static_cast<int32_t>(std::nearbyint(a[i])); });
  }
  static int32_t SumInt(I v) {
    int32_t sum = 0;
    for (int i = 0; i < kLanes; ++i) sum += v[i];
    return sum;
  }
  static void StoreBytes(int8_t* p, I v) {
    for (int i = 0; i < kLanes; ++i) p[i] = static_cast<int8_t>(v[i]);
  }

  static I DotUnsigned(I sum, I w, I a) {
    return Each<I>([&](int i) {
      int32_t lane = sum[i];
      for (int byte = 0; byte < 4; ++byte) {
        lane += static_cast<uint8_t>(w[i] >> (8 * byte)) * static_cast<int8_t>(a[i] >> (8 * byte));
      }
      return lane;
    });
  }
  static I Widen(I sum) { return sum; }
  static I StartSigned(int32_t) { return SetInt(0); }
  static I DotSigned(I sum, I w, I a) {
    return Each<I>([&](int i) {
      int32_t lane = sum[i];
      for (int byte = 0; byte < 4; ++byte) {
        lane += static_cast<int8_t>(w[i] >> (8 * byte)) * static_cast<int8_t>(a[i] >> (8 * byte));
      }
      return lane;
    });
  }
};

}  // namespace
}  // namespace mneme::kernels
