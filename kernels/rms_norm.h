// Root mean square normalisation: out = x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich
// 2019, equation 4). The mean is kept in float32 and summed in a fixed order per row. Wrong
// arguments throw c10::Error. Thread-safe.
#pragma once

#include <ATen/core/Tensor.h>

namespace mneme::kernels {

// x, out float32 [M, W] (rows may be strided, out may be x); weight float32 [W].
void RmsNormOut(const at::Tensor& x, const at::Tensor& weight, double eps, const at::Tensor& out);

}  // namespace mneme::kernels
