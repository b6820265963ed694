// Policies as requests name them.
#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/memory/beacon_policy.h"
#include "common/memory/eviction_policy.h"
#include "common/memory/memory_policy.h"
#include "common/memory/namm_policy.h"
#include "common/status/annotate.h"
#include "common/status/status_macros.h"
#include "kernels/paged_attention.h"

namespace mneme::memory {
namespace {

using Proto = inference::v1::MemoryPolicy;

absl::StatusOr<EvictionBudget> BudgetOf(const Proto::Budget& budget, const std::string& field,
                                        const PolicyResources& resources) {
  switch (budget.amount_case()) {
    case Proto::Budget::kTokens:
      return EvictionBudget{.tokens = budget.tokens()};
    case Proto::Budget::kBytes: {
      // Whole pages of every head.
      const int64_t page_bytes = kernels::kPageEntries * resources.entry_bytes;
      const int64_t all = std::max<int64_t>(page_bytes * resources.shape.num_heads(), 1);
      const int64_t tokens = budget.bytes() / all * kernels::kPageEntries;
      if (tokens < 1) {
        return status::InvalidField(
            field + ".bytes",
            absl::StrCat("is below one page of every head, ", all, " bytes: ", budget.bytes()));
      }
      return EvictionBudget{.tokens = tokens};
    }
    case Proto::Budget::kFraction:
      return EvictionBudget{.fraction = budget.fraction()};
    case Proto::Budget::AMOUNT_NOT_SET:
      break;
  }
  return status::InvalidField(field, "needs tokens, bytes or fraction");
}

// Fields of 0 have the default.
template <typename T>
T Or(T value, T missing) {
  return value == 0 ? missing : value;
}

absl::StatusOr<std::shared_ptr<const MemoryPolicy>> CreateNamm(const Proto::Namm& namm,
                                                               const PolicyResources& resources) {
  const auto found = resources.namm.find(namm.artifact());
  if (found == resources.namm.end()) {
    const std::string loaded = absl::StrJoin(
        resources.namm, ", ",
        [](std::string* out, const auto& entry) { absl::StrAppend(out, entry.first); });
    return status::WithPayload(absl::FailedPreconditionError(absl::StrCat(
                                   "no NAMM artifact of this name is loaded: \"", namm.artifact(),
                                   "\"; loaded: ", loaded.empty() ? "none" : loaded)),
                               status::kFieldPayload, "memory_policy.namm.artifact");
  }
  NammOverrides overrides;
  if (namm.cache_size() != 0) overrides.cache_size = namm.cache_size();
  if (namm.delay() != 0) overrides.delay = namm.delay();
  if (namm.has_threshold()) overrides.threshold = namm.threshold();
  return NammPolicy(found->second, overrides);
}

}  // namespace

absl::StatusOr<std::shared_ptr<const MemoryPolicy>> CreatePolicy(const Proto& policy,
                                                                 const PolicyResources& resources) {
  absl::StatusOr<std::shared_ptr<const MemoryPolicy>> created = FullPolicy();
  switch (policy.policy_case()) {
    case Proto::kWindow:
      return WindowPolicy(policy.window().sinks(), policy.window().recent());
    case Proto::kH2O: {
      ASSIGN_OR_RETURN(const EvictionBudget budget,
                       BudgetOf(policy.h2o().budget(), "memory_policy.h2o.budget", resources));
      created = H2oPolicy({.budget = budget,
                           .recent = policy.h2o().recent(),
                           .interval = Or<int64_t>(policy.h2o().interval(), kDefaultInterval)});
      break;
    }
    case Proto::kSnapkv: {
      const Proto::SnapKv& snapkv = policy.snapkv();
      ASSIGN_OR_RETURN(const EvictionBudget budget,
                       BudgetOf(snapkv.budget(), "memory_policy.snapkv.budget", resources));
      created = SnapKvPolicy({.budget = budget,
                              .window = Or<int64_t>(snapkv.window(), 32),
                              .kernel_size = Or<int64_t>(snapkv.kernel_size(), 5),
                              .interval = Or<int64_t>(snapkv.interval(), kDefaultInterval)});
      break;
    }
    case Proto::kL2Norm: {
      const Proto::L2Norm& l2norm = policy.l2norm();
      ASSIGN_OR_RETURN(const EvictionBudget budget,
                       BudgetOf(l2norm.budget(), "memory_policy.l2norm.budget", resources));
      created = L2NormPolicy({.budget = budget,
                              .skip_layers = l2norm.has_skip_layers() ? l2norm.skip_layers() : 2,
                              .interval = Or<int64_t>(l2norm.interval(), kDefaultInterval)});
      break;
    }
    case Proto::kNamm:
      created = CreateNamm(policy.namm(), resources);
      break;
    case Proto::kBeacon: {
      if (resources.beacons == nullptr) {
        return status::WithPayload(
            absl::FailedPreconditionError("the model names no end token to make beacons of"),
            status::kFieldPayload, "memory_policy.beacon");
      }
      ASSIGN_OR_RETURN(BeaconSettings settings,
                       BeaconSettingsOf(policy.beacon(), *resources.beacons));
      return BeaconPolicy(std::move(settings));
    }
    case Proto::kFull:
    case Proto::POLICY_NOT_SET:
      break;
  }
  if (created.ok() && (*created)->moves_entries() && resources.shape.has_sliding_windows()) {
    return status::InvalidField(
        "memory_policy", absl::StrCat("the model has sliding windows of its own, which ",
                                      (*created)->name(), " does not go with; use window or full"));
  }
  return created;
}

}  // namespace mneme::memory
