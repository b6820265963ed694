#include "services/memory/memory_plans.h"

namespace mneme::memory {

v1::MemoryPlan MemoryPlans::Of(const v1::AcquireLeaseRequest& request,
                               const v1::Session& session) const {
  v1::MemoryPlan plan;
  for (const v1::PlanDefault& entry : defaults_) {
    const bool fits = (entry.tenant().empty() || entry.tenant() == request.tenant()) &&
                      (entry.model().empty() || entry.model() == session.model());
    if (!fits) continue;
    if (entry.has_policy()) *plan.mutable_policy() = entry.policy();
    plan.set_encoding(entry.encoding());
    break;
  }
  if (session.has_memory_policy()) *plan.mutable_policy() = session.memory_policy();
  if (request.has_memory_policy()) *plan.mutable_policy() = request.memory_policy();
  return plan;
}

}  // namespace mneme::memory
