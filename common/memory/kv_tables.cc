#include "common/memory/kv_tables.h"

#include <ATen/Functions.h>

#include <algorithm>
#include <utility>

#include "absl/memory/memory.h"
#include "common/model/torch_status.h"
#include "common/status/status_macros.h"

namespace mneme::memory {

KvSlot::KvSlot(KvSlot&& other) noexcept
    : tables_(std::exchange(other.tables_, nullptr)), index_(std::exchange(other.index_, -1)) {}

KvSlot& KvSlot::operator=(KvSlot&& other) noexcept {
  if (this == &other) return *this;
  Reset();
  tables_ = std::exchange(other.tables_, nullptr);
  index_ = std::exchange(other.index_, -1);
  return *this;
}

void KvSlot::Reset() {
  if (tables_ != nullptr) tables_->Release(index_);
  tables_ = nullptr;
  index_ = -1;
}

absl::StatusOr<std::unique_ptr<KvTables>> KvTables::Create(const KvShape& shape, at::Device device,
                                                           int64_t num_slots, int64_t num_pages) {
  auto tables = absl::WrapUnique(new KvTables(shape, device));
  RETURN_IF_ERROR(tables->Resize(std::max<int64_t>(num_slots, 1), std::max<int64_t>(num_pages, 1)));
  return tables;
}

absl::Status KvTables::Resize(int64_t num_slots, int64_t num_pages) {
  return CatchTorch("growing the page tables", [&] {
    const at::TensorOptions options = at::TensorOptions().dtype(at::kInt);
    at::Tensor page_table =
        at::full({num_slots, shape_.num_layers, shape_.num_kv_heads, num_pages}, -1, options);
    at::Tensor lengths = at::zeros({num_slots, shape_.num_layers, shape_.num_kv_heads}, options);
    if (host_page_table_.defined()) {
      page_table.narrow(0, 0, host_page_table_.size(0))
          .narrow(3, 0, host_page_table_.size(3))
          .copy_(host_page_table_);
      lengths.narrow(0, 0, host_lengths_.size(0)).copy_(host_lengths_);
    }
    const bool on_cpu = device_.is_cpu();
    at::Tensor device_page_table = on_cpu ? page_table : page_table.to(device_);
    at::Tensor device_lengths = on_cpu ? lengths : lengths.to(device_);
    // Nothing below throws but the growth of these vectors, which is undone by the next Resize.
    for (int64_t slot = static_cast<int64_t>(high_pages_.size()); slot < num_slots; ++slot) {
      high_pages_.push_back(0);
      free_slots_.push_back(static_cast<int32_t>(slot));
    }
    host_page_table_ = std::move(page_table);
    host_lengths_ = std::move(lengths);
    page_table_ = std::move(device_page_table);
    lengths_ = std::move(device_lengths);
    dirty_cells_.clear();
    lengths_dirty_ = false;
  });
}

absl::StatusOr<KvSlot> KvTables::Acquire() {
  if (free_slots_.empty()) RETURN_IF_ERROR(Resize(2 * num_slots(), max_pages()));
  // The lowest free slot, so that the rows in use stay together.
  const auto lowest = std::min_element(free_slots_.begin(), free_slots_.end());
  const int32_t slot = *lowest;
  free_slots_.erase(lowest);
  ++used_slots_;
  return KvSlot(this, slot);
}

void KvTables::Release(int32_t slot) {
  const int64_t stride = max_pages();
  const int64_t num_heads = shape_.num_heads();
  int32_t* row = host_page_table_.mutable_data_ptr<int32_t>() + slot * num_heads * stride;
  for (int64_t head = 0; head < num_heads; ++head) {
    // The device's cells may keep old ids: with length 0 no kernel reads them, and SetPage writes
    // every cell that a later sequence uses.
    std::fill_n(row + head * stride, high_pages_[slot], -1);
  }
  high_pages_[slot] = 0;
  int32_t* lengths = host_lengths_.mutable_data_ptr<int32_t>() + slot * num_heads;
  std::fill_n(lengths, num_heads, 0);
  lengths_dirty_ = true;
  free_slots_.push_back(slot);
  --used_slots_;
}

absl::Status KvTables::ReservePages(int64_t num_pages) {
  if (num_pages <= max_pages()) return absl::OkStatus();
  return Resize(num_slots(), std::max(num_pages, 2 * max_pages()));
}

absl::Status KvTables::SetPage(int32_t slot, int64_t head, int64_t page, int32_t id) {
  RETURN_IF_ERROR(ReservePages(page + 1));
  const int64_t cell = (slot * shape_.num_heads() + head) * max_pages() + page;
  host_page_table_.mutable_data_ptr<int32_t>()[cell] = id;
  high_pages_[slot] = std::max(high_pages_[slot], static_cast<int32_t>(page + 1));
  ++num_page_writes_;
  if (!device_.is_cpu()) dirty_cells_.push_back(cell);
  return absl::OkStatus();
}

void KvTables::SetLengths(int32_t slot, absl::Span<const int32_t> lengths) {
  std::copy(lengths.begin(), lengths.end(),
            host_lengths_.mutable_data_ptr<int32_t>() + slot * shape_.num_heads());
  lengths_dirty_ = true;
}

absl::Status KvTables::Flush() {
  if (device_.is_cpu()) return absl::OkStatus();
  return CatchTorch("updating the page tables", [&] {
    if (lengths_dirty_) lengths_.copy_(host_lengths_);
    lengths_dirty_ = false;
    if (dirty_cells_.empty()) return;
    const at::Tensor cells =
        at::from_blob(dirty_cells_.data(), {static_cast<int64_t>(dirty_cells_.size())},
                      at::TensorOptions().dtype(at::kLong));
    const at::Tensor values = host_page_table_.view(-1).index_select(0, cells);
    page_table_.view(-1).index_copy_(0, cells.to(device_), values.to(device_));
    dirty_cells_.clear();
  });
}

}  // namespace mneme::memory
