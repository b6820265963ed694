#include "common/memory/policy_choice.h"

#include <cmath>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/memory/eviction_policy.h"
#include "common/memory/kv_sequence.h"
#include "common/status/annotate.h"
#include "common/status/status_macros.h"

namespace mneme::memory {
namespace {

using Proto = inference::v1::MemoryPolicy;

// A guard looks this often where a request does not say.
constexpr int64_t kProbeEvery = 256;

// The interval of a policy with a budget; 0: it has none.
int64_t IntervalOf(const Proto& policy) {
  int64_t interval = 0;
  switch (policy.policy_case()) {
    case Proto::kH2O:
      interval = policy.h2o().interval();
      break;
    case Proto::kSnapkv:
      interval = policy.snapkv().interval();
      break;
    case Proto::kL2Norm:
      interval = policy.l2norm().interval();
      break;
    default:
      return 0;
  }
  return interval == 0 ? kDefaultInterval : interval;
}

absl::StatusOr<GuardSettings> ReadGuard(const Proto& policy) {
  const Proto::Guard& guard = policy.guard();
  const int64_t interval = IntervalOf(policy);
  if (interval == 0) {
    return status::InvalidField("memory_policy.guard",
                                "goes with h2o, snapkv and l2norm only: it doubles their budgets");
  }
  // Written so that NaN fails.
  if (!(guard.max_kl() > 0) || std::isinf(guard.max_kl())) {
    return status::InvalidField("memory_policy.guard.max_kl",
                                absl::StrCat("must be above 0, in nats: ", guard.max_kl()));
  }
  if (guard.probe_every() < 0 || guard.probe_every() % interval != 0) {
    return status::InvalidField("memory_policy.guard.probe_every",
                                absl::StrCat("must be a multiple of the policy's interval, ",
                                             interval, ": ", guard.probe_every()));
  }
  GuardSettings settings{.max_kl = guard.max_kl(), .probe_every = guard.probe_every()};
  if (settings.probe_every == 0) {
    settings.probe_every = (kProbeEvery + interval - 1) / interval * interval;
  }
  return settings;
}

}  // namespace

std::shared_ptr<const MemoryPolicy> PolicyChoice::Become(absl::string_view text) const {
  if (policy->Describe() == text) return policy;
  if (is_elastic) return policy->TighterOf(text);
  if (!guard.has_value()) return nullptr;
  for (auto looser = policy->Looser(); looser != nullptr; looser = looser->Looser()) {
    if (looser->Describe() == text) return looser;
  }
  return nullptr;
}

absl::Status PolicyChoice::TakeUp(KvSequence* memory) const {
  if (Become(memory->policy().Describe()) != nullptr) return absl::OkStatus();
  return memory->Tighten(policy);
}

absl::StatusOr<PolicyChoice> CreatePolicyChoice(const Proto& policy,
                                                const PolicyResources& resources) {
  PolicyChoice choice;
  ASSIGN_OR_RETURN(choice.policy, CreatePolicy(policy, resources));
  if (policy.elastic()) {
    const std::string name = choice.policy->name();
    if (name != "full" && name != "window") {
      return status::InvalidField(
          "memory_policy.elastic",
          "goes with full and window only: what the others keep is bounded by their own budgets");
    }
    choice.is_elastic = true;
  }
  if (policy.has_guard()) {
    ASSIGN_OR_RETURN(choice.guard, ReadGuard(policy));
  }
  return choice;
}

}  // namespace mneme::memory
