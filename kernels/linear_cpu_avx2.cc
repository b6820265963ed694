#include "kernels/linear_tile.h"
#include "kernels/simd_avx2.h"

namespace mneme::kernels {

const LinearKernels& Avx2LinearKernels() {
  static const LinearKernels kernels = MakeLinearKernels<Avx2>();
  return kernels;
}

}  // namespace mneme::kernels
