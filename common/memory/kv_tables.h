// The page tables and lengths as kernels read them: one device tensor each, with a slot per running
// sequence. Sequences write their changes through as they happen, a few cells per step.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/memory/kv_shape.h"

namespace mneme::memory {

class KvTables;

// A sequence's place in the tables; gives it back when destroyed. Must not outlive the tables.
class KvSlot {
 public:
  KvSlot() = default;
  KvSlot(KvSlot&& other) noexcept;
  KvSlot& operator=(KvSlot&& other) noexcept;
  KvSlot(const KvSlot&) = delete;
  KvSlot& operator=(const KvSlot&) = delete;
  ~KvSlot() { Reset(); }

  KvTables* tables() const { return tables_; }
  int32_t index() const { return index_; }
  explicit operator bool() const { return tables_ != nullptr; }
  void Reset();

 private:
  friend class KvTables;
  KvSlot(KvTables* tables, int32_t index) : tables_(tables), index_(index) {}

  KvTables* tables_ = nullptr;
  int32_t index_ = -1;
};

// Used by the one thread that runs the model. On CPU the tensors below are written directly; on
// another device the changes gather in a host copy until Flush.
class KvTables {
 public:
  // Makes room for `num_slots` sequences of `num_pages` pages per head; both grow when needed.
  // RESOURCE_EXHAUSTED: no memory on the device.
  static absl::StatusOr<std::unique_ptr<KvTables>> Create(const KvShape& shape, at::Device device,
                                                          int64_t num_slots = 16,
                                                          int64_t num_pages = 64);
  KvTables(const KvTables&) = delete;
  KvTables& operator=(const KvTables&) = delete;

  // Returns a free slot: lengths 0, no pages.
  absl::StatusOr<KvSlot> Acquire();

  // `head` counts over all layers: layer * Hkv + kv head. `page` grows the table when it is beyond
  // it: RESOURCE_EXHAUSTED if that fails. Id -1: no such page any more.
  absl::Status SetPage(int32_t slot, int64_t head, int64_t page, int32_t id);
  // Sets all lengths of a slot, [L * Hkv].
  void SetLengths(int32_t slot, absl::Span<const int32_t> lengths);
  // Grows the table so that SetPage up to `num_pages` pages can't fail.
  absl::Status ReservePages(int64_t num_pages);

  // Brings the device tensors up to date; before every step. Nothing to do on CPU.
  absl::Status Flush();

  // Valid until a call that grows the tables.
  const at::Tensor& page_table() const { return page_table_; }  // int32 [slots, L, Hkv, max_pages]
  const at::Tensor& lengths() const { return lengths_; }        // int32 [slots, L, Hkv]
  int64_t num_slots() const { return host_lengths_.size(0); }
  int64_t max_pages() const { return host_page_table_.size(3); }
  int64_t used_slots() const { return used_slots_; }
  // Cells of the page table written since the start: a decode step must not rewrite it.
  int64_t num_page_writes() const { return num_page_writes_; }

 private:
  friend class KvSlot;
  KvTables(const KvShape& shape, at::Device device) : shape_(shape), device_(device) {}
  absl::Status Resize(int64_t num_slots, int64_t num_pages);
  void Release(int32_t slot);

  const KvShape shape_;
  const at::Device device_;
  at::Tensor host_page_table_;  // the same tensors as below where the device is the CPU
  at::Tensor host_lengths_;
  at::Tensor page_table_;
  at::Tensor lengths_;
  std::vector<int32_t> free_slots_;
  std::vector<int32_t> high_pages_;   // per slot: 1 + the largest page index set, to clear no more
  std::vector<int64_t> dirty_cells_;  // of the page table, for Flush
  bool lengths_dirty_ = false;
  int64_t used_slots_ = 0;
  int64_t num_page_writes_ = 0;
};

}  // namespace mneme::memory
