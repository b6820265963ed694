// Activation Beacon as a memory policy: the chunk that follows is a pass of the window machine
// (beacon_pass.h), and what a closed window leaves are its beacons.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "common/memory/beacon_pass.h"
#include "common/memory/memory_policy.h"
#include "common/memory/policy_state.h"

namespace mneme::memory {

// Where a sequence stands.
class BeaconPolicyState final : public PolicyState {
 public:
  BeaconPolicyState(const BeaconSettings* settings, BeaconState state)
      : settings_(settings), state_(std::move(state)) {}

  const BeaconState& state() const { return state_; }

  // The pass that LayOut planned last; taking it over when it has been run.
  void Plan(std::shared_ptr<const BeaconPass> pass) { planned_ = std::move(pass); }
  void Settle(int64_t num_tokens);

  std::unique_ptr<PolicyState> Clone() const override;
  PositionRange Wanted(int64_t, int64_t) const override { return {}; }
  void Observe(int64_t, int64_t, const at::Tensor&) override {}
  void Keep(absl::Span<const KeptEntries>) override {}
  absl::Status Check(const KvSequence& sequence) const override;
  std::optional<int64_t> CutTo(int64_t num_tokens) override;
  std::optional<Extent> extent() const override;
  int64_t num_bytes() const override { return sizeof(*this); }
  std::string Serialise() const override;

 private:
  const BeaconSettings* settings_;  // the policy's
  BeaconState state_;
  std::shared_ptr<const BeaconPass> planned_;
};

// Returns the policy that compresses as `settings` say. INVALID_ARGUMENT or UNIMPLEMENTED, naming
// the field: as CheckBeaconSettings, a ratio that doesn't divide the window, or a mode that exists
// only for comparison with the published implementation.
absl::StatusOr<std::shared_ptr<const MemoryPolicy>> BeaconPolicy(BeaconSettings settings);

// Returns the settings that a request asks for, where the model's own, or those that an untrained
// beacon has, are `defaults`. INVALID_ARGUMENT, naming the field: no ratio, or values out of range.
absl::StatusOr<BeaconSettings> BeaconSettingsOf(const inference::v1::MemoryPolicy::Beacon& beacon,
                                                const BeaconSettings& defaults);

}  // namespace mneme::memory
