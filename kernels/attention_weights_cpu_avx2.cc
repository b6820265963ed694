#include "kernels/attention_weights_tile.h"
#include "kernels/simd_avx2.h"

namespace mneme::kernels {

const AttentionWeightsKernels& Avx2AttentionWeightsKernels() {
  static const AttentionWeightsKernels kernels = MakeAttentionWeightsKernels<Avx2>();
  return kernels;
}

}  // namespace mneme::kernels
