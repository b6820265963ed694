#include "common/memory/attention_sums.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"

namespace mneme::memory {

PositionRange AttentionSums::Wanted(int64_t begin, int64_t end) const {
  if (queries_.window == 0) return {begin, end};
  // Steps end with an interval, so a range is in one.
  const int64_t interval_end = (begin / queries_.interval + 1) * queries_.interval;
  return {std::clamp(interval_end - queries_.window, begin, end), end};
}

void AttentionSums::Observe(int64_t layer, int64_t position, const at::Tensor& weights) {
  const int64_t num_queries = weights.size(1);
  const int64_t num_entries = weights.size(2);
  const bool is_first =
      queries_.window > 0 && position % queries_.interval == queries_.interval - queries_.window;
  for (int64_t head = 0; head < num_kv_heads_; ++head) {
    std::vector<float>& sums = sums_[layer * num_kv_heads_ + head];
    if (is_first) sums.clear();
    if (static_cast<int64_t>(sums.size()) < num_entries) {
      // By half as much again, as vectors don't when they are resized.
      if (static_cast<int64_t>(sums.capacity()) < num_entries) {
        sums.reserve(num_entries + num_entries / 2);
      }
      sums.resize(num_entries, 0.0f);
    }
    const float* row = weights.const_data_ptr<float>() + head * num_queries * num_entries;
    for (int64_t query = 0; query < num_queries; ++query, row += num_entries) {
      for (int64_t entry = 0; entry < num_entries; ++entry) sums[entry] += row[entry];
    }
  }
}

void AttentionSums::Keep(absl::Span<const KeptEntries> kept) {
  for (const KeptEntries& entries : kept) {
    std::vector<float>& sums = sums_[entries.layer * num_kv_heads_ + entries.head];
    size_t count = 0;
    for (const int64_t index : entries.indices) {
      if (index >= static_cast<int64_t>(sums.size())) break;
      sums[count++] = sums[index];
    }
    sums.resize(count);
  }
}

int64_t AttentionSums::num_bytes() const {
  int64_t floats = 0;
  for (const std::vector<float>& sums : sums_) floats += static_cast<int64_t>(sums.capacity());
  return floats * static_cast<int64_t>(sizeof(float));
}

std::string AttentionSums::Serialise() const {
  std::string bytes;
  for (const std::vector<float>& sums : sums_) {
    const uint64_t count = sums.size();
    bytes.append(reinterpret_cast<const char*>(&count), sizeof(count));
    bytes.append(reinterpret_cast<const char*>(sums.data()), count * sizeof(float));
  }
  return bytes;
}

absl::StatusOr<std::unique_ptr<AttentionSums>> AttentionSums::Restore(const KvShape& shape,
                                                                      const SummedQueries& queries,
                                                                      absl::string_view bytes) {
  auto state = std::make_unique<AttentionSums>(shape, queries);
  for (std::vector<float>& sums : state->sums_) {
    uint64_t count = 0;
    if (bytes.size() < sizeof(count)) {
      return absl::InvalidArgumentError("the stored sums of attention are cut short");
    }
    std::memcpy(&count, bytes.data(), sizeof(count));
    bytes.remove_prefix(sizeof(count));
    if (count > bytes.size() / sizeof(float)) {
      return absl::InvalidArgumentError("the stored sums of attention are cut short");
    }
    sums.resize(count);
    if (count > 0) std::memcpy(sums.data(), bytes.data(), count * sizeof(float));
    bytes.remove_prefix(count * sizeof(float));
  }
  if (!bytes.empty()) {
    return absl::InvalidArgumentError("the stored sums of attention are of another shape");
  }
  return state;
}

}  // namespace mneme::memory
