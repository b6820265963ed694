#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <cmath>
#include <cstring>

#include "kernels/parallel.h"

namespace mneme::kernels {
namespace {

void RotaryTableCpu(const at::Tensor& positions, const at::Tensor& inv_freq, double scale,
                    const at::Tensor& cos, const at::Tensor& sin) {
  const int64_t width = inv_freq.size(0);
  const double* frequency = inv_freq.const_data_ptr<double>();
  const bool narrow = positions.scalar_type() == at::kInt;
  const void* position = positions.const_data_ptr();
  float* c = cos.mutable_data_ptr<float>();
  float* s = sin.mutable_data_ptr<float>();
  ParallelFor(positions.size(0), [&](int64_t t) {
    const auto p = static_cast<double>(narrow ? static_cast<const int32_t*>(position)[t]
                                              : static_cast<const int64_t*>(position)[t]);
    for (int64_t i = 0; i < width; ++i) {
      const double angle = p * frequency[i];
      c[t * width + i] = static_cast<float>(scale * std::cos(angle));
      s[t * width + i] = static_cast<float>(scale * std::sin(angle));
    }
  });
}

void RotateHead(const float* x, const float* cos, const float* sin, int64_t half, int64_t width,
                float* out) {
  for (int64_t i = 0; i < half; ++i) {
    const float a = x[i];
    const float b = x[i + half];
    out[i] = a * cos[i] - b * sin[i];
    out[i + half] = b * cos[i] + a * sin[i];
  }
  if (out != x) std::memcpy(out + 2 * half, x + 2 * half, (width - 2 * half) * sizeof(float));
}

void RotaryCpu(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin,
               const at::Tensor& out) {
  const int64_t heads = x.size(1);
  const int64_t half = cos.size(1);
  const float* c = cos.const_data_ptr<float>();
  const float* s = sin.const_data_ptr<float>();
  ParallelFor(x.size(0), [&](int64_t t) {
    const float* from = x.const_data_ptr<float>() + t * x.stride(0);
    float* to = out.mutable_data_ptr<float>() + t * out.stride(0);
    for (int64_t h = 0; h < heads; ++h) {
      RotateHead(from + h * x.stride(1), c + t * half, s + t * half, half, x.size(2),
                 to + h * out.stride(1));
    }
  });
}

}  // namespace
}  // namespace mneme::kernels

TORCH_LIBRARY_IMPL(mneme, CPU, m) {
  m.impl("rotary_table", mneme::kernels::RotaryTableCpu);
  m.impl("rotary", mneme::kernels::RotaryCpu);
}
