// What a request says of its memory besides the policy: whether pressure may tighten it (elastic),
// and whether a guard may loosen it. So a sequence may end under another policy than it began with,
// and its session goes on from there.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/memory/memory_policy.h"
#include "mneme/inference/v1/inference.pb.h"

namespace mneme::memory {

// Of MemoryPolicy.Guard, with the defaults filled in.
struct GuardSettings {
  double max_kl = 0;        // nats
  int64_t probe_every = 0;  // tokens
};

struct PolicyChoice {
  std::shared_ptr<const MemoryPolicy> policy;
  bool is_elastic = false;
  std::optional<GuardSettings> guard;

  // Returns the policy that a memory with this canonical text (MemoryPolicy::Describe) is under, if
  // it is the one asked for or can have come of it; null: it is another.
  std::shared_ptr<const MemoryPolicy> Become(absl::string_view text) const;
  // Has a memory of an earlier turn go on: as it is where it can have come of this choice,
  // tightened to the policy where it is under a wider one. FAILED_PRECONDITION: neither; rebuild by
  // prefill.
  absl::Status TakeUp(KvSequence* memory) const;
};

// As CreatePolicy, and INVALID_ARGUMENT: `elastic` of another policy than full and window; a guard
// of another than h2o, snapkv and l2norm; max_kl not above 0; probe_every no multiple of the
// policy's interval.
absl::StatusOr<PolicyChoice> CreatePolicyChoice(
    const inference::v1::MemoryPolicy& policy,
    const PolicyResources& resources = PolicyResources());

}  // namespace mneme::memory
