#include "kernels/attention_weights_tile.h"
#include "kernels/simd_portable.h"

namespace mneme::kernels {

const AttentionWeightsKernels& PortableAttentionWeightsKernels() {
  static const AttentionWeightsKernels kernels = MakeAttentionWeightsKernels<Portable>();
  return kernels;
}

}  // namespace mneme::kernels
