#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <cmath>

#include "kernels/parallel.h"

namespace mneme::kernels {
namespace {

void SiluMulCpu(const at::Tensor& gate, const at::Tensor& up, const at::Tensor& out) {
  const int64_t width = gate.size(1);
  ParallelFor(gate.size(0), [&](int64_t r) {
    const float* g = gate.const_data_ptr<float>() + r * gate.stride(0);
    const float* u = up.const_data_ptr<float>() + r * up.stride(0);
    float* y = out.mutable_data_ptr<float>() + r * out.stride(0);
    for (int64_t j = 0; j < width; ++j) y[j] = g[j] / (1.0f + std::exp(-g[j])) * u[j];
  });
}

}  // namespace
}  // namespace mneme::kernels

TORCH_LIBRARY_IMPL(mneme, CPU, m) { m.impl("silu_mul", mneme::kernels::SiluMulCpu); }
