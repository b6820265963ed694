#include "kernels/paged_attention_tile.h"
#include "kernels/simd_portable.h"

namespace mneme::kernels {

const AttentionKernels& PortableAttentionKernels() {
  static const AttentionKernels kernels = MakeAttentionKernels<Portable>();
  return kernels;
}

}  // namespace mneme::kernels
