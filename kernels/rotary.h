// Rotary position embedding, half-split form (Su et al. 2021; the layout of Hugging Face's Llama):
// of the first R = 2 * cos.size(1) elements of a head, element i and element i + R/2 are turned by
// the angle position * inv_freq[i]. Angles are computed in double, so that positions in the
// millions stay exact. Wrong arguments throw c10::Error. Thread-safe.
#pragma once

#include <ATen/core/Tensor.h>

namespace mneme::kernels {

// Fills the table for a step: cos[t, i] = scale * cos(positions[t] * inv_freq[i]), sin likewise.
//   positions int32 or int64 [T]; inv_freq float64 [R/2]; cos, sin float32 [T, R/2] contiguous
void RotaryTableOut(const at::Tensor& positions, const at::Tensor& inv_freq, double scale,
                    const at::Tensor& cos, const at::Tensor& sin);

// out = x turned by the table. x, out float32 [T, H, D], any strides but 1 in the last dimension;
// out may be x.
void RotaryOut(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin,
               const at::Tensor& out);

}  // namespace mneme::kernels
