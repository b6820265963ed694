#include "services/cli/chat_settings.h"

#include <algorithm>
#include <map>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "common/status/status_macros.h"
#include "services/cli/console.h"

namespace mneme::cli {

void AddChatOptions(Arguments& arguments, ChatSettings* settings) {
  arguments.Option("session", "ID", &settings->session, "session to go on with, or to make");
  arguments.Option("model", "M", &settings->model, "model (default: the session's, the server's)");
  arguments.Option("system", "TEXT", &settings->system, "system message, at the beginning");
  arguments.Option("policy", "POLICY", &settings->policy,
                   absl::StrCat("memory policy: ", kPolicyForms));
  arguments.Option("temperature", "T", &settings->temperature, "0 is greedy (default 0.3)");
  arguments.Option("top-k", "N", &settings->top_k, "draw from the N likeliest tokens");
  arguments.Option("top-p", "P", &settings->top_p, "draw from the likeliest that make up P (0.9)");
  arguments.Option("min-p", "P", &settings->min_p,
                   "drop tokens below P times the likeliest (0.05)");
  arguments.Option("repetition-penalty", "R", &settings->repetition_penalty,
                   "1: none (default 1.1)");
  arguments.Option("seed", "N", &settings->seed, "the same seed gives the same answer");
  arguments.Option("max-tokens", "N", &settings->max_tokens, "longest answer");
}

absl::StatusOr<gateway::v1::ChatRequest> RequestFor(const ChatSettings& settings) {
  gateway::v1::ChatRequest request;
  request.set_model(settings.model);
  request.set_session_id(settings.session);
  if (!settings.policy.empty()) {
    ASSIGN_OR_RETURN(*request.mutable_memory_policy(), ParsePolicy(settings.policy));
  }
  inference::v1::Sampling* sampling = request.mutable_sampling();
  const auto real = [](std::optional<double> value) { return static_cast<float>(*value); };
  if (settings.temperature) sampling->set_temperature(real(settings.temperature));
  if (settings.top_p) sampling->set_top_p(real(settings.top_p));
  if (settings.min_p) sampling->set_min_p(real(settings.min_p));
  if (settings.repetition_penalty) {
    sampling->set_repetition_penalty(real(settings.repetition_penalty));
  }
  if (settings.top_k) sampling->set_top_k(*settings.top_k);
  if (settings.max_tokens) sampling->set_max_tokens(*settings.max_tokens);
  if (settings.seed) sampling->set_seed(*settings.seed);
  return request;
}

std::string BytesText(int64_t bytes) {
  constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  double amount = static_cast<double>(bytes);
  size_t unit = 0;
  while (amount >= 1024 && unit + 1 < std::size(kUnits)) {
    amount /= 1024;
    ++unit;
  }
  return unit == 0 ? absl::StrCat(bytes, " B") : absl::StrFormat("%.1f %s", amount, kUnits[unit]);
}

std::string ReceiptText(const inference::v1::MemoryReceipt& receipt) {
  std::vector<std::vector<std::string>> rows;
  const std::string version = receipt.committed_version() == 0
                                  ? "none"
                                  : absl::StrCat("version ", receipt.committed_version());
  rows.push_back(
      {"  committed", receipt.persisted() || receipt.not_persisted_reason().empty()
                          ? version
                          : absl::StrCat("not stored: ", receipt.not_persisted_reason())});
  rows.push_back(
      {"  tokens",
       absl::StrCat(receipt.restored_tokens(), " restored, ", receipt.reused_tokens(), " reused, ",
                    receipt.prefilled_tokens(), " prefilled, ", receipt.evicted_tokens(),
                    " evicted, ", receipt.resident_tokens(), " resident")});
  rows.push_back(
      {"  key/value memory", absl::StrCat(BytesText(receipt.kv_bytes_resident()), " resident of ",
                                          BytesText(receipt.kv_bytes_full()), " in full, peak ",
                                          BytesText(receipt.kv_bytes_peak()))});
  std::string compression = absl::StrFormat("%.2fx", receipt.compression_ratio());
  if (!receipt.policy().empty()) absl::StrAppend(&compression, ", ", receipt.policy());
  if (receipt.shrinks() > 0) {
    absl::StrAppend(&compression, ", tightened for want of pages: ", receipt.shrinks());
  }
  rows.push_back({"  compression", compression});
  if (receipt.has_guard()) {
    const inference::v1::GuardReport& guard = receipt.guard();
    rows.push_back({"  guard", absl::StrFormat("%d probes, %d skipped, worst KL %.3f, %d back-offs",
                                               guard.probes(), guard.skipped(), guard.worst_kl(),
                                               guard.back_offs())});
  }
  rows.push_back({"  came from", absl::StrCat(receipt.tier().empty() ? "none" : receipt.tier(),
                                              ", ", BytesText(receipt.bytes_moved()), " moved")});
  const std::map<std::string, double> stages(receipt.ms().begin(), receipt.ms().end());
  std::vector<std::string> times;
  for (const auto& [stage, ms] : stages) times.push_back(absl::StrFormat("%s %.1f", stage, ms));
  if (!times.empty()) rows.push_back({"  milliseconds", absl::StrJoin(times, ", ")});
  return Table(rows);
}

}  // namespace mneme::cli
