#include "services/cli/policy_text.h"

#include <cstdint>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"

namespace mneme::cli {
namespace {

using inference::v1::MemoryPolicy;
using Parts = std::vector<absl::string_view>;

bool ReadBudget(absl::string_view text, MemoryPolicy::Budget* budget) {
  int64_t tokens = 0;
  if (absl::SimpleAtoi(text, &tokens)) {
    budget->set_tokens(tokens);
    return tokens > 0;
  }
  const std::pair<absl::string_view, absl::string_view> parts = absl::StrSplit(text, '/');
  double above = 0;
  double below = 1;
  if (!absl::SimpleAtod(parts.first, &above)) return false;
  if (absl::StrContains(text, '/') && !absl::SimpleAtod(parts.second, &below)) return false;
  budget->set_fraction(above / below);
  return budget->fraction() > 0 && budget->fraction() < 1;
}

bool ReadWindow(const Parts& parts, MemoryPolicy::Window* window) {
  int32_t sinks = 0;
  int32_t recent = 0;
  if (parts.size() != 2 || !absl::SimpleAtoi(parts[0], &sinks) ||
      !absl::SimpleAtoi(parts[1], &recent)) {
    return false;
  }
  window->set_sinks(sinks);
  window->set_recent(recent);
  return sinks >= 0 && recent >= 1;
}

bool ReadNamm(const Parts& parts, MemoryPolicy::Namm* namm) {
  int32_t size = 0;
  if (parts.size() > 2 || parts[0].empty()) return false;
  if (parts.size() == 2 && (!absl::SimpleAtoi(parts[1], &size) || size < 1)) return false;
  namm->set_artifact(std::string(parts[0]));
  namm->set_cache_size(size);
  return true;
}

bool ReadBeacon(const Parts& parts, MemoryPolicy::Beacon* beacon) {
  for (absl::string_view part : parts) {
    const bool is_bound = absl::ConsumePrefix(&part, "max=");
    int32_t number = 0;
    if (!absl::SimpleAtoi(part, &number) || number < (is_bound ? 1 : 0)) return false;
    if (is_bound) {
      beacon->set_max_beacons(number);
    } else {
      beacon->add_ratios(number);
    }
  }
  return beacon->ratios_size() > 0;
}

bool Read(absl::string_view name, absl::string_view rest, MemoryPolicy* policy) {
  const Parts parts = absl::StrSplit(rest, ',');
  if (name == "window") return ReadWindow(parts, policy->mutable_window());
  if (name == "h2o") return ReadBudget(rest, policy->mutable_h2o()->mutable_budget());
  if (name == "snapkv") return ReadBudget(rest, policy->mutable_snapkv()->mutable_budget());
  if (name == "l2norm") return ReadBudget(rest, policy->mutable_l2norm()->mutable_budget());
  if (name == "namm") return ReadNamm(parts, policy->mutable_namm());
  if (name == "beacon") return ReadBeacon(parts, policy->mutable_beacon());
  return false;
}

}  // namespace

absl::StatusOr<MemoryPolicy> ParsePolicy(absl::string_view text) {
  MemoryPolicy policy;
  absl::string_view rest = text;
  const bool is_elastic = absl::ConsumeSuffix(&rest, ",elastic");
  const std::vector<absl::string_view> parts = absl::StrSplit(rest, absl::MaxSplits(':', 1));
  if (rest == "full") policy.mutable_full();
  const bool is_read = rest == "full" || (parts.size() == 2 && Read(parts[0], parts[1], &policy));
  if (is_elastic) policy.set_elastic(true);
  if (is_read && (!is_elastic || policy.has_full() || policy.has_window())) return policy;
  return absl::InvalidArgumentError(
      absl::StrCat("no such memory policy: ", text, "\nthere are ", kPolicyForms));
}

}  // namespace mneme::cli
