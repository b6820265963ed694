#include "kernels/rms_norm.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include "kernels/argument_check.h"

namespace mneme::kernels {

void RmsNormOut(const at::Tensor& x, const at::Tensor& weight, double eps, const at::Tensor& out) {
  static const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("mneme::rms_norm", "")
          .typed<void(const at::Tensor&, const at::Tensor&, double, const at::Tensor&)>();
  CheckRows(x, at::kFloat, 2, "rms_norm", "x");
  CheckRows(weight, at::kFloat, 1, "rms_norm", "weight");
  CheckRows(out, at::kFloat, 2, "rms_norm", "out");
  CheckSize(weight, 0, x.size(1), "rms_norm", "weight");
  CheckSize(out, 0, x.size(0), "rms_norm", "out");
  CheckSize(out, 1, x.size(1), "rms_norm", "out");
  if (x.numel() == 0) return;
  op.call(x, weight, eps, out);
}

}  // namespace mneme::kernels

TORCH_LIBRARY_FRAGMENT(mneme, m) {
  m.def("rms_norm(Tensor x, Tensor weight, float eps, Tensor(a!) out) -> ()");
}
