#include "kernels/paged_attention.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include "kernels/argument_check.h"

namespace mneme::kernels {
namespace {

using Write = void(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                   const at::Tensor&, const at::Tensor&, const at::Tensor&);
using Attend = void(const at::Tensor&, const std::optional<at::Tensor>&, const at::Tensor&,
                    const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                    const std::optional<at::Tensor>&, const std::optional<at::Tensor>&,
                    const std::optional<at::Tensor>&, const std::optional<at::Tensor>&, double,
                    const at::Tensor&);

void CheckBatch(const AttentionBatch& batch, const at::Tensor& pool, int64_t kv_heads,
                int64_t head_size, const char* op) {
  CheckRows(batch.seq_slot, at::kInt, 1, op, "seq_slot");
  CheckRows(batch.query_start, at::kInt, 1, op, "query_start");
  CheckSize(batch.query_start, 0, batch.seq_slot.size(0) + 1, op, "query_start");
  CheckRows(batch.page_table, at::kInt, 3, op, "page_table");
  CheckSize(batch.page_table, 1, kv_heads, op, "page_table");
  CheckType(batch.lengths, at::kInt, 2, op, "lengths");
  CheckSize(batch.lengths, 0, batch.page_table.size(0), op, "lengths");
  CheckSize(batch.lengths, 1, kv_heads, op, "lengths");
  TORCH_CHECK_VALUE(pool.defined() && pool.dim() == 2 && pool.is_contiguous(), op,
                    ": pool must be contiguous, [num_pages, page elements]");
  TORCH_CHECK_VALUE(pool.scalar_type() == at::kFloat || pool.scalar_type() == at::kBFloat16, op,
                    ": pool must be float32 or bfloat16, not ", pool.scalar_type());
  CheckSize(pool, 1, PageElements(head_size), op, "pool");
}

std::optional<at::Tensor> PerSequence(const at::Tensor& tensor, const AttentionBatch& batch,
                                      const char* name) {
  if (!tensor.defined()) return std::nullopt;
  CheckRows(tensor, at::kInt, 1, "paged_attention", name);
  CheckSize(tensor, 0, batch.seq_slot.size(0), "paged_attention", name);
  return tensor;
}

}  // namespace

void KvWrite(const at::Tensor& k, const at::Tensor& v, const AttentionBatch& batch,
             const at::Tensor& pool) {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("mneme::kv_write", "").typed<Write>();
  CheckRows(k, at::kFloat, 3, "kv_write", "k");
  CheckRows(v, at::kFloat, 3, "kv_write", "v");
  for (int64_t d = 0; d < 3; ++d) CheckSize(v, d, k.size(d), "kv_write", "v");
  CheckBatch(batch, pool, k.size(1), k.size(2), "kv_write");
  if (k.numel() == 0) return;
  op.call(k, v, batch.seq_slot, batch.query_start, batch.page_table, batch.lengths, pool);
}

void PagedAttentionOut(const at::Tensor& q, const at::Tensor& pool, const AttentionBatch& batch,
                       double scale, const at::Tensor& out,
                       const std::optional<at::Tensor>& q_sink) {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("mneme::paged_attention", "").typed<Attend>();
  CheckRows(q, at::kFloat, 3, "paged_attention", "q");
  CheckRows(out, at::kFloat, 3, "paged_attention", "out");
  if (q_sink.has_value()) CheckRows(*q_sink, at::kFloat, 3, "paged_attention", "q_sink");
  for (int64_t d = 0; d < 3; ++d) {
    CheckSize(out, d, q.size(d), "paged_attention", "out");
    if (q_sink.has_value()) CheckSize(*q_sink, d, q.size(d), "paged_attention", "q_sink");
  }
  TORCH_CHECK_VALUE(q.size(2) % 8 == 0 && q.size(2) > 0 && q.size(2) <= 256,
                    "paged_attention: the head size must be a multiple of 8 up to 256, not ",
                    q.size(2));
  TORCH_CHECK_VALUE(batch.page_table.defined() && batch.page_table.dim() == 3,
                    "paged_attention: page_table must have 3 dimensions");
  const int64_t kv_heads = batch.page_table.size(1);
  TORCH_CHECK_VALUE(kv_heads > 0 && q.size(1) % kv_heads == 0, "paged_attention: ", q.size(1),
                    " query heads are not a multiple of ", kv_heads, " kv heads");
  CheckBatch(batch, pool, kv_heads, q.size(2), "paged_attention");
  const auto window = PerSequence(batch.window, batch, "window");
  const auto sinks = PerSequence(batch.sinks, batch, "sinks");
  std::optional<at::Tensor> hidden;
  std::optional<at::Tensor> hidden_from;
  if (batch.hidden.defined()) {
    CheckRows(batch.hidden, at::kByte, 2, "paged_attention", "hidden");
    CheckSize(batch.hidden, 0, q.size(0), "paged_attention", "hidden");
    TORCH_CHECK_VALUE(batch.hidden_from.defined(), "paged_attention: hidden needs hidden_from");
    hidden = batch.hidden;
    hidden_from = PerSequence(batch.hidden_from, batch, "hidden_from");
  }
  if (q.numel() == 0) return;
  op.call(q, q_sink, pool, batch.seq_slot, batch.query_start, batch.page_table, batch.lengths,
          window, sinks, hidden, hidden_from, scale, out);
}

}  // namespace mneme::kernels

TORCH_LIBRARY_FRAGMENT(mneme, m) {
  m.def(
      "kv_write(Tensor k, Tensor v, Tensor seq_slot, Tensor query_start, Tensor page_table, "
      "Tensor lengths, Tensor(a!) pool) -> ()");
  m.def(
      "paged_attention(Tensor q, Tensor? q_sink, Tensor pool, Tensor seq_slot, Tensor query_start, "
      "Tensor page_table, Tensor lengths, Tensor? window, Tensor? sinks, Tensor? hidden, "
      "Tensor? hidden_from, float scale, Tensor(a!) out) -> ()");
}
