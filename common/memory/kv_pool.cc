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
    : pool_(std::exchange(other.pool_, nullptr)), id_(std::exchange(other.id_, -1)) {}

KvPage& KvPage::operator=(KvPage&& other) noexcept {
  if (this == &other) return *this;
  Reset();
  pool_ = std::exchange(other.pool_, nullptr);
  id_ = std::exchange(other.id_, -1);
  return *this;
}

bool KvPage::is_shared() const { return id_ >= 0 && pool_->references_[id_] > 1; }

KvPage KvPage::Share() const {
  if (id_ < 0) return KvPage();
  ++pool_->references_[id_];
  return KvPage(pool_, id_);
}

void KvPage::Reset() {
  if (id_ >= 0) pool_->Release(id_);
  pool_ = nullptr;
  id_ = -1;
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
      references_.push_back(0);
    }
    references_[id] = 1;
    pages.push_back(KvPage(this, id));
  }
  const int64_t used = used_pages() + count;
  used_pages_.store(used, std::memory_order_relaxed);
  peak_used_pages_.store(std::max(used, peak_used_pages()), std::memory_order_relaxed);
  return absl::OkStatus();
}

void KvPool::Release(int32_t id) {
  if (--references_[id] > 0) return;
  free_.push_back(id);
  used_pages_.store(used_pages() - 1, std::memory_order_relaxed);
}

}  // namespace mneme::memory
