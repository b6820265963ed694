#include "kernels/linear_tile.h"
#include "kernels/simd_portable.h"

namespace mneme::kernels {

const LinearKernels& PortableLinearKernels() {
  static const LinearKernels kernels = MakeLinearKernels<Portable>();
  return kernels;
}

}  // namespace mneme::kernels
