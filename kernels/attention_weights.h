// The attention that entries receive, for policies that judge entries by it (H2O, SnapKV, NAMM).
// PagedAttentionOut never forms these weights; a sequence whose policy wants none pays nothing.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "kernels/paged_attention.h"

namespace mneme::kernels {

// Some consecutive rows of one sequence of a step.
struct AttentionRows {
  int64_t sequence = 0;   // index into the batch's sequences
  int64_t first_row = 0;  // counted from the sequence's first row of the step
  int64_t num_rows = 0;
};

// out[h, i, j] = mean over the query heads of kv head h of softmax(scale q K^T)[row i, entry j]:
// what each entry receives of one query's attention. Entries that a row doesn't see get 0.
//   q    float32 [T, Hq, D], pool, batch: as PagedAttentionOut; the step's keys must have been
//        written. Windows count; a second query for sinks is not taken.
//   out  float32 [Hkv, num_rows, K], contiguous, K at least the largest entry index of the rows + 1
// A row's numbers do not depend, to the last bit, on the other rows, the other sequences or the
// number of threads. Memory: 24 rows of all entries per thread, whatever num_rows is. Wrong
// arguments throw c10::Error. Thread-safe as long as outputs do not overlap.
void AttentionWeightsOut(const at::Tensor& q, const at::Tensor& pool, const AttentionBatch& batch,
                         double scale, const AttentionRows& rows, const at::Tensor& out);

}  // namespace mneme::kernels
