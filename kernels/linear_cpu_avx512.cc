#include "kernels/linear_tile.h"
#include "kernels/simd_avx512.h"

namespace mneme::kernels {

const LinearKernels& Avx512LinearKernels() {
  static const LinearKernels kernels = MakeLinearKernels<Avx512>();
  return kernels;
}

}  // namespace mneme::kernels
