// The inner loops of linear.h, written once over an instruction set S (simd_*.h). The order of the
// float additions of one output depends only on K and the weight type, never on how many tokens or
// tiles are in flight: integer sums are exact in any order, and every float chain runs along K.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/linear_kernels.h"
#include "kernels/simd_math.h"
#include "kernels/unroll.h"

namespace mneme::kernels {
namespace {

template <typename S>
void RoundRow(const float* x, int64_t k, void* row) {
  using F = typename S::F;
  constexpr int kVectors = static_cast<int>(kBlock) / S::kLanes;
  auto* q = static_cast<int8_t*>(row);
  float* scales = RoundedRow::Scale(row, k);
  float* sums = scales + RoundedRow::Sum(k);
  float* half_sums = scales + RoundedRow::HalfSum(k);
  auto* int_sums = reinterpret_cast<int32_t*>(scales + RoundedRow::IntSum(k));
  for (int64_t b = 0; b < k / kBlock; ++b) {
    F v[kVectors];
    F max = S::Set(0.0f);
    for (int i = 0; i < kVectors; ++i) {
      v[i] = S::Load(x + b * kBlock + i * S::kLanes);
      max = S::Max(max, S::Abs(v[i]));
    }
    const float largest = S::MaxLane(max);
    const float scale = largest / 127.0f;
    const F inverse = S::Set(largest > 0.0f ? 127.0f / largest : 0.0f);
    int32_t half[2] = {0, 0};
    for (int i = 0; i < kVectors; ++i) {
      const auto n = S::ToIntNearest(S::Mul(v[i], inverse));
      S::StoreBytes(q + b * kBlock + i * S::kLanes, n);
      half[i * 2 / kVectors] += S::SumInt(n);
    }
    scales[b] = scale;
    sums[b] = scale * static_cast<float>(half[0] + half[1]);
    half_sums[2 * b] = scale * static_cast<float>(half[0]);
    half_sums[2 * b + 1] = scale * static_cast<float>(half[1]);
    int_sums[b] = half[0] + half[1];
  }
}

// How to read a packed tile of one weight type. `part` selects the lanes: rows part * S::kLanes and
// following.
template <typename S, WeightType kType>
struct Tile {
  using F = typename S::F;
  using I = typename S::I;
  static constexpr TileLayout kLayout = LayoutOf(kType);
  static constexpr bool kSigned = kType == WeightType::kQ8_0;
  static constexpr bool kK =
      kType == WeightType::kQ4K || kType == WeightType::kQ5K || kType == WeightType::kQ6K;
  static constexpr int kHighBits = static_cast<int>(kLayout.high_bytes / 64);
  static constexpr bool kHasMin = !kSigned;
  // Types without a min store quant + kOffset.
  static constexpr int kOffset = kType == WeightType::kQ4_0   ? 8
                                 : kType == WeightType::kQ5_0 ? 16
                                 : kType == WeightType::kQ6K  ? 32
                                                              : 0;
  static constexpr int kSubs = kType == WeightType::kQ6K ? 2 : 1;  // scales per block of 32
  // Steps of four columns that a narrow sum can take: 32767 / (2 * 127 * 15), 31, 63.
  static constexpr int kNarrowSteps = kHighBits == 0 ? 8 : kHighBits == 1 ? 4 : 2;
  static constexpr int kSteps = 8 / kSubs;
  static constexpr int kChunk = S::kNarrowSums && kNarrowSteps < kSteps ? kNarrowSteps : kSteps;

  Tile(const uint8_t* tile, int64_t k)
      : quants(tile),
        high(tile + k / kBlock * kLayout.quant_bytes),
        scales(high + k / kBlock * kLayout.high_bytes) {}

  // Columns 4 * step .. 4 * step + 3 of block b.
  template <int kStep>
  I Step(int64_t b, int part) const {
    if constexpr (kSigned) {
      return S::LoadInt(quants + b * 512 + kStep * 64 + part * S::kLanes * 4);
    } else {
      const I both = S::LoadInt(quants + b * 256 + kStep / 2 * 64 + part * S::kLanes * 4);
      const I mask = S::SetInt(0x0f0f0f0f);
      I value;
      if constexpr (kStep % 2 == 0) {
        value = S::And(both, mask);
      } else {
        value = S::And(S::template ShiftRight<4>(both), mask);
      }
      if constexpr (kHighBits == 1) {
        const I bits = S::LoadInt(high + b * 64 + part * S::kLanes * 4);
        const I bit = S::And(S::template ShiftRight<kStep>(bits), S::SetInt(0x01010101));
        value = S::Or(value, S::template ShiftLeft<4>(bit));
      } else if constexpr (kHighBits == 2) {
        const I bits = S::LoadInt(high + b * 128 + kStep / 4 * 64 + part * S::kLanes * 4);
        const I two = S::And(S::template ShiftRight<2 * (kStep % 4)>(bits), S::SetInt(0x03030303));
        value = S::Or(value, S::template ShiftLeft<4>(two));
      }
      return value;
    }
  }

  // A weight is scale * quant + min, where `quant` is unsigned unless kSigned.
  void Scale(int64_t b, int sub, int part, F* scale, F* min) const {
    const int lane = part * S::kLanes;
    if constexpr (!kK) {
      const uint8_t* p = scales + b * kLayout.scale_bytes + lane * 2;
      *scale = S::LoadHalf(p);
      if constexpr (kLayout.scale_bytes == 64) *min = S::LoadHalf(p + 32);
      if constexpr (kOffset != 0) *min = S::Mul(*scale, S::Set(-kOffset));
    } else {
      const uint8_t* p = scales + b / 8 * kLayout.scale_bytes;
      const F d = S::LoadHalf(p + lane * 2);
      if constexpr (kType == WeightType::kQ6K) {
        *scale = S::Mul(d, S::LoadSigned8(p + 32 + (b % 8 * 2 + sub) * 16 + lane));
        *min = S::Mul(*scale, S::Set(-kOffset));
      } else {
        const F d_min = S::LoadHalf(p + 32 + lane * 2);
        *scale = S::Mul(d, S::LoadUnsigned8(p + 64 + b % 8 * 16 + lane));
        *min = S::Sub(S::Set(0.0f), S::Mul(d_min, S::LoadUnsigned8(p + 192 + b % 8 * 16 + lane)));
      }
    }
  }

  const uint8_t* quants;
  const uint8_t* high;
  const uint8_t* scales;
};

template <typename S, WeightType kType, int kTokens>
void FastTile(const uint8_t* packed, int64_t k, const uint8_t* rows, int64_t stride, float* sums) {
  using F = typename S::F;
  using I = typename S::I;
  using T = Tile<S, kType>;
  constexpr int kParts = static_cast<int>(kTileRows) / S::kLanes;
  const T tile(packed, k);
  const float* scales = RoundedRow::Scale(rows, k);
  const float* row_sums = scales + (T::kSubs == 1 ? RoundedRow::Sum(k) : RoundedRow::HalfSum(k));
  const auto* int_sums = reinterpret_cast<const int32_t*>(scales + RoundedRow::IntSum(k));
  const int64_t float_stride = stride / static_cast<int64_t>(sizeof(float));
  F sum[kTokens][kParts];
  Unroll<0, kTokens * kParts>([&]<int i>() { sum[i / kParts][i % kParts] = S::Set(0.0f); });
  for (int64_t b = 0; b < k / kBlock; ++b) {
    const uint8_t* block = rows + b * kBlock;
    Unroll<0, T::kSubs>([&]<int sub>() {
      I total[kTokens][kParts];
      Unroll<0, kTokens * kParts>([&]<int i>() {
        total[i / kParts][i % kParts] =
            T::kSigned ? S::StartSigned(int_sums[i / kParts * float_stride + b]) : S::SetInt(0);
      });
      Unroll<0, T::kSteps / T::kChunk>([&]<int chunk>() {
        I narrow[kTokens][kParts];
        Unroll<0, kTokens * kParts>(
            [&]<int i>() { narrow[i / kParts][i % kParts] = S::SetInt(0); });
        Unroll<0, T::kChunk>([&]<int i>() {
          constexpr int kStep = sub * T::kSteps + chunk * T::kChunk + i;
          I w[kParts];
          Unroll<0, kParts>([&]<int p>() { w[p] = tile.template Step<kStep>(b, p); });
          Unroll<0, kTokens>([&]<int t>() {
            const I a = S::BroadcastWord(block + t * stride + 4 * kStep);
            Unroll<0, kParts>([&]<int p>() {
              if constexpr (T::kSigned) {
                total[t][p] = S::DotSigned(total[t][p], w[p], a);
              } else {
                narrow[t][p] = S::DotUnsigned(narrow[t][p], w[p], a);
              }
            });
          });
        });
        if constexpr (!T::kSigned) {
          Unroll<0, kTokens * kParts>([&]<int i>() {
            auto& sum_so_far = total[i / kParts][i % kParts];
            sum_so_far = S::AddInt(sum_so_far, S::Widen(narrow[i / kParts][i % kParts]));
          });
        }
      });
      Unroll<0, kParts>([&]<int p>() {
        F scale;
        F min;
        tile.Scale(b, sub, p, &scale, &min);
        Unroll<0, kTokens>([&]<int t>() {
          const F a = S::Set(scales[t * float_stride + b]);
          sum[t][p] = S::Fma(S::ToFloat(total[t][p]), S::Mul(scale, a), sum[t][p]);
          if constexpr (T::kHasMin) {
            const F s = S::Set(row_sums[t * float_stride + b * T::kSubs + sub]);
            sum[t][p] = S::Fma(min, s, sum[t][p]);
          }
        });
      });
    });
  }
  Unroll<0, kTokens * kParts>([&]<int i>() {
    S::Store(sums + i / kParts * kTileRows + i % kParts * S::kLanes, sum[i / kParts][i % kParts]);
  });
}

// block[c][row] = the 32 columns of block b.
template <typename S, WeightType kType>
void DequantizeBlock(const Tile<S, kType>& tile, int64_t b, float* block) {
  using F = typename S::F;
  using I = typename S::I;
  using T = Tile<S, kType>;
  Unroll<0, static_cast<int>(kTileRows) / S::kLanes>([&]<int p>() {
    Unroll<0, T::kSubs>([&]<int sub>() {
      F scale;
      F min;
      tile.Scale(b, sub, p, &scale, &min);
      Unroll<sub * T::kSteps, (sub + 1) * T::kSteps>([&]<int step>() {
        const I w = tile.template Step<step>(b, p);
        Unroll<0, 4>([&]<int byte>() {
          float* to = block + (4 * step + byte) * kTileRows + p * S::kLanes;
          if constexpr (T::kSigned) {
            const I q = S::template ShiftRightSigned<24>(S::template ShiftLeft<24 - 8 * byte>(w));
            S::Store(to, S::Mul(S::ToFloat(q), scale));
          } else {
            const I q = S::And(S::template ShiftRight<8 * byte>(w), S::SetInt(255));
            if constexpr (T::kOffset != 0) {
              S::Store(to, S::Mul(S::ToFloat(S::AddInt(q, S::SetInt(-T::kOffset))), scale));
            } else {
              // The product is exact in float32: this rounds once, fused or not.
              S::Store(to, S::Fma(S::ToFloat(q), scale, min));
            }
          }
        });
      });
    });
  });
}

template <typename S, WeightType kType>
void DequantizeRowOfTile(const uint8_t* packed, int64_t k, int row, float* out) {
  const Tile<S, kType> tile(packed, k);
  alignas(64) float block[kBlock * kTileRows];
  for (int64_t b = 0; b < k / kBlock; ++b) {
    DequantizeBlock<S, kType>(tile, b, block);
    for (int64_t c = 0; c < kBlock; ++c) out[b * kBlock + c] = block[c * kTileRows + row];
  }
}

// sums[t] += block times 32 columns of token t.
template <typename S, int kTokens>
void AddExactBlock(const float* block, const float* x, int64_t x_stride, float* sums) {
  using F = typename S::F;
  constexpr int kParts = static_cast<int>(kTileRows) / S::kLanes;
  F sum[kTokens][kParts];
  Unroll<0, kTokens * kParts>([&]<int i>() {
    sum[i / kParts][i % kParts] = S::Load(sums + i / kParts * kTileRows + i % kParts * S::kLanes);
  });
  for (int64_t c = 0; c < kBlock; ++c) {
    F w[kParts];
    Unroll<0, kParts>([&]<int p>() { w[p] = S::Load(block + c * kTileRows + p * S::kLanes); });
    Unroll<0, kTokens>([&]<int t>() {
      const F a = S::Set(x[t * x_stride + c]);
      Unroll<0, kParts>([&]<int p>() { sum[t][p] = S::Fma(a, w[p], sum[t][p]); });
    });
  }
  Unroll<0, kTokens * kParts>([&]<int i>() {
    S::Store(sums + i / kParts * kTileRows + i % kParts * S::kLanes, sum[i / kParts][i % kParts]);
  });
}

template <typename S, WeightType kType>
void ExactTile(const uint8_t* packed, int64_t k, const float* x, int64_t x_stride, int tokens,
               float* sums) {
  const Tile<S, kType> tile(packed, k);
  std::memset(sums, 0, static_cast<size_t>(tokens) * kTileRows * sizeof(float));
  alignas(64) float block[kBlock * kTileRows];
  for (int64_t b = 0; b < k / kBlock; ++b) {
    DequantizeBlock<S, kType>(tile, b, block);
    const float* from = x + b * kBlock;
    int t = 0;
    for (; t + 4 <= tokens; t += 4) {
      AddExactBlock<S, 4>(block, from + t * x_stride, x_stride, sums + t * kTileRows);
    }
    for (; t < tokens; ++t) {
      AddExactBlock<S, 1>(block, from + t * x_stride, x_stride, sums + t * kTileRows);
    }
  }
}

template <typename S, WeightType kType>
inline typename S::F LoadFloats(const uint8_t* p) {
  if constexpr (kType == WeightType::kF16) return S::LoadHalf(p);
  if constexpr (kType == WeightType::kBF16) return S::LoadBFloat16(p);
  if constexpr (kType == WeightType::kF32) return S::Load(reinterpret_cast<const float*>(p));
}

// Rows times tokens, the lanes along K: lane i sums the columns i, i + lanes, ...
template <typename S, WeightType kType, int kRows, int kTokens>
void FloatBlock(const uint8_t* const* rows, int64_t k, const float* x, int64_t x_stride,
                float* sums) {
  using F = typename S::F;
  constexpr int64_t kSize = kType == WeightType::kF32 ? 4 : 2;
  F sum[kTokens][kRows];
  Unroll<0, kTokens * kRows>([&]<int i>() { sum[i / kRows][i % kRows] = S::Set(0.0f); });
  int64_t c = 0;
  for (; c + S::kLanes <= k; c += S::kLanes) {
    F a[kTokens];
    Unroll<0, kTokens>([&]<int t>() { a[t] = S::Load(x + t * x_stride + c); });
    Unroll<0, kRows>([&]<int r>() {
      const F w = LoadFloats<S, kType>(rows[r] + c * kSize);
      Unroll<0, kTokens>([&]<int t>() { sum[t][r] = S::Fma(a[t], w, sum[t][r]); });
    });
  }
  if (c < k) {
    const auto rest = static_cast<size_t>(k - c);
    F a[kTokens];
    for (int t = 0; t < kTokens; ++t) {
      float padded[S::kLanes] = {};
      std::memcpy(padded, x + t * x_stride + c, rest * sizeof(float));
      a[t] = S::Load(padded);
    }
    for (int r = 0; r < kRows; ++r) {
      uint8_t padded[S::kLanes * 4] = {};
      std::memcpy(padded, rows[r] + c * kSize, rest * kSize);
      const F w = LoadFloats<S, kType>(padded);
      for (int t = 0; t < kTokens; ++t) sum[t][r] = S::Fma(a[t], w, sum[t][r]);
    }
  }
  for (int t = 0; t < kTokens; ++t) {
    for (int r = 0; r < kRows; ++r) sums[t * kTileRows + r] = S::Sum(sum[t][r]);
  }
}

template <typename S, WeightType kType>
void FloatTile(const uint8_t* rows, int64_t row_bytes, int num_rows, int64_t k, const float* x,
               int64_t x_stride, int tokens, float* sums) {
  // Missing rows repeat the last one; their sums are not used.
  const uint8_t* row[kTileRows];
  for (int r = 0; r < kTileRows; ++r) {
    row[r] = rows + (r < num_rows ? r : num_rows - 1) * row_bytes;
  }
  int t = 0;
  for (; t + 4 <= tokens; t += 4) {
    for (int r = 0; r < num_rows; r += 2) {
      FloatBlock<S, kType, 2, 4>(row + r, k, x + t * x_stride, x_stride, sums + t * kTileRows + r);
    }
  }
  for (; t < tokens; ++t) {
    for (int r = 0; r < num_rows; r += 4) {
      FloatBlock<S, kType, 4, 1>(row + r, k, x + t * x_stride, x_stride, sums + t * kTileRows + r);
    }
  }
}

template <typename S>
void SiluMulRow(const float* gate, const float* up, int64_t width, float* out) {
  int64_t j = 0;
  for (; j + S::kLanes <= width; j += S::kLanes) {
    S::Store(out + j, SiluMul<S>(S::Load(gate + j), S::Load(up + j)));
  }
  if (j < width) {
    const auto rest = static_cast<size_t>(width - j) * sizeof(float);
    float g[S::kLanes] = {};
    float u[S::kLanes] = {};
    std::memcpy(g, gate + j, rest);
    std::memcpy(u, up + j, rest);
    S::Store(g, SiluMul<S>(S::Load(g), S::Load(u)));
    std::memcpy(out + j, g, rest);
  }
}

template <typename S, WeightType kType>
void AddQuantised(LinearKernels* kernels) {
  const auto type = static_cast<int>(kType);
  Unroll<0, S::kMaxTokens>([&]<int t>() { kernels->fast[type][t] = FastTile<S, kType, t + 1>; });
  kernels->exact[type] = ExactTile<S, kType>;
  kernels->dequantize[type] = DequantizeRowOfTile<S, kType>;
}

template <typename S>
LinearKernels MakeLinearKernels() {
  LinearKernels kernels = {};
  kernels.round = RoundRow<S>;
  kernels.fast_tokens = S::kMaxTokens;
  AddQuantised<S, WeightType::kQ8_0>(&kernels);
  AddQuantised<S, WeightType::kQ4_0>(&kernels);
  AddQuantised<S, WeightType::kQ4_1>(&kernels);
  AddQuantised<S, WeightType::kQ5_0>(&kernels);
  AddQuantised<S, WeightType::kQ5_1>(&kernels);
  AddQuantised<S, WeightType::kQ4K>(&kernels);
  AddQuantised<S, WeightType::kQ5K>(&kernels);
  AddQuantised<S, WeightType::kQ6K>(&kernels);
  kernels.floats[static_cast<int>(WeightType::kF32)] = FloatTile<S, WeightType::kF32>;
  kernels.floats[static_cast<int>(WeightType::kF16)] = FloatTile<S, WeightType::kF16>;
  kernels.floats[static_cast<int>(WeightType::kBF16)] = FloatTile<S, WeightType::kBF16>;
  kernels.silu_mul = SiluMulRow<S>;
  return kernels;
}

}  // namespace
}  // namespace mneme::kernels
