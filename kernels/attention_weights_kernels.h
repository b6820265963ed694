// The inner loop of attention_weights.h for one instruction set, as a table.
#pragma once

#include <cstdint>

#include "kernels/paged_attention_kernels.h"

namespace mneme::kernels {

struct AttentionWeightsKernels {
  int lanes;  // the head size must be a multiple
  // weights[r][0 .. kSplitEntries) = e^(score - maxima[r]) of the split's entries for query r of
  // the tile, 0 where it doesn't see them; totals[r] their sum, 0 if it sees none. Index: 0 float32
  // pages, 1 bfloat16.
  void (*weigh[2])(const AttentionTile& tile, int64_t split, float* weights, float* maxima,
                   float* totals);
};

const AttentionWeightsKernels& PortableAttentionWeightsKernels();
const AttentionWeightsKernels& Avx2AttentionWeightsKernels();
const AttentionWeightsKernels& Avx512AttentionWeightsKernels();

}  // namespace mneme::kernels
