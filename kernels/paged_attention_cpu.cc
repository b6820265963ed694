#include <ATen/core/Tensor.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Exception.h>
#include <torch/library.h>

#include <cmath>
#include <limits>
#include <vector>

#include "kernels/paged_attention.h"
#include "kernels/parallel.h"

namespace mneme::kernels {
namespace {

// Raw views of the batch tensors: element access through at::Tensor costs too much here.
struct Batch {
  Batch(const at::Tensor& seq_slot, const at::Tensor& query_start, const at::Tensor& page_table,
        const at::Tensor& lengths, int64_t rows, int64_t num_pages, const char* op)
      : num_sequences(seq_slot.size(0)),
        max_pages(page_table.size(2)),
        slot(seq_slot.const_data_ptr<int32_t>()),
        start(query_start.const_data_ptr<int32_t>()),
        table(page_table.const_data_ptr<int32_t>()),
        length(lengths.const_data_ptr<int32_t>()),
        table_strides{page_table.stride(0), page_table.stride(1)},
        length_strides{lengths.stride(0), lengths.stride(1)} {
    TORCH_CHECK_VALUE(start[0] == 0 && start[num_sequences] == rows, op,
                      ": query_start must go from 0 to the row count ", rows);
    for (int64_t s = 0; s < num_sequences; ++s) {
      TORCH_CHECK_VALUE(start[s] <= start[s + 1], op, ": query_start decreases at sequence ", s);
      TORCH_CHECK_INDEX(slot[s] >= 0 && slot[s] < page_table.size(0), op, ": slot ", slot[s],
                        " is not one of ", page_table.size(0));
      if (start[s] == start[s + 1]) continue;
      for (int64_t h = 0; h < page_table.size(1); ++h) {
        const int64_t first = Length(s, h);
        const int64_t end = first + start[s + 1] - start[s];
        TORCH_CHECK_INDEX(first >= 0 && end <= max_pages * kPageEntries, op, ": sequence ", s,
                          " needs ", end, " entries, its page table has room for ",
                          max_pages * kPageEntries);
        const int32_t* pages = Pages(s, h);
        for (int64_t p = first / kPageEntries; p * kPageEntries < end; ++p) {
          TORCH_CHECK_INDEX(pages[p] >= 0 && pages[p] < num_pages, op, ": sequence ", s,
                            " has no page for its new entries at ", p * kPageEntries);
        }
      }
    }
  }

  int64_t Length(int64_t s, int64_t head) const {
    return length[slot[s] * length_strides[0] + head * length_strides[1]];
  }
  const int32_t* Pages(int64_t s, int64_t head) const {
    return table + slot[s] * table_strides[0] + head * table_strides[1];
  }

  int64_t num_sequences;
  int64_t max_pages;
  const int32_t* slot;
  const int32_t* start;
  const int32_t* table;
  const int32_t* length;
  int64_t table_strides[2];
  int64_t length_strides[2];
};

template <typename T>
void WriteAll(const at::Tensor& k, const at::Tensor& v, const Batch& batch, T* pool) {
  const int64_t heads = k.size(1);
  const int64_t width = k.size(2);
  for (int64_t s = 0; s < batch.num_sequences; ++s) {
    for (int64_t h = 0; h < heads; ++h) {
      for (int64_t r = batch.start[s]; r < batch.start[s + 1]; ++r) {
        const int64_t j = batch.Length(s, h) + r - batch.start[s];
        T* page = pool + batch.Pages(s, h)[j / kPageEntries] * PageElements(width);
        const int64_t e = j % kPageEntries;
        const float* key = k.const_data_ptr<float>() + r * k.stride(0) + h * k.stride(1);
        const float* value = v.const_data_ptr<float>() + r * v.stride(0) + h * v.stride(1);
        for (int64_t d = 0; d < width; ++d) {
          page[d * kPageEntries + e] = static_cast<T>(key[d]);
          page[(kPageEntries + e) * width + d] = static_cast<T>(value[d]);
        }
      }
    }
  }
}

void KvWriteCpu(const at::Tensor& k, const at::Tensor& v, const at::Tensor& seq_slot,
                const at::Tensor& query_start, const at::Tensor& page_table,
                const at::Tensor& lengths, const at::Tensor& pool) {
  const Batch batch(seq_slot, query_start, page_table, lengths, k.size(0), pool.size(0),
                    "kv_write");
  if (pool.scalar_type() == at::kFloat) {
    WriteAll(k, v, batch, pool.mutable_data_ptr<float>());
  } else {
    WriteAll(k, v, batch, pool.mutable_data_ptr<c10::BFloat16>());
  }
}

template <typename T>
void AttendAll(const at::Tensor& q, const std::optional<at::Tensor>& q_sink, const Batch& batch,
               const int32_t* window, const int32_t* sinks, float scale, int64_t kv_heads,
               const T* pool, const at::Tensor& out) {
  const int64_t width = q.size(2);
  const int64_t group = q.size(1) / kv_heads;
  for (int64_t s = 0; s < batch.num_sequences; ++s) {
    const int64_t num_sinks = sinks == nullptr ? 0 : sinks[s];
    for (int64_t head = 0; head < q.size(1); ++head) {
      const int32_t* pages = batch.Pages(s, head / group);
      for (int64_t r = batch.start[s]; r < batch.start[s + 1]; ++r) {
        const int64_t own = batch.Length(s, head / group) + r - batch.start[s];
        const int64_t from =
            window == nullptr || window[s] <= 0 ? 0 : std::max<int64_t>(0, own - window[s] + 1);
        const float* query = q.const_data_ptr<float>() + r * q.stride(0) + head * q.stride(1);
        const float* sink =
            q_sink.has_value()
                ? q_sink->const_data_ptr<float>() + r * q_sink->stride(0) + head * q_sink->stride(1)
                : query;
        float* y = out.mutable_data_ptr<float>() + r * out.stride(0) + head * out.stride(1);
        std::vector<float> sum(width, 0.0f);
        float total = 0;
        float max = -std::numeric_limits<float>::infinity();
        for (int64_t j = 0; j <= own; ++j) {
          if ((j >= num_sinks && j < from) || pages[j / kPageEntries] < 0) continue;
          const T* page = pool + pages[j / kPageEntries] * PageElements(width);
          const int64_t e = j % kPageEntries;
          const float* x = j < num_sinks ? sink : query;
          float score = 0;
          for (int64_t d = 0; d < width; ++d) {
            score += x[d] * static_cast<float>(page[d * kPageEntries + e]);
          }
          score *= scale;
          const float new_max = std::max(max, score);
          const float shrink = std::exp(max - new_max);
          const float p = std::exp(score - new_max);
          max = new_max;
          total = total * shrink + p;
          for (int64_t d = 0; d < width; ++d) {
            sum[d] = sum[d] * shrink + p * static_cast<float>(page[(kPageEntries + e) * width + d]);
          }
        }
        for (int64_t d = 0; d < width; ++d) y[d] = total > 0 ? sum[d] / total : 0.0f;
      }
    }
  }
}

void PagedAttentionCpu(const at::Tensor& q, const std::optional<at::Tensor>& q_sink,
                       const at::Tensor& pool, const at::Tensor& seq_slot,
                       const at::Tensor& query_start, const at::Tensor& page_table,
                       const at::Tensor& lengths, const std::optional<at::Tensor>& window,
                       const std::optional<at::Tensor>& sinks, double scale,
                       const at::Tensor& out) {
  const Batch batch(seq_slot, query_start, page_table, lengths, q.size(0), pool.size(0),
                    "paged_attention");
  const int32_t* w = window.has_value() ? window->const_data_ptr<int32_t>() : nullptr;
  const int32_t* n = sinks.has_value() ? sinks->const_data_ptr<int32_t>() : nullptr;
  if (pool.scalar_type() == at::kFloat) {
    AttendAll(q, q_sink, batch, w, n, static_cast<float>(scale), page_table.size(1),
              pool.const_data_ptr<float>(), out);
  } else {
    AttendAll(q, q_sink, batch, w, n, static_cast<float>(scale), page_table.size(1),
              pool.const_data_ptr<c10::BFloat16>(), out);
  }
}

}  // namespace
}  // namespace mneme::kernels

TORCH_LIBRARY_IMPL(mneme, CPU, m) {
  m.impl("kv_write", mneme::kernels::KvWriteCpu);
  m.impl("paged_attention", mneme::kernels::PagedAttentionCpu);
}
