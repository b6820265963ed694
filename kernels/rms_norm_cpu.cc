#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <cmath>

#include "kernels/parallel.h"

namespace mneme::kernels {
namespace {

// Rows per task: one row is a fraction of a microsecond.
constexpr int64_t kRowsPerTask = 16;

void RmsNormRow(const float* x, const float* weight, float eps, int64_t width, float* out) {
  // Eight partial sums: wide enough for the compiler to use vectors, and one fixed order.
  float partial[8] = {};
  int64_t j = 0;
  for (; j + 8 <= width; j += 8) {
    for (int i = 0; i < 8; ++i) partial[i] += x[j + i] * x[j + i];
  }
  for (int i = 0; j < width; ++j, ++i) partial[i] += x[j] * x[j];
  const float sum = ((partial[0] + partial[4]) + (partial[1] + partial[5])) +
                    ((partial[2] + partial[6]) + (partial[3] + partial[7]));
  const float scale = 1.0f / std::sqrt(sum / static_cast<float>(width) + eps);
  for (j = 0; j < width; ++j) out[j] = x[j] * scale * weight[j];
}

void RmsNormCpu(const at::Tensor& x, const at::Tensor& weight, double eps, const at::Tensor& out) {
  const int64_t rows = x.size(0);
  const int64_t width = x.size(1);
  const float* in = x.const_data_ptr<float>();
  const float* w = weight.const_data_ptr<float>();
  float* y = out.mutable_data_ptr<float>();
  const int64_t x_stride = x.stride(0);
  const int64_t y_stride = out.stride(0);
  ParallelFor((rows + kRowsPerTask - 1) / kRowsPerTask, [&](int64_t task) {
    const int64_t end = std::min(rows, (task + 1) * kRowsPerTask);
    for (int64_t r = task * kRowsPerTask; r < end; ++r) {
      RmsNormRow(in + r * x_stride, w, static_cast<float>(eps), width, y + r * y_stride);
    }
  });
}

}  // namespace
}  // namespace mneme::kernels

TORCH_LIBRARY_IMPL(mneme, CPU, m) { m.impl("rms_norm", mneme::kernels::RmsNormCpu); }
