// The products of many rounded rows with AMX: 16 tokens times 16 rows times 32 columns at once. A
// packed block is a tile of the second operand as it lies, once its nibbles are spread.
//
// Bitwise equal to FastTile: integer sums are exact in any order, and the float sums run over the
// blocks in the same order with the same operations.
#include <algorithm>
#include <cstring>

#include "kernels/amx.h"
#include "kernels/linear_tile.h"
#include "kernels/simd_avx512.h"

namespace mneme::kernels {
namespace {

constexpr int kGroup = 16;                // tokens of a tile
constexpr int64_t kPanelBlocks = 32;      // 1024 columns: 16 KiB of bytes in the first-level cache
constexpr int64_t kVector = 64;           // bytes
constexpr int64_t kTotals = kGroup * 16;  // of one product
constexpr int kSumTiles = 4;              // tile registers that take sums in turn
constexpr int kRing = 8;                  // totals in memory
constexpr int kAhead = 5;                 // products between the store of totals and their use

// A panel of a packed tile, spread to one byte per quant, with its scales as floats.
template <WeightType kType>
struct Panel {
  using T = Tile<Avx512, kType>;

  void Fill(const T& tile, int64_t first_block, int64_t num_blocks) {
    for (int64_t b = 0; b < num_blocks; ++b) {
      Unroll<0, 8>([&]<int step>() {
        _mm512_store_si512(quants[b][step], tile.template Step<step>(first_block + b, 0));
      });
      Unroll<0, T::kSubs>([&]<int sub>() {
        __m512 scale;
        __m512 min;
        tile.Scale(first_block + b, sub, 0, &scale, &min);
        _mm512_store_ps(scales[b * T::kSubs + sub], scale);
        if constexpr (T::kHasMin) _mm512_store_ps(mins[b * T::kSubs + sub], min);
      });
    }
  }

  alignas(64) uint8_t quants[kPanelBlocks][8][kVector];
  alignas(64) float scales[kPanelBlocks * T::kSubs][16];
  alignas(64) float mins[T::kHasMin ? kPanelBlocks * T::kSubs : 1][16];
};

// Where the floats of 16 rounded rows lie; see RoundedRow.
struct GroupFloats {
  const float* scales;
  const float* sums;  // of blocks or, with two scales a block, of half blocks
  int64_t stride;     // floats
};

// totals = 16 rounded rows times the columns of one product.
template <WeightType kType, int kSlot>
__attribute__((always_inline)) inline void Multiply(const uint8_t* rows, int64_t stride,
                                                    const uint8_t* quants, int32_t* totals) {
  constexpr int kSum = kSlot % kSumTiles;
  constexpr int kA = kSumTiles + kSlot % 2;
  constexpr int kB = kSumTiles + 2 + kSlot % 2;
  AmxZero<kSum>();
  AmxLoad<kA>(rows, stride);
  AmxLoad<kB>(quants, kVector);
  AmxDot<kSum, kA, kB, Tile<Avx512, kType>::kSigned>();
  AmxStore<kSum>(totals, kVector);
}

// sums += the columns of a panel, for 16 tokens whose quants of the panel begin at `rows`.
template <WeightType kType>
void AddPanel(const Panel<kType>& panel, int64_t first_block, int64_t num_blocks,
              const uint8_t* rows, int64_t stride, const GroupFloats& floats, float* sums) {
  using T = Tile<Avx512, kType>;
  constexpr int kColumns = static_cast<int>(kBlock) / T::kSubs;  // of one product
  alignas(64) int32_t totals[kRing][kTotals];
  const int64_t num_products = num_blocks * T::kSubs;
  const uint8_t* const quants = panel.quants[0][0];
  const int64_t float_stride = floats.stride;
  const float* const token_scales = floats.scales + first_block;
  const float* const token_sums = floats.sums + first_block * T::kSubs;
  // Totals are not forwarded from a tile store to a load: whoever reads them waits until the store
  // has reached the cache. So several products are under way.
  Unroll<0, kAhead>([&]<int i>() __attribute__((always_inline)) {
    if (i < num_products) {
      Multiply<kType, i>(rows + i * kColumns, stride, quants + i * kColumns * 16, totals[i]);
    }
  });
  __m512 sum[kGroup];
  Unroll<0, kGroup>([&]<int t>() __attribute__((always_inline)) {
    sum[t] = _mm512_loadu_ps(sums + t * 16);
  });
  for (int64_t p = 0; p < num_products; p += kRing) {
    Unroll<0, kRing>([&]<int i>() __attribute__((always_inline)) {
      const int64_t next = p + i + kAhead;
      if (next < num_products) {
        constexpr int kSlot = (i + kAhead) % kRing;
        Multiply<kType, kSlot>(rows + next * kColumns, stride, quants + next * kColumns * 16,
                               totals[kSlot]);
      }
      if (p + i >= num_products) return;
      const __m512 scale = _mm512_load_ps(panel.scales[p + i]);
      const float* const scales = token_scales + (p + i) / T::kSubs;
      const float* const block_sums = token_sums + p + i;
      Unroll<0, kGroup>([&]<int t>() __attribute__((always_inline)) {
        const __m512 total = _mm512_cvtepi32_ps(_mm512_load_si512(totals[i] + t * 16));
        const __m512 a = _mm512_set1_ps(scales[t * float_stride]);
        sum[t] = _mm512_fmadd_ps(total, _mm512_mul_ps(scale, a), sum[t]);
        if constexpr (T::kHasMin) {
          const __m512 s = _mm512_set1_ps(block_sums[t * float_stride]);
          sum[t] = _mm512_fmadd_ps(_mm512_load_ps(panel.mins[p + i]), s, sum[t]);
        }
      });
    });
  }
  Unroll<0, kGroup>([&]<int t>() __attribute__((always_inline)) {
    _mm512_storeu_ps(sums + t * 16, sum[t]);
  });
}

template <WeightType kType>
constexpr AmxConfig ConfigOf() {
  constexpr int kColumns = static_cast<int>(kBlock) / Tile<Avx512, kType>::kSubs;
  AmxConfig config;
  for (int slot = 0; slot < kSumTiles; ++slot) config.Set(slot, kGroup, kVector);
  for (int i = 0; i < 2; ++i) {
    config.Set(kSumTiles + i, kGroup, kColumns);
    config.Set(kSumTiles + 2 + i, kColumns / 4, kVector);
  }
  return config;
}

template <WeightType kType>
void ManyTile(const uint8_t* packed, int64_t k, const uint8_t* rows, int64_t stride, int tokens,
              float* sums) {
  using T = Tile<Avx512, kType>;
  static constexpr AmxConfig kConfig = ConfigOf<kType>();
  const T tile(packed, k);
  const int groups = (tokens + kGroup - 1) / kGroup;
  std::memset(sums, 0, static_cast<size_t>(groups) * kTotals * sizeof(float));
  Panel<kType> panel;
  AmxConfigure(kConfig);
  for (int64_t first = 0; first < k / kBlock; first += kPanelBlocks) {
    const int64_t count = std::min(kPanelBlocks, k / kBlock - first);
    panel.Fill(tile, first, count);
    for (int g = 0; g < groups; ++g) {
      const uint8_t* group = rows + g * kGroup * stride;
      const float* scales = RoundedRow::Scale(group, k);
      const GroupFloats floats = {
          scales, scales + (T::kSubs == 1 ? RoundedRow::Sum(k) : RoundedRow::HalfSum(k)),
          stride / static_cast<int64_t>(sizeof(float))};
      AddPanel<kType>(panel, first, count, group + first * kBlock, stride, floats,
                      sums + g * kTotals);
    }
  }
  AmxRelease();
}

LinearKernels MakeAmxLinearKernels() {
  LinearKernels kernels = Avx512LinearKernels();
  const auto set = [&]<WeightType kType>() {
    kernels.many[static_cast<int>(kType)] = ManyTile<kType>;
  };
  set.template operator()<WeightType::kQ8_0>();
  set.template operator()<WeightType::kQ4_0>();
  set.template operator()<WeightType::kQ4_1>();
  set.template operator()<WeightType::kQ5_0>();
  set.template operator()<WeightType::kQ5_1>();
  set.template operator()<WeightType::kQ4K>();
  set.template operator()<WeightType::kQ5K>();
  set.template operator()<WeightType::kQ6K>();
  return kernels;
}

}  // namespace

const LinearKernels& AmxLinearKernels() {
  static const LinearKernels kernels = MakeAmxLinearKernels();
  return kernels;
}

}  // namespace mneme::kernels
