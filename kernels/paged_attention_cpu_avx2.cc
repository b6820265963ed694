#include "kernels/paged_attention_tile.h"
#include "kernels/simd_avx2.h"

namespace mneme::kernels {

const AttentionKernels& Avx2AttentionKernels() {
  static const AttentionKernels kernels = MakeAttentionKernels<Avx2>();
  return kernels;
}

}  // namespace mneme::kernels
