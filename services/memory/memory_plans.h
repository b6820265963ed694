// How a session's memory is to be kept, out of all that have a say.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "mneme/memory/v1/config.pb.h"
#include "mneme/memory/v1/memory.pb.h"

namespace mneme::memory {

// Immutable.
class MemoryPlans {
 public:
  // `defaults` in their order: the first that fits a tenant and model holds.
  explicit MemoryPlans(std::vector<v1::PlanDefault> defaults) : defaults_(std::move(defaults)) {}

  // Returns the plan of a turn: the policy comes from the request, else the session, else the
  // defaults; whether it is elastic, from whoever says it first; the encoding from the defaults.
  // What nobody has chosen stays unset, and is the model's.
  v1::MemoryPlan Of(const v1::AcquireLeaseRequest& request, const v1::Session& session) const;

  // Says whether what a tenant's session has stored may be rounded while it is idle; `session`
  // needs to have its model and memory_policy.
  bool IsElastic(const std::string& tenant, const v1::Session& session) const;

 private:
  // Returns the default that holds; null: none does.
  const v1::PlanDefault* Find(const std::string& tenant, const std::string& model) const;

  std::vector<v1::PlanDefault> defaults_;
};

}  // namespace mneme::memory
