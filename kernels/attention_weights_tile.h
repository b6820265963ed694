// The inner loop of attention_weights.h over an instruction set S (simd_*.h); scores and softmax
// are those of paged_attention_tile.h.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/attention_weights_kernels.h"
#include "kernels/paged_attention_tile.h"

namespace mneme::kernels {
namespace {

template <typename S, bool kHalf>
void Weigh(const AttentionTile& tile, int64_t split, float* weights, float* maxima, float* totals) {
  const int rows = tile.num_queries;
  const int64_t page_bytes = PageElements(tile.head_size) * Page<S, kHalf>::kSize;
  uint32_t masks[kMaxTileQueries][kSplitPages];
  for (int p = 0; p < kSplitPages; ++p) {
    const int64_t base = split * kSplitEntries + p * kPageEntries;
    uint32_t any = 0;
    for (int r = 0; r < rows; ++r) {
      masks[r][p] = VisibleMask(tile, tile.own[r], base);
      any |= masks[r][p];
    }
    // Past the last visible page the table may end.
    const int32_t number = any == 0 ? -1 : tile.pages[base / kPageEntries];
    if (number < 0) {
      for (int r = 0; r < rows; ++r) masks[r][p] = 0;
    } else {
      ScoreRows<S, kHalf>(static_cast<const uint8_t*>(tile.pool) + number * page_bytes,
                          tile.head_size, tile.query, rows, tile.scale, weights + p * kPageEntries);
    }
  }
  for (int r = 0; r < rows; ++r) {
    float* const row = weights + r * kSplitEntries;
    uint32_t any = 0;
    for (int p = 0; p < kSplitPages; ++p) any |= masks[r][p];
    maxima[r] = 0;
    totals[r] = any == 0 ? 0 : Softmax<S>(masks[r], row, &maxima[r]);
    for (int p = 0; p < kSplitPages; ++p) {
      if (masks[r][p] == 0) std::memset(row + p * kPageEntries, 0, kPageEntries * sizeof(float));
    }
  }
}

template <typename S>
AttentionWeightsKernels MakeAttentionWeightsKernels() {
  return {S::kLanes, {Weigh<S, false>, Weigh<S, true>}};
}

}  // namespace
}  // namespace mneme::kernels
