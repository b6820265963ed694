// Running sums of the attention that entries receive: the state of H2O and SnapKV.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "common/memory/kv_shape.h"
#include "common/memory/policy_state.h"

namespace mneme::memory {

// Which queries count.
struct SummedQueries {
  // Of every `interval` queries, counted from the start of the sequence, the last `window` ones;
  // their sums begin anew with each interval. window 0: all queries, for ever.
  int64_t interval = 0;
  int64_t window = 0;
};

class AttentionSums final : public PolicyState {
 public:
  AttentionSums(const KvShape& shape, const SummedQueries& queries)
      : num_kv_heads_(shape.num_kv_heads), queries_(queries), sums_(shape.num_heads()) {}

  // INVALID_ARGUMENT: not what Serialise wrote for this shape.
  static absl::StatusOr<std::unique_ptr<AttentionSums>> Restore(const KvShape& shape,
                                                                const SummedQueries& queries,
                                                                absl::string_view bytes);

  // The sums of a head's entries, by index; entries behind the end have received nothing.
  absl::Span<const float> sums(int64_t layer, int64_t head) const {
    return sums_[layer * num_kv_heads_ + head];
  }

  std::unique_ptr<PolicyState> Clone() const override {
    return std::make_unique<AttentionSums>(*this);
  }
  PositionRange Wanted(int64_t begin, int64_t end) const override;
  void Observe(int64_t layer, int64_t position, const at::Tensor& weights) override;
  void Keep(absl::Span<const KeptEntries> kept) override;
  // Sums of any number of entries go with any sequence.
  absl::Status Check(const KvSequence&) const override { return absl::OkStatus(); }
  int64_t num_bytes() const override;
  std::string Serialise() const override;

 private:
  int64_t num_kv_heads_;
  SummedQueries queries_;
  std::vector<std::vector<float>> sums_;  // [L * Hkv][entries]
};

}  // namespace mneme::memory
