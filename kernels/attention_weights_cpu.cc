// Divides the rows among the threads; the arithmetic is in attention_weights_tile.h.
#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "kernels/attention_weights.h"
#include "kernels/attention_weights_kernels.h"
#include "kernels/cpu_features.h"
#include "kernels/parallel.h"
#include "kernels/scratch.h"

namespace mneme::kernels {
namespace {

const AttentionWeightsKernels& Kernels(int64_t head_size) {
  const Variant variant = CurrentVariant();
  if (variant >= Variant::kAvx512Vnni && head_size % Avx512AttentionWeightsKernels().lanes == 0) {
    return Avx512AttentionWeightsKernels();
  }
  return variant == Variant::kPortable ? PortableAttentionWeightsKernels()
                                       : Avx2AttentionWeightsKernels();
}

// Some query heads of one row: kMaxTileQueries at most, or parts of several rows.
struct Task {
  AttentionTile tile;
  int64_t first_row = 0;  // of `out`
  int64_t group = 0;      // query heads in the tile per row
};

// Adds the tile's share to out [rows, K] of its kv head.
void AddTile(const AttentionWeightsKernels& kernels, bool half, const Task& task, float share,
             int64_t width, float* out) {
  const int rows = task.tile.num_queries;
  const int64_t splits = task.tile.own[rows - 1] / kSplitEntries + 1;
  const int64_t split_floats = rows * kSplitEntries;
  thread_local Scratch scratch;
  auto* const memory = static_cast<float*>(
      scratch.Get(splits * (split_floats + 2 * rows) * static_cast<int64_t>(sizeof(float))));
  float* const maxima = memory + splits * split_floats;  // [splits, rows]
  float* const totals = maxima + splits * rows;
  for (int64_t split = 0; split < splits; ++split) {
    kernels.weigh[half](task.tile, split, memory + split * split_floats, maxima + split * rows,
                        totals + split * rows);
  }
  for (int r = 0; r < rows; ++r) {
    float largest = 0;
    bool sees_any = false;
    for (int64_t split = 0; split < splits; ++split) {
      if (totals[split * rows + r] == 0) continue;
      const float maximum = maxima[split * rows + r];
      largest = sees_any ? std::max(largest, maximum) : maximum;
      sees_any = true;
    }
    if (!sees_any) continue;
    float total = 0;
    for (int64_t split = 0; split < splits; ++split) {
      if (totals[split * rows + r] == 0) continue;
      total += totals[split * rows + r] * std::exp(maxima[split * rows + r] - largest);
    }
    float* const row = out + (task.first_row + r / task.group) * width;
    for (int64_t split = 0; split < splits; ++split) {
      if (totals[split * rows + r] == 0) continue;
      const float factor = std::exp(maxima[split * rows + r] - largest) / total * share;
      const float* const weights = memory + split * split_floats + r * kSplitEntries;
      const int64_t first = split * kSplitEntries;
      const int64_t count = std::min(kSplitEntries, width - first);
      for (int64_t e = 0; e < count; ++e) row[first + e] += factor * weights[e];
    }
  }
}

void AttentionWeightsCpu(const at::Tensor& q, const at::Tensor& pool, const at::Tensor& seq_slot,
                         const at::Tensor& query_start, const at::Tensor& page_table,
                         const at::Tensor& lengths, const std::optional<at::Tensor>& window,
                         const std::optional<at::Tensor>& sinks, double scale, int64_t sequence,
                         int64_t first_row, const at::Tensor& out) {
  const int64_t heads = out.size(0);
  const int64_t num_rows = out.size(1);
  const int64_t width = out.size(2);
  const int64_t group = q.size(1) / heads;
  const int64_t slot = seq_slot.const_data_ptr<int32_t>()[sequence];
  const int32_t* const starts = query_start.const_data_ptr<int32_t>();
  TORCH_CHECK_INDEX(slot >= 0 && slot < page_table.size(0) && starts[sequence] >= 0 &&
                        starts[sequence + 1] <= q.size(0) &&
                        first_row + num_rows <= starts[sequence + 1] - starts[sequence],
                    "attention_weights: no such rows: ", first_row, " + ", num_rows, ", sequence ",
                    sequence);
  const int32_t* const length = lengths.const_data_ptr<int32_t>() + slot * lengths.stride(0);
  const int32_t* const table = page_table.const_data_ptr<int32_t>() + slot * page_table.stride(0);
  for (int64_t h = 0; h < heads; ++h) {
    const int64_t end = length[h * lengths.stride(1)] + first_row + num_rows;
    TORCH_CHECK_INDEX(end <= width && end <= page_table.size(2) * kPageEntries,
                      "attention_weights: head ", h, " has ", end, " entries, there is room for ",
                      width);
  }
  const AttentionWeightsKernels& kernels = Kernels(q.size(2));
  const bool half = pool.scalar_type() == at::kBFloat16;
  float* const output = out.mutable_data_ptr<float>();
  // Rows per task; where not even one row fits into a tile, its query heads come one tile after
  // the other.
  const int64_t rows_per_task = std::max<int64_t>(kMaxTileQueries / group, 1);
  const int64_t heads_per_tile = std::min<int64_t>(group, kMaxTileQueries);
  const int64_t pieces = (num_rows + rows_per_task - 1) / rows_per_task;
  ParallelFor(heads * pieces, [&](int64_t index) {
    const int64_t h = index / pieces;
    const int64_t begin = index % pieces * rows_per_task;
    const int64_t end = std::min(num_rows, begin + rows_per_task);
    float* const target = output + h * num_rows * width;
    std::fill(target + begin * width, target + end * width, 0.0f);
    for (int64_t first_head = 0; first_head < group; first_head += heads_per_tile) {
      Task task;
      task.first_row = begin;
      task.group = std::min(heads_per_tile, group - first_head);
      AttentionTile& tile = task.tile;
      tile.pool = pool.const_data_ptr();
      tile.pages = table + h * page_table.stride(1);
      tile.head_size = q.size(2);
      tile.scale = static_cast<float>(scale);
      tile.window = window.has_value() ? window->const_data_ptr<int32_t>()[sequence] : 0;
      tile.sinks = sinks.has_value() ? sinks->const_data_ptr<int32_t>()[sequence] : 0;
      for (int64_t row = begin; row < end; ++row) {
        for (int64_t g = 0; g < task.group; ++g) {
          const int i = tile.num_queries++;
          tile.query[i] = q.const_data_ptr<float>() +
                          (starts[sequence] + first_row + row) * q.stride(0) +
                          (h * group + first_head + g) * q.stride(1);
          tile.sink_query[i] = tile.query[i];
          tile.own[i] = length[h * lengths.stride(1)] + first_row + row;
        }
      }
      AddTile(kernels, half, task, 1 / static_cast<float>(group), width, target);
    }
  });
}

}  // namespace
}  // namespace mneme::kernels

TORCH_LIBRARY_IMPL(mneme, CPU, m) {
  m.impl("attention_weights", mneme::kernels::AttentionWeightsCpu);
}
