// NAMM at work in a sequence: scores come from an evolved network (namm_model.h), the number of
// entries that stay with them.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/memory/memory_policy.h"
#include "common/memory/namm_layer.h"
#include "common/memory/namm_model.h"
#include "common/memory/policy_state.h"

namespace mneme::memory {

// What a request may choose other than the artifact's configuration says.
struct NammOverrides {
  std::optional<int64_t> cache_size;  // entries per head after an update, at most
  std::optional<int64_t> delay;
  std::optional<float> threshold;
};

// Updates happen, as in eviction_policy.h, where the sequence has a multiple of the model's delay
// of tokens, prompt and answer counted alike; steps end there. All heads of a layer keep the same
// number of entries, layers differ. INVALID_ARGUMENT, naming the field: overrides out of range.
absl::StatusOr<std::shared_ptr<const MemoryPolicy>> NammPolicy(
    std::shared_ptr<const NammModel> model, const NammOverrides& overrides = {});

// The state of a sequence under NAMM.
class NammState final : public PolicyState {
 public:
  NammState(std::shared_ptr<const NammModel> model, const KvShape& shape);
  // INVALID_ARGUMENT: not what Serialise wrote for this model and shape.
  static absl::StatusOr<std::unique_ptr<NammState>> Restore(std::shared_ptr<const NammModel> model,
                                                            const KvShape& shape,
                                                            absl::string_view bytes);

  NammLayer& layer(int64_t layer) { return layers_[layer]; }
  const NammLayer& layer(int64_t layer) const { return layers_[layer]; }
  // Measured by this sequence, where the model has no frozen statistics.
  RunningStatistics& running() { return running_; }

  std::unique_ptr<PolicyState> Clone() const override;
  PositionRange Wanted(int64_t begin, int64_t end) const override { return {begin, end}; }
  void Observe(int64_t layer, int64_t position, const at::Tensor& weights) override;
  void Keep(absl::Span<const KeptEntries> kept) override;
  absl::Status Check(const KvSequence& sequence) const override;
  int64_t num_bytes() const override;
  std::string Serialise() const override;

 private:
  std::shared_ptr<const NammModel> model_;  // owns the transform that the layers refer to
  std::vector<NammLayer> layers_;
  RunningStatistics running_;
};

}  // namespace mneme::memory
