#include "common/memory/kv_pool.h"

#include <ATen/Functions.h>

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <utility>

#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "common/model/torch_status.h"
#include "common/status/status_macros.h"
#include "kernels/paged_attention.h"

namespace mneme::memory {

KvPage::KvPage(KvPage&& other) noexcept
    : pool_(std::exchange(other.pool_, nullptr)),
      id_(std::exchange(other.id_, -1)),
      idle_(std::exchange(other.idle_, false)) {}

KvPage& KvPage::operator=(KvPage&& other) noexcept {
  if (this == &other) return *this;
  Reset();
  pool_ = std::exchange(other.pool_, nullptr);
  id_ = std::exchange(other.id_, -1);
  idle_ = std::exchange(other.idle_, false);
  return *this;
}

bool KvPage::is_shared() const { return id_ >= 0 && pool_->references_[id_].all > 1; }

KvPage KvPage::Share() const {
  if (id_ < 0) return KvPage();
  pool_->Change(id_, 1, 0);
  return KvPage(pool_, id_);
}

void KvPage::SetIdle(bool idle) {
  if (id_ < 0 || idle == idle_) return;
  pool_->Change(id_, 0, idle ? 1 : -1);
  idle_ = idle;
}

void KvPage::Reset() {
  if (id_ >= 0) pool_->Change(id_, -1, idle_ ? -1 : 0);
  pool_ = nullptr;
  id_ = -1;
  idle_ = false;
}

absl::StatusOr<std::unique_ptr<KvPool>> KvPool::Create(const KvPoolOptions& options) {
  if (options.dtype != at::kFloat && options.dtype != at::kBFloat16) {
    return absl::InvalidArgumentError(absl::StrCat("key/value pages are float32 or bfloat16, not ",
                                                   c10::toString(options.dtype)));
  }
  if (options.head_size < 1) {
    return absl::InvalidArgumentError(absl::StrCat("head size below 1: ", options.head_size));
  }
  const int64_t elements = kernels::PageElements(options.head_size);
  const int64_t page_bytes = elements * static_cast<int64_t>(c10::elementSize(options.dtype));
  const int64_t num_pages =
      std::min<int64_t>(options.budget_bytes / page_bytes, std::numeric_limits<int32_t>::max());
  if (num_pages < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("the key/value budget is below one page; raise it: budget ",
                     options.budget_bytes, " bytes, page ", page_bytes, " bytes"));
  }
  ASSIGN_OR_RETURN(at::Tensor tensor, CatchTorch("reserving key/value pages", [&] {
                     return at::empty(
                         {num_pages, elements},
                         at::TensorOptions().dtype(options.dtype).device(options.device));
                   }));
  return absl::WrapUnique(new KvPool(std::move(tensor), options.head_size));
}

KvPool::KvPool(at::Tensor tensor, int64_t head_size)
    : tensor_(std::move(tensor)),
      head_size_(head_size),
      num_pages_(tensor_.size(0)),
      page_bytes_(tensor_.size(1) * static_cast<int64_t>(tensor_.element_size())) {}

absl::Status KvPool::Allocate(int64_t count, std::vector<KvPage>& pages) {
  if (count > free_pages()) {
    return absl::ResourceExhaustedError(absl::StrCat("not enough free key/value pages: needed ",
                                                     count, ", free ", free_pages(), " of ",
                                                     num_pages_));
  }
  pages.reserve(pages.size() + count);
  for (int64_t i = 0; i < count; ++i) {
    int32_t id;
    if (!free_.empty()) {
      id = free_.back();
      free_.pop_back();
    } else {
      id = static_cast<int32_t>(references_.size());
      references_.emplace_back();
    }
    Change(id, 1, 0);
    pages.push_back(KvPage(this, id));
  }
  return absl::OkStatus();
}

void KvPool::Change(int32_t id, int32_t all, int32_t idle) {
  References& references = references_[id];
  const auto is_used = [&references] { return references.all > references.idle ? 1 : 0; };
  const auto is_idle = [&references] {
    return references.all > 0 && references.all == references.idle ? 1 : 0;
  };
  const int64_t used_before = is_used();
  const int64_t idle_before = is_idle();
  references.all += all;
  references.idle += idle;
  if (references.all == 0) free_.push_back(id);
  if (is_used() != used_before) {
    const int64_t used = used_pages() + is_used() - used_before;
    used_pages_.store(used, std::memory_order_relaxed);
    peak_used_pages_.store(std::max(used, peak_used_pages()), std::memory_order_relaxed);
  }
  if (is_idle() != idle_before) {
    idle_pages_.store(idle_pages() + is_idle() - idle_before, std::memory_order_relaxed);
  }
}

}  // namespace mneme::memory
