#include "common/snapshot/host_pages.h"

#include <ATen/Functions.h>

#include <algorithm>

#include "common/model/torch_status.h"
#include "common/status/status_macros.h"
#include "kernels/paged_attention_layout.h"

namespace mneme::snapshot {

HostPages::HostPages(const memory::KvSequence& sequence, const ChunkRange& range)
    : pool_(&sequence.pool()),
      range_(range),
      num_kv_heads_(sequence.shape().num_kv_heads),
      page_bytes_(sequence.pool().page_bytes()) {
  // Where entries have moved, each head has the serials at other indices.
  int64_t first = range.first_serial;
  int64_t end = range.end_serial();
  if (sequence.policy().moves_entries()) {
    first = end;
    end = 0;
    for (int64_t i = 0; i < range.num_layers; ++i) {
      for (int64_t head = 0; head < num_kv_heads_; ++head) {
        const int64_t layer = range.first_layer + i;
        first = std::min(first, sequence.IndexOf(layer, head, range.first_serial));
        end = std::max(end, sequence.IndexOf(layer, head, range.end_serial()));
      }
    }
  }
  first_page_ = first / kernels::kPageEntries;
  num_pages_ =
      std::max<int64_t>((end + kernels::kPageEntries - 1) / kernels::kPageEntries - first_page_, 0);
  rows_.reserve(range.num_layers * num_kv_heads_ * num_pages_);
  for (int64_t i = 0; i < range.num_layers; ++i) {
    for (int64_t head = 0; head < num_kv_heads_; ++head) {
      for (int64_t p = 0; p < num_pages_; ++p) {
        rows_.push_back(sequence.page_id(range.first_layer + i, head, first_page_ + p));
      }
    }
  }
}

absl::StatusOr<HostPages> HostPages::Load(const memory::KvSequence& sequence,
                                          const ChunkRange& range) {
  HostPages pages(sequence, range);
  const at::Tensor& pool = pages.pool_->tensor();
  if (pool.device().is_cpu()) {
    pages.data_ = static_cast<char*>(pool.data_ptr());
    return pages;
  }
  std::vector<int64_t> ids;
  for (int64_t& row : pages.rows_) {
    if (row < 0) continue;
    ids.push_back(row);
    row = static_cast<int64_t>(ids.size()) - 1;
  }
  RETURN_IF_ERROR(CatchTorch("copying pages from the device", [&] {
    pages.ids_ = at::tensor(ids, at::kLong).to(pool.device());
    pages.copy_ = at::empty({static_cast<int64_t>(ids.size()), pool.size(1)},
                            at::TensorOptions().dtype(pool.scalar_type()).pinned_memory(true));
    pages.copy_.copy_(pool.index_select(0, pages.ids_));
    pages.data_ = static_cast<char*>(pages.copy_.data_ptr());
  }));
  return pages;
}

absl::Status HostPages::Store() const {
  if (!copy_.defined()) return absl::OkStatus();
  return CatchTorch("copying pages to the device",
                    [&] { pool_->tensor().index_copy_(0, ids_, copy_.to(pool_->device())); });
}

}  // namespace mneme::snapshot
