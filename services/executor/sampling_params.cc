#include "services/executor/sampling_params.h"

#include <algorithm>
#include <random>

#include "absl/strings/str_cat.h"
#include "common/status/annotate.h"
#include "common/status/status_macros.h"

namespace mneme::executor {
namespace {

constexpr int kMaxBiases = 1024;
constexpr float kMaxBias = 100;
constexpr int kMaxStopIds = 1024;

// The comparisons below are written so that NaN fails them.
absl::Status CheckRange(const char* field, double value, bool in_range, const char* range) {
  if (in_range) return absl::OkStatus();
  return status::InvalidField(absl::StrCat("sampling.", field),
                              absl::StrCat("must be ", range, ": ", value));
}

absl::Status CheckId(const char* field, int32_t id, int64_t vocab_size) {
  if (id >= 0 && id < vocab_size) return absl::OkStatus();
  return status::InvalidField(
      absl::StrCat("sampling.", field),
      absl::StrCat("token id outside the vocabulary of ", vocab_size, " tokens: ", id));
}

absl::Status CheckTopLogprobs(const char* field, int value) {
  return CheckRange(field, value, value >= 0 && value <= kMaxTopLogprobs, "in [0, 20]");
}

uint64_t RandomSeed() {
  std::random_device device;
  return uint64_t{device()} << 32 | device();
}

}  // namespace

absl::StatusOr<SamplingParams> CheckSampling(const inference::v1::Sampling& sampling,
                                             int64_t vocab_size,
                                             const std::vector<int32_t>& eos_token_ids) {
  SamplingParams params;
  if (sampling.has_temperature()) params.temperature = sampling.temperature();
  RETURN_IF_ERROR(CheckRange("temperature", params.temperature,
                             params.temperature >= 0 && params.temperature <= 1000,
                             "in [0, 1000]"));
  params.top_k = sampling.top_k();
  RETURN_IF_ERROR(CheckRange("top_k", params.top_k, params.top_k >= 0, ">= 0"));
  if (sampling.has_top_p()) params.top_p = sampling.top_p();
  RETURN_IF_ERROR(
      CheckRange("top_p", params.top_p, params.top_p > 0 && params.top_p <= 1, "in (0, 1]"));
  params.min_p = sampling.min_p();
  RETURN_IF_ERROR(
      CheckRange("min_p", params.min_p, params.min_p >= 0 && params.min_p <= 1, "in [0, 1]"));
  params.presence_penalty = sampling.presence_penalty();
  RETURN_IF_ERROR(CheckRange("presence_penalty", params.presence_penalty,
                             params.presence_penalty >= -2 && params.presence_penalty <= 2,
                             "in [-2, 2]"));
  params.frequency_penalty = sampling.frequency_penalty();
  RETURN_IF_ERROR(CheckRange("frequency_penalty", params.frequency_penalty,
                             params.frequency_penalty >= -2 && params.frequency_penalty <= 2,
                             "in [-2, 2]"));
  if (sampling.has_repetition_penalty()) params.repetition_penalty = sampling.repetition_penalty();
  RETURN_IF_ERROR(CheckRange("repetition_penalty", params.repetition_penalty,
                             params.repetition_penalty > 0 && params.repetition_penalty <= 1000,
                             "in (0, 1000]"));
  if (sampling.logit_bias_size() > kMaxBiases) {
    return status::InvalidField(
        "sampling.logit_bias",
        absl::StrCat("has more than ", kMaxBiases, " entries: ", sampling.logit_bias_size()));
  }
  for (const auto& [id, bias] : sampling.logit_bias()) {
    RETURN_IF_ERROR(CheckId("logit_bias", id, vocab_size));
    RETURN_IF_ERROR(
        CheckRange("logit_bias", bias, bias >= -kMaxBias && bias <= kMaxBias, "in [-100, 100]"));
    params.logit_bias.emplace_back(id, bias);
  }
  std::sort(params.logit_bias.begin(), params.logit_bias.end());
  params.seed = sampling.has_seed() ? sampling.seed() : RandomSeed();
  if (sampling.stop_token_ids_size() > kMaxStopIds) {
    return status::InvalidField(
        "sampling.stop_token_ids",
        absl::StrCat("has more than ", kMaxStopIds, " entries: ", sampling.stop_token_ids_size()));
  }
  for (const int32_t id : sampling.stop_token_ids()) {
    RETURN_IF_ERROR(CheckId("stop_token_ids", id, vocab_size));
    params.end_ids.push_back(id);
  }
  if (!sampling.ignore_eos()) {
    params.end_ids.insert(params.end_ids.end(), eos_token_ids.begin(), eos_token_ids.end());
  }
  std::sort(params.end_ids.begin(), params.end_ids.end());
  params.end_ids.erase(std::unique(params.end_ids.begin(), params.end_ids.end()),
                       params.end_ids.end());
  if (sampling.has_max_tokens()) {
    params.max_tokens = sampling.max_tokens();
    RETURN_IF_ERROR(
        CheckRange("max_tokens", sampling.max_tokens(), params.max_tokens >= 1, ">= 1"));
  }
  params.min_tokens = sampling.min_tokens();
  RETURN_IF_ERROR(CheckRange("min_tokens", sampling.min_tokens(), params.min_tokens >= 0, ">= 0"));
  if (params.max_tokens != 0 && params.min_tokens > params.max_tokens) {
    return status::InvalidField(
        "sampling.min_tokens",
        absl::StrCat("is over max_tokens: ", params.min_tokens, " > ", params.max_tokens));
  }
  params.n = sampling.n() == 0 ? 1 : sampling.n();
  RETURN_IF_ERROR(CheckRange("n", params.n, params.n >= 1 && params.n <= kMaxAnswers,
                             "in [1, 16] (0 means 1)"));
  if (sampling.has_logprobs()) {
    RETURN_IF_ERROR(CheckTopLogprobs("logprobs", sampling.logprobs()));
    params.logprobs = sampling.logprobs();
  }
  if (sampling.has_prompt_logprobs()) {
    RETURN_IF_ERROR(CheckTopLogprobs("prompt_logprobs", sampling.prompt_logprobs()));
    params.prompt_logprobs = sampling.prompt_logprobs();
  }
  return params;
}

}  // namespace mneme::executor
