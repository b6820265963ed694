#include "kernels/rotary.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include "kernels/argument_check.h"

namespace mneme::kernels {

void RotaryTableOut(const at::Tensor& positions, const at::Tensor& inv_freq, double scale,
                    const at::Tensor& cos, const at::Tensor& sin) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("mneme::rotary_table", "")
                             .typed<void(const at::Tensor&, const at::Tensor&, double,
                                         const at::Tensor&, const at::Tensor&)>();
  if (positions.scalar_type() != at::kInt) {
    CheckRows(positions, at::kLong, 1, "rotary_table", "positions");
  }
  CheckRows(positions, positions.scalar_type(), 1, "rotary_table", "positions");
  CheckRows(inv_freq, at::kDouble, 1, "rotary_table", "inv_freq");
  CheckRows(cos, at::kFloat, 2, "rotary_table", "cos");
  CheckRows(sin, at::kFloat, 2, "rotary_table", "sin");
  for (const at::Tensor* table : {&cos, &sin}) {
    CheckSize(*table, 0, positions.size(0), "rotary_table", "cos and sin");
    CheckSize(*table, 1, inv_freq.size(0), "rotary_table", "cos and sin");
    TORCH_CHECK_VALUE(table->is_contiguous(), "rotary_table: cos and sin must be contiguous");
  }
  if (cos.numel() == 0) return;
  op.call(positions, inv_freq, scale, cos, sin);
}

void RotaryOut(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin,
               const at::Tensor& out) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("mneme::rotary", "")
                             .typed<void(const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                         const at::Tensor&)>();
  CheckRows(x, at::kFloat, 3, "rotary", "x");
  CheckRows(out, at::kFloat, 3, "rotary", "out");
  for (int64_t d = 0; d < 3; ++d) CheckSize(out, d, x.size(d), "rotary", "out");
  CheckRows(cos, at::kFloat, 2, "rotary", "cos");
  CheckRows(sin, at::kFloat, 2, "rotary", "sin");
  CheckSize(cos, 0, x.size(0), "rotary", "cos");
  CheckSize(sin, 0, x.size(0), "rotary", "sin");
  CheckSize(sin, 1, cos.size(1), "rotary", "sin");
  TORCH_CHECK_VALUE(2 * cos.size(1) <= x.size(2), "rotary: the table turns ", 2 * cos.size(1),
                    " elements, a head has only ", x.size(2));
  TORCH_CHECK_VALUE(cos.is_contiguous() && sin.is_contiguous(),
                    "rotary: cos and sin must be contiguous");
  if (x.numel() == 0) return;
  op.call(x, cos, sin, out);
}

}  // namespace mneme::kernels

TORCH_LIBRARY_FRAGMENT(mneme, m) {
  m.def(
      "rotary_table(Tensor positions, Tensor inv_freq, float scale, Tensor(a!) cos, "
      "Tensor(b!) sin) -> ()");
  m.def("rotary(Tensor x, Tensor cos, Tensor sin, Tensor(a!) out) -> ()");
}
