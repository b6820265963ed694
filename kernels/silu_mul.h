// The gate of a SwiGLU block: out = gate / (1 + exp(-gate)) * up. Wrong arguments throw c10::Error.
// Thread-safe.
#pragma once

#include <ATen/core/Tensor.h>

namespace mneme::kernels {

// gate, up, out float32 [M, W]; rows may be strided, e.g. two halves of one [M, 2W] tensor.
void SiluMulOut(const at::Tensor& gate, const at::Tensor& up, const at::Tensor& out);

}  // namespace mneme::kernels
