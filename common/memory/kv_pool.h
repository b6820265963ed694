// The device memory that all sequences of a model share: a pool of equal pages, each holding
// kernels::kPageEntries entries of one (layer, kv head). Start here, then kv_sequence.h (which
// pages a sequence has), kv_tables.h (how kernels see them) and memory_policy.h (what is
// forgotten).
//
// The pool tensor is reserved at once but not touched: on CPU the operating system supplies memory
// when a page is first written, and pages that were used before are handed out before fresh ones.
#pragma once

#include <ATen/core/Tensor.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace mneme::memory {

class KvPool;

// One reference to a page; gives it back when destroyed. Empty (id -1) when default-made or moved
// from. Must not outlive its pool.
class KvPage {
 public:
  KvPage() = default;
  KvPage(KvPage&& other) noexcept;
  KvPage& operator=(KvPage&& other) noexcept;
  KvPage(const KvPage&) = delete;
  KvPage& operator=(const KvPage&) = delete;
  ~KvPage() { Reset(); }

  int32_t id() const { return id_; }  // row of the pool tensor, or -1
  explicit operator bool() const { return id_ >= 0; }
  // Says whether others refer to the page too; then it must not be written.
  bool is_shared() const;
  // Returns another reference to the same page, not an idle one.
  KvPage Share() const;
  // Marks the reference as one that only keeps the page for later (KvSequence::SetIdle).
  void SetIdle(bool idle);
  void Reset();

 private:
  friend class KvPool;
  KvPage(KvPool* pool, int32_t id) : pool_(pool), id_(id) {}

  KvPool* pool_ = nullptr;
  int32_t id_ = -1;
  bool idle_ = false;
};

struct KvPoolOptions {
  int64_t head_size = 0;                         // D
  at::ScalarType dtype = at::ScalarType::Float;  // or BFloat16
  at::Device device = at::kCPU;
  int64_t budget_bytes = 0;
};

// Owned and used by the one thread that runs the model, except for the counters, which any thread
// may read.
class KvPool {
 public:
  // INVALID_ARGUMENT: another type, or a budget below one page. RESOURCE_EXHAUSTED: the device
  // can't reserve the budget.
  static absl::StatusOr<std::unique_ptr<KvPool>> Create(const KvPoolOptions& options);
  KvPool(const KvPool&) = delete;
  KvPool& operator=(const KvPool&) = delete;

  // Appends `count` pages to `pages`, all or none. RESOURCE_EXHAUSTED: not so many are free.
  absl::Status Allocate(int64_t count, std::vector<KvPage>& pages);

  // [num_pages, kernels::PageElements(D)], float32 or bfloat16
  const at::Tensor& tensor() const { return tensor_; }
  int64_t head_size() const { return head_size_; }
  at::ScalarType dtype() const { return tensor_.scalar_type(); }
  at::Device device() const { return tensor_.device(); }
  int64_t page_bytes() const { return page_bytes_; }
  int64_t num_pages() const { return num_pages_; }
  // A page is used if somebody refers to it who is not idle, idle if only idle ones do, else free.
  int64_t used_pages() const { return used_pages_.load(std::memory_order_relaxed); }
  int64_t idle_pages() const { return idle_pages_.load(std::memory_order_relaxed); }
  int64_t free_pages() const { return num_pages_ - used_pages() - idle_pages(); }
  int64_t peak_used_pages() const { return peak_used_pages_.load(std::memory_order_relaxed); }

 private:
  friend class KvPage;
  KvPool(at::Tensor tensor, int64_t head_size);
  // The references of a page, and how many of them are idle.
  struct References {
    int32_t all = 0;
    int32_t idle = 0;
  };
  void Change(int32_t id, int32_t all, int32_t idle);

  const at::Tensor tensor_;
  const int64_t head_size_;
  const int64_t num_pages_;
  const int64_t page_bytes_;
  std::vector<References> references_;  // per page ever used
  std::vector<int32_t> free_;           // given back, last first
  std::atomic<int64_t> used_pages_ = 0;
  std::atomic<int64_t> idle_pages_ = 0;
  std::atomic<int64_t> peak_used_pages_ = 0;
};

}  // namespace mneme::memory
