// mneme.inference.v1.Sampling, checked, with every default filled in.
#pragma once

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "mneme/inference/v1/inference.pb.h"

namespace mneme::executor {

inline constexpr int kMaxAnswers = 16;
inline constexpr int kMaxTopLogprobs = 20;

// A value.
struct SamplingParams {
  float temperature = 1;  // 0: greedy
  int top_k = 0;          // 0: off
  float top_p = 1;
  float min_p = 0;
  float presence_penalty = 0;
  float frequency_penalty = 0;
  float repetition_penalty = 1;
  std::vector<std::pair<int32_t, float>> logit_bias;  // sorted by id
  uint64_t seed = 0;
  std::vector<int32_t> end_ids;  // sorted: stop ids and, unless ignored, the model's end tokens
  int64_t max_tokens = 0;        // 0: what the context leaves
  int64_t min_tokens = 0;
  int n = 1;
  std::optional<int> logprobs;         // how many alternatives beside the chosen token
  std::optional<int> prompt_logprobs;  // the same for the prompt's tokens

  bool has_penalties() const {
    return presence_penalty != 0 || frequency_penalty != 0 || repetition_penalty != 1;
  }
};

// Checks `sampling` for a model with `vocab_size` tokens whose end tokens are `eos_token_ids`.
// INVALID_ARGUMENT names the field. An absent seed is drawn at random. `stop` is not looked at: it
// belongs to whoever turns ids into text.
absl::StatusOr<SamplingParams> CheckSampling(const inference::v1::Sampling& sampling,
                                             int64_t vocab_size,
                                             const std::vector<int32_t>& eos_token_ids);

}  // namespace mneme::executor
