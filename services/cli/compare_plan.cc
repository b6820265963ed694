#include "services/cli/compare_plan.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "common/status/status_macros.h"
#include "nlohmann/json.hpp"

namespace mneme::cli {
namespace {

constexpr int64_t kSinks = 4;

absl::StatusOr<double> ShareOf(const std::string& text) {
  const std::vector<std::string> parts = absl::StrSplit(text, '/');
  double above = 0;
  double below = 1;
  const bool is_number = parts.size() <= 2 && absl::SimpleAtod(parts[0], &above) &&
                         (parts.size() == 1 || absl::SimpleAtod(parts[1], &below));
  const double share = above / below;
  if (!is_number || !(share > 0) || !(share < 1)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a budget is a share of the history between 0 and 1, as 1/4 or 0.25: \"", text, "\""));
  }
  return share;
}

absl::Status SetPolicy(Contender* contender, int64_t history, int64_t target) {
  const int64_t budget = contender->budget_tokens;
  inference::v1::MemoryPolicy& policy = contender->memory_policy;
  contender->history_tokens = history;
  contender->block_tokens = target;
  int64_t least = 2;
  if (contender->policy == "truncate") {
    policy.mutable_full();
    contender->history_tokens = budget / 2;
    contender->block_tokens = budget - budget / 2;
    least = 2;
  } else if (contender->policy == "window") {
    policy.mutable_window()->set_sinks(kSinks);
    policy.mutable_window()->set_recent(static_cast<int32_t>(budget - kSinks));
    least = kSinks + 1;
  } else if (contender->policy == "h2o") {
    policy.mutable_h2o()->mutable_budget()->set_tokens(budget);
  } else if (contender->policy == "snapkv") {
    policy.mutable_snapkv()->mutable_budget()->set_tokens(budget);
    least = 33;  // more than its default window
  } else if (contender->policy == "l2norm") {
    policy.mutable_l2norm()->mutable_budget()->set_tokens(budget);
  } else if (contender->policy == "beacon") {
    const int64_t ratio = std::llround(static_cast<double>(history) / static_cast<double>(budget));
    if (std::abs(ratio * budget - history) > ratio) {
      return absl::InvalidArgumentError(absl::StrCat(
          "beacon compresses by whole ratios, so its budget is 1/2, 1/4, 1/8 and so on: \"",
          contender->share, "\""));
    }
    policy.mutable_beacon()->add_ratios(static_cast<int32_t>(ratio));
  } else {
    return absl::InvalidArgumentError(absl::StrCat(
        "the policies are full, truncate, window, h2o, snapkv, l2norm and beacon, not \"",
        contender->policy, "\""));
  }
  if (budget < least) {
    return absl::InvalidArgumentError(absl::StrCat(
        contender->policy, " needs a budget of at least ", least, " tokens, ", contender->share,
        " of the history are ", budget, ": choose a longer history or a larger budget"));
  }
  return absl::OkStatus();
}

double Ratio(double above, int64_t below) {
  return below == 0 ? 0 : above / static_cast<double>(below);
}

std::string MiB(int64_t bytes) {
  return absl::StrFormat("%.1f", static_cast<double>(bytes) / (1 << 20));
}

}  // namespace

absl::StatusOr<ComparePlan> MakeComparePlan(const std::vector<std::string>& policies,
                                            const std::vector<std::string>& shares, int64_t history,
                                            int64_t target) {
  if (history < 1 || target < 1) {
    return absl::InvalidArgumentError("history and target need at least one token each");
  }
  ComparePlan plan{.history = history, .target = target};
  Contender full{.policy = "full", .history_tokens = history, .block_tokens = target};
  full.memory_policy.mutable_full();
  plan.contenders.push_back(std::move(full));
  for (const std::string& share : shares) {
    ASSIGN_OR_RETURN(const double part, ShareOf(share));
    for (const std::string& policy : policies) {
      if (policy == "full") continue;
      Contender contender{.policy = policy,
                          .share = share,
                          .budget_tokens = std::llround(part * static_cast<double>(history))};
      RETURN_IF_ERROR(SetPolicy(&contender, history, target));
      plan.contenders.push_back(std::move(contender));
    }
  }
  return plan;
}

absl::StatusOr<std::vector<size_t>> WindowStarts(size_t num_tokens, int64_t window_tokens,
                                                 int64_t num_windows) {
  const auto window = static_cast<size_t>(window_tokens);
  const auto count = static_cast<size_t>(num_windows);
  if (num_windows < 1 || num_tokens < window * count) {
    return absl::InvalidArgumentError(
        absl::StrCat("the text has ", num_tokens, " tokens, ", num_windows, " windows of ",
                     window_tokens, " need more: give a longer text, or ask for fewer or smaller"));
  }
  std::vector<size_t> starts;
  for (size_t i = 0; i < count; ++i) {
    starts.push_back(count == 1 ? 0 : i * (num_tokens - window) / (count - 1));
  }
  return starts;
}

double CompareResult::Perplexity() const { return std::exp(-Ratio(sum_logprob, num_scored)); }
double CompareResult::ReadMsPerToken() const { return Ratio(read_ms, num_read); }
double CompareResult::WriteMsPerToken() const { return Ratio(write_ms, num_written); }

std::vector<std::vector<std::string>> CompareRows(const ComparePlan& plan,
                                                  const std::vector<CompareResult>& results) {
  std::vector<std::vector<std::string>> rows = {{"policy", "budget", "tokens", "perplexity",
                                                 "to full", "resident MiB", "peak MiB",
                                                 "read ms/token", "write ms/token"}};
  const double full = results[0].Perplexity();
  for (size_t i = 0; i < results.size(); ++i) {
    const Contender& contender = plan.contenders[i];
    const CompareResult& result = results[i];
    rows.push_back(
        {contender.policy, contender.share.empty() ? "all" : contender.share,
         absl::StrCat(contender.budget_tokens == 0 ? plan.history : contender.budget_tokens),
         absl::StrFormat("%.3f", result.Perplexity()),
         absl::StrFormat("%+.1f %%", 100 * (result.Perplexity() / full - 1)),
         MiB(result.resident_bytes), MiB(result.peak_bytes),
         absl::StrFormat("%.2f", result.ReadMsPerToken()),
         absl::StrFormat("%.2f", result.WriteMsPerToken())});
  }
  return rows;
}

std::string CompareJson(const Contender& contender, const CompareResult& result) {
  const nlohmann::ordered_json json = {{"policy", contender.policy},
                                       {"budget", contender.share},
                                       {"budget_tokens", contender.budget_tokens},
                                       {"perplexity", result.Perplexity()},
                                       {"scored_tokens", result.num_scored},
                                       {"kv_bytes_resident", result.resident_bytes},
                                       {"kv_bytes_peak", result.peak_bytes},
                                       {"read_ms_per_token", result.ReadMsPerToken()},
                                       {"write_ms_per_token", result.WriteMsPerToken()}};
  return json.dump();
}

}  // namespace mneme::cli
