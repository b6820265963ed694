#include "kernels/linear.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include <numeric>

#include "kernels/argument_check.h"

namespace mneme::kernels {
namespace {

using Pack = at::Tensor(const at::Tensor&, int64_t, int64_t, int64_t,
                        const std::optional<at::Tensor>&);
using Linear = void(const at::Tensor&, at::TensorList, at::IntArrayRef, at::IntArrayRef,
                    const std::optional<at::Tensor>&, bool, bool, const at::Tensor&);
using LinearSiluMul = void(const at::Tensor&, at::TensorList, at::IntArrayRef, at::IntArrayRef,
                           bool, const at::Tensor&);
using Embedding = void(const at::Tensor&, at::TensorList, at::IntArrayRef, at::IntArrayRef,
                       const at::Tensor&);

template <typename Signature>
c10::TypedOperatorHandle<Signature> Find(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

void CheckInput(const at::Tensor& x, const PackedLinear& weight, const char* op) {
  CheckRows(x, at::kFloat, 2, op, "x");
  TORCH_CHECK_VALUE(!weight.data().empty(), op, ": weight is empty");
  CheckSize(x, 1, weight.k(), op, "x");
}

}  // namespace

PackedLinear PackedLinear::Create(const std::vector<WeightRows>& segments, int64_t k) {
  static const auto pack = Find<Pack>("mneme::pack_weight");
  TORCH_CHECK_VALUE(!segments.empty(), "PackedLinear: no segment given");
  TORCH_CHECK_VALUE(k > 0, "PackedLinear: k must be positive, not ", k);
  PackedLinear result;
  result.k_ = k;
  for (const WeightRows& segment : segments) {
    CheckType(segment.data, at::kByte, 1, "PackedLinear", "data");
    TORCH_CHECK_VALUE(segment.data.is_contiguous(), "PackedLinear: data must be contiguous");
    TORCH_CHECK_VALUE(segment.rows >= 0, "PackedLinear: negative row count ", segment.rows);
    const int64_t row_bytes = RowBytes(segment.type, k);
    std::optional<at::Tensor> order;
    if (segment.row_order.defined()) {
      CheckRows(segment.row_order, at::kLong, 1, "PackedLinear", "row_order");
      CheckSize(segment.row_order, 0, segment.rows, "PackedLinear", "row_order");
      order = segment.row_order;
    }
    TORCH_CHECK_VALUE(segment.data.numel() == segment.rows * row_bytes,
                      "PackedLinear: ", WeightTypeName(segment.type), " matrix of ", segment.rows,
                      " x ", k, " needs ", segment.rows * row_bytes, " bytes, not ",
                      segment.data.numel());
    result.data_.push_back(
        pack.call(segment.data, static_cast<int64_t>(segment.type), segment.rows, k, order));
    result.types_.push_back(static_cast<int64_t>(segment.type));
    result.rows_.push_back(segment.rows);
    result.n_ += segment.rows;
  }
  return result;
}

int64_t PackedLinear::num_bytes() const {
  return std::accumulate(data_.begin(), data_.end(), int64_t{0},
                         [](int64_t sum, const at::Tensor& t) { return sum + t.numel(); });
}

void LinearOut(const at::Tensor& x, const PackedLinear& weight, Precision precision,
               const at::Tensor& out, const std::optional<at::Tensor>& bias, bool accumulate) {
  static const auto linear = Find<Linear>("mneme::linear");
  CheckInput(x, weight, "linear");
  CheckRows(out, at::kFloat, 2, "linear", "out");
  CheckSize(out, 0, x.size(0), "linear", "out");
  CheckSize(out, 1, weight.n(), "linear", "out");
  if (bias.has_value()) {
    CheckRows(*bias, at::kFloat, 1, "linear", "bias");
    CheckSize(*bias, 0, weight.n(), "linear", "bias");
  }
  if (x.size(0) == 0) return;
  linear.call(x, weight.data(), weight.types(), weight.rows(), bias, accumulate,
              precision == Precision::kFast, out);
}

void LinearSiluMulOut(const at::Tensor& x, const PackedLinear& weight, Precision precision,
                      const at::Tensor& out) {
  static const auto linear = Find<LinearSiluMul>("mneme::linear_silu_mul");
  CheckInput(x, weight, "linear_silu_mul");
  TORCH_CHECK_VALUE(weight.rows().size() == 2 && weight.rows()[0] == weight.rows()[1],
                    "linear_silu_mul: weight must be two matrices of equal height, gate and up");
  CheckRows(out, at::kFloat, 2, "linear_silu_mul", "out");
  CheckSize(out, 0, x.size(0), "linear_silu_mul", "out");
  CheckSize(out, 1, weight.rows()[0], "linear_silu_mul", "out");
  if (x.size(0) == 0) return;
  linear.call(x, weight.data(), weight.types(), weight.rows(), precision == Precision::kFast, out);
}

void EmbeddingOut(const at::Tensor& ids, const PackedLinear& weight, const at::Tensor& out) {
  static const auto embedding = Find<Embedding>("mneme::embedding");
  TORCH_CHECK_VALUE(!weight.data().empty(), "embedding: weight is empty");
  if (ids.scalar_type() != at::kInt) CheckRows(ids, at::kLong, 1, "embedding", "ids");
  CheckRows(ids, ids.scalar_type(), 1, "embedding", "ids");
  CheckRows(out, at::kFloat, 2, "embedding", "out");
  CheckSize(out, 0, ids.size(0), "embedding", "out");
  CheckSize(out, 1, weight.k(), "embedding", "out");
  if (ids.size(0) == 0) return;
  embedding.call(ids, weight.data(), weight.types(), weight.rows(), out);
}

}  // namespace mneme::kernels

TORCH_LIBRARY_FRAGMENT(mneme, m) {
  m.def("pack_weight(Tensor data, int type, int rows, int k, Tensor? row_order) -> Tensor");
  m.def(
      "linear(Tensor x, Tensor[] weights, int[] types, int[] rows, Tensor? bias, bool accumulate, "
      "bool fast, Tensor(a!) out) -> ()");
  m.def(
      "linear_silu_mul(Tensor x, Tensor[] weights, int[] types, int[] rows, bool fast, "
      "Tensor(a!) out) -> ()");
  m.def("embedding(Tensor ids, Tensor[] weights, int[] types, int[] rows, Tensor(a!) out) -> ()");
}
