#include "services/gateway/request_checks.h"

#include <cmath>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/status/annotate.h"
#include "common/status/status_macros.h"
#include "common/trace/request_context.h"

namespace mneme::gateway {
namespace {

namespace iv1 = inference::v1;

constexpr int kMaxStops = 16;
constexpr size_t kMaxStopBytes = 256;
constexpr int kMaxBiases = 1024;
constexpr absl::string_view kRoles[] = {"system", "user",      "assistant",
                                        "tool",   "developer", "function"};

absl::Status InRange(absl::string_view field, double value, double lowest, double highest) {
  if (value >= lowest && value <= highest) return absl::OkStatus();  // a NaN is in no range
  return status::InvalidField(field, absl::StrCat("must lie between ", lowest, " and ", highest));
}

// Whether the template names the role as a literal, as Jinja code that treats it specially must.
bool TemplateNames(absl::string_view chat_template, absl::string_view role) {
  return trace::IsIdentifier(role) &&
         (absl::StrContains(chat_template, absl::StrCat("'", role, "'")) ||
          absl::StrContains(chat_template, absl::StrCat("\"", role, "\"")));
}

}  // namespace

absl::Status CheckSampling(const iv1::Sampling& sampling, int32_t vocab_size) {
  if (sampling.has_temperature()) {
    RETURN_IF_ERROR(InRange("sampling.temperature", sampling.temperature(), 0, 100));
  }
  if (sampling.has_top_k() && sampling.top_k() < 0) {
    return status::InvalidField("sampling.top_k", "must be 0 (off) or more");
  }
  if (sampling.has_top_p() && !(sampling.top_p() > 0 && sampling.top_p() <= 1)) {
    return status::InvalidField("sampling.top_p", "must be over 0 and at most 1");
  }
  if (sampling.has_min_p()) RETURN_IF_ERROR(InRange("sampling.min_p", sampling.min_p(), 0, 1));
  if (sampling.has_presence_penalty()) {
    RETURN_IF_ERROR(InRange("sampling.presence_penalty", sampling.presence_penalty(), -2, 2));
  }
  if (sampling.has_frequency_penalty()) {
    RETURN_IF_ERROR(InRange("sampling.frequency_penalty", sampling.frequency_penalty(), -2, 2));
  }
  if (sampling.has_repetition_penalty() &&
      !(sampling.repetition_penalty() > 0 && std::isfinite(sampling.repetition_penalty()))) {
    return status::InvalidField("sampling.repetition_penalty", "must be over 0");
  }
  if (sampling.logit_bias_size() > kMaxBiases) {
    return status::InvalidField("sampling.logit_bias",
                                absl::StrCat("must have at most ", kMaxBiases, " entries"));
  }
  for (const auto& [id, bias] : sampling.logit_bias()) {
    if (id < 0 || id >= vocab_size) {
      return status::InvalidField("sampling.logit_bias",
                                  absl::StrCat("must name tokens of the vocabulary, not ", id));
    }
    if (!(bias >= -100 && bias <= 100)) {
      return status::InvalidField("sampling.logit_bias", "must have values between -100 and 100");
    }
  }
  if (sampling.stop_size() > kMaxStops) {
    return status::InvalidField("sampling.stop",
                                absl::StrCat("must have at most ", kMaxStops, " strings"));
  }
  for (const std::string& stop : sampling.stop()) {
    if (stop.empty() || stop.size() > kMaxStopBytes) {
      return status::InvalidField(
          "sampling.stop", absl::StrCat("must have strings of 1 to ", kMaxStopBytes, " bytes"));
    }
  }
  for (const int32_t id : sampling.stop_token_ids()) {
    if (id < 0 || id >= vocab_size) {
      return status::InvalidField("sampling.stop_token_ids",
                                  absl::StrCat("must name tokens of the vocabulary, not ", id));
    }
  }
  if (sampling.has_max_tokens() && sampling.max_tokens() < 1) {
    return status::InvalidField("sampling.max_tokens", "must be at least 1");
  }
  if (sampling.min_tokens() < 0 ||
      (sampling.has_max_tokens() && sampling.min_tokens() > sampling.max_tokens())) {
    return status::InvalidField("sampling.min_tokens", "must lie between 0 and max_tokens");
  }
  if (sampling.n() < 0 || sampling.n() > kMaxAnswers) {
    return status::InvalidField("sampling.n", absl::StrCat("must lie between 1 and ", kMaxAnswers));
  }
  if (sampling.has_logprobs()) {
    RETURN_IF_ERROR(InRange("sampling.logprobs", sampling.logprobs(), 0, kMaxLogprobs));
  }
  if (sampling.has_prompt_logprobs()) {
    RETURN_IF_ERROR(
        InRange("sampling.prompt_logprobs", sampling.prompt_logprobs(), 0, kMaxLogprobs));
  }
  return absl::OkStatus();
}

absl::Status CheckMemoryPolicy(const iv1::MemoryPolicy& policy) {
  if (policy.has_elastic() && policy.policy_case() != iv1::MemoryPolicy::POLICY_NOT_SET &&
      !policy.has_full() && !policy.has_window()) {
    return status::InvalidField("memory_policy.elastic", "goes with full and window only");
  }
  if (policy.has_guard()) {
    if (!policy.has_h2o() && !policy.has_snapkv() && !policy.has_l2norm()) {
      return status::InvalidField("memory_policy.guard", "goes with h2o, snapkv and l2norm only");
    }
    if (!(policy.guard().max_kl() > 0)) {
      return status::InvalidField("memory_policy.guard.max_kl", "must be above 0, in nats");
    }
  }
  if (!policy.has_window()) return absl::OkStatus();
  if (policy.window().sinks() < 0) {
    return status::InvalidField("memory_policy.window.sinks", "must be 0 or more");
  }
  if (policy.window().recent() < 1) {
    return status::InvalidField("memory_policy.window.recent", "must be at least 1");
  }
  return absl::OkStatus();
}

absl::Status CheckMessages(const google::protobuf::RepeatedPtrField<iv1::Message>& messages,
                           int max_messages, absl::string_view chat_template) {
  if (messages.empty()) {
    return status::InvalidField("messages", "must have at least one message");
  }
  if (messages.size() > max_messages) {
    return status::InvalidField("messages", absl::StrCat("must have at most ", max_messages,
                                                         " messages, not ", messages.size()));
  }
  for (int i = 0; i < messages.size(); ++i) {
    const std::string& role = messages[i].role();
    bool known = TemplateNames(chat_template, role);
    for (const absl::string_view each : kRoles) known = known || role == each;
    if (!known) {
      return status::InvalidField(
          absl::StrCat("messages[", i, "].role"),
          "must be one of system, user, assistant, tool, developer, function");
    }
  }
  return absl::OkStatus();
}

}  // namespace mneme::gateway
