#include "kernels/attention_weights.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include <optional>

#include "kernels/argument_check.h"

namespace mneme::kernels {
namespace {

using Weights = void(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                     const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&,
                     const std::optional<at::Tensor>&, double, int64_t, int64_t, const at::Tensor&);

constexpr const char* kName = "attention_weights";

std::optional<at::Tensor> Optional(const at::Tensor& tensor) {
  return tensor.defined() ? std::optional(tensor) : std::nullopt;
}

}  // namespace

void AttentionWeightsOut(const at::Tensor& q, const at::Tensor& pool, const AttentionBatch& batch,
                         double scale, const AttentionRows& rows, const at::Tensor& out) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("mneme::attention_weights", "")
                             .typed<Weights>();
  CheckRows(q, at::kFloat, 3, kName, "q");
  CheckRows(batch.seq_slot, at::kInt, 1, kName, "seq_slot");
  CheckRows(batch.query_start, at::kInt, 1, kName, "query_start");
  CheckSize(batch.query_start, 0, batch.seq_slot.size(0) + 1, kName, "query_start");
  CheckRows(batch.page_table, at::kInt, 3, kName, "page_table");
  CheckType(batch.lengths, at::kInt, 2, kName, "lengths");
  const int64_t kv_heads = batch.page_table.size(1);
  CheckSize(batch.lengths, 1, kv_heads, kName, "lengths");
  TORCH_CHECK_VALUE(kv_heads > 0 && q.size(1) % kv_heads == 0, kName, ": ", q.size(1),
                    " query heads are not a multiple of ", kv_heads, " kv heads");
  TORCH_CHECK_VALUE(q.size(2) % 8 == 0 && q.size(2) > 0 && q.size(2) <= 256, kName,
                    ": the head size must be a multiple of 8 up to 256, not ", q.size(2));
  TORCH_CHECK_VALUE(pool.defined() && pool.dim() == 2 && pool.is_contiguous(), kName,
                    ": pool must be contiguous, [num_pages, page elements]");
  TORCH_CHECK_VALUE(pool.scalar_type() == at::kFloat || pool.scalar_type() == at::kBFloat16, kName,
                    ": pool must be float32 or bfloat16, not ", pool.scalar_type());
  CheckSize(pool, 1, PageElements(q.size(2)), kName, "pool");
  TORCH_CHECK_INDEX(rows.sequence >= 0 && rows.sequence < batch.seq_slot.size(0), kName,
                    ": no such sequence: ", rows.sequence);
  TORCH_CHECK_INDEX(rows.first_row >= 0 && rows.num_rows >= 0, kName,
                    ": no such rows: ", rows.first_row, " + ", rows.num_rows);
  CheckRows(out, at::kFloat, 3, kName, "out");
  TORCH_CHECK_VALUE(out.is_contiguous(), kName, ": out must be contiguous");
  CheckSize(out, 0, kv_heads, kName, "out");
  CheckSize(out, 1, rows.num_rows, kName, "out");
  if (out.numel() == 0) return;
  op.call(q, pool, batch.seq_slot, batch.query_start, batch.page_table, batch.lengths,
          Optional(batch.window), Optional(batch.sinks), scale, rows.sequence, rows.first_row, out);
}

}  // namespace mneme::kernels

TORCH_LIBRARY_FRAGMENT(mneme, m) {
  m.def(
      "attention_weights(Tensor q, Tensor pool, Tensor seq_slot, Tensor query_start, "
      "Tensor page_table, Tensor lengths, Tensor? window, Tensor? sinks, float scale, "
      "int sequence, int first_row, Tensor(a!) out) -> ()");
}
