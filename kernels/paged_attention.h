// Causal attention over key/value pages, for a step in which every sequence brings any number of
// new tokens: one (decode) or a chunk of a prompt (prefill), mixed freely.
//
// A page holds kPageEntries entries of one (layer, kv head) of one sequence: the keys transposed,
// [D, 16], then the values, [16, D]; so a page is a row of 32 * D elements of the pool, float32 or
// bfloat16. Entry j of a (sequence, head) lies in its page j / 16 at j % 16. The pages of a
// sequence are listed in page_table; -1 is a page that was released: its entries are invisible.
//
// The result of a query does not depend, to the last bit, on the other queries of the call, on how
// a prompt was cut into chunks, nor on the number of threads: the entries it sees are reduced in
// splits of kSplitEntries, counted from entry 0, always combined in the same order.
//
// Wrong arguments throw c10::Error; page numbers and lengths are trusted where checking them would
// cost a pass over the table, except that the pages which the step writes must exist. Thread-safe
// as long as outputs do not overlap.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

#include "kernels/paged_attention_layout.h"

namespace mneme::kernels {

// What a step consists of, for one layer. Row r of q, k and v belongs to the sequence s with
// query_start[s] <= r < query_start[s + 1], whose state is slot seq_slot[s]; its entry index, per
// kv head, is lengths[slot, head] + r - query_start[s].
struct AttentionBatch {
  at::Tensor seq_slot;     // int32 [S]
  at::Tensor query_start;  // int32 [S + 1], from 0, not decreasing, the last is the row count
  at::Tensor page_table;   // int32 [slots, Hkv, max_pages], any strides but 1 in the last dimension
  at::Tensor lengths;      // int32 [slots, Hkv], any strides: entries present BEFORE the step
  at::Tensor window;       // int32 [S] or undefined: query i sees entries j > i - window; 0 = all
  at::Tensor sinks;        // int32 [S] or undefined: entries j < sinks are visible in any window
  // Masks that no rule gives, or undefined: uint8 [T, C]; entry hidden_from[s] + c of row r is
  // hidden where hidden[r, c] is not 0. Entries before hidden_from[s], or C and more behind it, are
  // not concerned.
  at::Tensor hidden;
  at::Tensor hidden_from;  // int32 [S]; needed with `hidden`
};

// Writes the new keys (already rotated) and values into their pages, converting to the pool's type.
//   k, v float32 [T, Hkv, D], any strides but 1 in the last dimension
//   pool float32 or bfloat16 [num_pages, PageElements(D)]
void KvWrite(const at::Tensor& k, const at::Tensor& v, const AttentionBatch& batch,
             const at::Tensor& pool);

// out = softmax(scale * q K^T) V over the entries that each query sees, its own included, so the
// step's keys and values must have been written before. A query that sees nothing gets zeros.
//   q, out float32 [T, Hq, D], Hq a multiple of Hkv, any strides but 1 in the last dimension
//   q_sink like q, optional: the query to use for the first `sinks` entries of its sequence (the
//   same
//          query rotated to another position: StreamingLLM)
// D must be a multiple of 8 and at most 256.
void PagedAttentionOut(const at::Tensor& q, const at::Tensor& pool, const AttentionBatch& batch,
                       double scale, const at::Tensor& out,
                       const std::optional<at::Tensor>& q_sink = std::nullopt);

}  // namespace mneme::kernels
