#include "kernels/attention_weights_tile.h"
#include "kernels/simd_avx512.h"

namespace mneme::kernels {

const AttentionWeightsKernels& Avx512AttentionWeightsKernels() {
  static const AttentionWeightsKernels kernels = MakeAttentionWeightsKernels<Avx512>();
  return kernels;
}

}  // namespace mneme::kernels
