#include "kernels/paged_attention_tile.h"
#include "kernels/simd_avx512.h"

namespace mneme::kernels {

const AttentionKernels& Avx512AttentionKernels() {
  static const AttentionKernels kernels = MakeAttentionKernels<Avx512>();
  return kernels;
}

}  // namespace mneme::kernels
