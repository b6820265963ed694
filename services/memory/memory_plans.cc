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

bool MemoryPlans::IsElastic(const std::string& tenant, const v1::Session& session) const {
  if (session.memory_policy().has_elastic()) return session.memory_policy().elastic();
  const v1::PlanDefault* const found = Find(tenant, session.model());
  return found != nullptr && found->elastic();
}

v1::MemoryPlan MemoryPlans::Of(const v1::AcquireLeaseRequest& request,
                               const v1::Session& session) const {
  v1::MemoryPlan plan;
  if (const v1::PlanDefault* const found = Find(request.tenant(), session.model())) {
    if (found->has_policy()) *plan.mutable_policy() = found->policy();
    plan.set_encoding(found->encoding());
  }
  if (session.has_memory_policy()) *plan.mutable_policy() = session.memory_policy();
  if (request.has_memory_policy()) *plan.mutable_policy() = request.memory_policy();
  plan.set_elastic(plan.policy().has_elastic() ? plan.policy().elastic()
                                               : IsElastic(request.tenant(), session));
  // Other policies have budgets of their own.
  const inference::v1::MemoryPolicy::PolicyCase type = plan.policy().policy_case();
  if (type == inference::v1::MemoryPolicy::POLICY_NOT_SET && plan.elastic()) {
    plan.mutable_policy()->mutable_full();
  }
  if (plan.elastic() && (plan.policy().has_full() || plan.policy().has_window())) {
    plan.mutable_policy()->set_elastic(true);
  }
  return plan;
}

}  // namespace mneme::memory
