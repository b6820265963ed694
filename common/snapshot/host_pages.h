// The pages of some entries as host memory, whatever device the pool is on.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/memory/kv_sequence.h"
#include "common/snapshot/chunk.h"

namespace mneme::snapshot {

// On the CPU these are the pool's own pages; from another device they are copied into a pinned
// buffer, and back by Store. Valid while the sequence is.
class HostPages {
 public:
  // Takes the pages that entries of the range lie in. RESOURCE_EXHAUSTED: no memory for the copy.
  static absl::StatusOr<HostPages> Load(const memory::KvSequence& sequence,
                                        const ChunkRange& range);

  // Where the page begins; nullptr if it was forgotten. `page` counts from the head's first one.
  char* page(int64_t layer, int64_t head, int64_t page) const {
    const int64_t row = rows_[((layer - range_.first_layer) * num_kv_heads_ + head) * num_pages_ +
                              page - first_page_];
    return row < 0 ? nullptr : data_ + row * page_bytes_;
  }

  // Brings what was written back to the device. Nothing to do on the CPU.
  absl::Status Store() const;

 private:
  HostPages(const memory::KvSequence& sequence, const ChunkRange& range);

  const memory::KvPool* pool_;
  ChunkRange range_;
  int64_t num_kv_heads_;
  int64_t first_page_ = 0;
  int64_t num_pages_ = 0;  // of each head
  int64_t page_bytes_;
  std::vector<int64_t> rows_;  // of the pool, or of the copy
  char* data_ = nullptr;
  at::Tensor ids_;   // rows of the pool that were copied
  at::Tensor copy_;  // [n, PageElements(D)], pinned
};

}  // namespace mneme::snapshot
