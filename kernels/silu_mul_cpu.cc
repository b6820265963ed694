#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include "kernels/linear_kernels.h"
#include "kernels/parallel.h"

namespace mneme::kernels {
namespace {

constexpr int64_t kRowsPerTask = 8;

void SiluMulCpu(const at::Tensor& gate, const at::Tensor& up, const at::Tensor& out) {
  const LinearKernels& kernels = CurrentLinearKernels();
  const int64_t rows = gate.size(0);
  const float* g = gate.const_data_ptr<float>();
  const float* u = up.const_data_ptr<float>();
  float* y = out.mutable_data_ptr<float>();
  ParallelFor((rows + kRowsPerTask - 1) / kRowsPerTask, [&](int64_t task) {
    for (int64_t r = task * kRowsPerTask; r < std::min(rows, (task + 1) * kRowsPerTask); ++r) {
      kernels.silu_mul(g + r * gate.stride(0), u + r * up.stride(0), gate.size(1),
                       y + r * out.stride(0));
    }
  });
}

}  // namespace
}  // namespace mneme::kernels

TORCH_LIBRARY_IMPL(mneme, CPU, m) { m.impl("silu_mul", mneme::kernels::SiluMulCpu); }
