#include "services/memory/memory_plans.h"

namespace mneme::memory {

const v1::PlanDefault* MemoryPlans::Find(const std::string& tenant,
                                         const std::string& model) const {
  for (const v1::PlanDefault& entry : defaults_) {
    const bool fits = (entry.tenant().empty() || entry.tenant() == tenant) &&
                      (entry.model().empty() || entry.model() == model);
    if (fits) return &entry;
  }
  return nullptr;
}

bool MemoryPlans::IsElastic(const std::string& tenant, const std::string& model) const {
  const v1::PlanDefault* const found = Find(tenant, model);
  return found != nullptr && found->elastic();
}

v1::MemoryPlan MemoryPlans::Of(const v1::AcquireLeaseRequest& request,
                               const v1::Session& session) const {
  v1::MemoryPlan plan;
  if (const v1::PlanDefault* const found = Find(request.tenant(), session.model())) {
    if (found->has_policy()) *plan.mutable_policy() = found->policy();
    plan.set_encoding(found->encoding());
    plan.set_elastic(found->elastic());
  }
  if (session.has_memory_policy()) *plan.mutable_policy() = session.memory_policy();
  if (request.has_memory_policy()) *plan.mutable_policy() = request.memory_policy();
  return plan;
}

}  // namespace mneme::memory
