#include "kernels/silu_mul.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include "kernels/argument_check.h"

namespace mneme::kernels {

void SiluMulOut(const at::Tensor& gate, const at::Tensor& up, const at::Tensor& out) {
  static const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("mneme::silu_mul", "")
          .typed<void(const at::Tensor&, const at::Tensor&, const at::Tensor&)>();
  CheckRows(gate, at::kFloat, 2, "silu_mul", "gate");
  CheckRows(up, at::kFloat, 2, "silu_mul", "up");
  CheckRows(out, at::kFloat, 2, "silu_mul", "out");
  for (int64_t d = 0; d < 2; ++d) {
    CheckSize(up, d, gate.size(d), "silu_mul", "up");
    CheckSize(out, d, gate.size(d), "silu_mul", "out");
  }
  if (gate.numel() == 0) return;
  op.call(gate, up, out);
}

}  // namespace mneme::kernels

TORCH_LIBRARY_FRAGMENT(mneme, m) {
  m.def("silu_mul(Tensor gate, Tensor up, Tensor(a!) out) -> ()");
}
