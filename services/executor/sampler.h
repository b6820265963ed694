// Chooses the next token of one answer.
//
// The order of operations is vLLM's: end tokens masked before min_tokens, logit bias, repetition
// penalty (Hugging Face's: over prompt and generated tokens), frequency and presence penalty (over
// generated tokens), temperature, min-p, top-k, top-p, draw. The draw is a pure function of the
// logits and (seed, position): it is the same alone, in any batch and on any replica.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/types/span.h"
#include "services/executor/logit_ops.h"
#include "services/executor/sampling_params.h"

namespace mneme::executor {

// Buffers that calls on one thread share.
struct SamplerScratch {
  std::vector<float> weights;
  std::vector<double> block_sums;
  std::vector<Candidate> candidates;
};

// Holds what earlier tokens mean for the next one. Not thread-safe.
class Sampler {
 public:
  // `seed` is the answer's own (SeedOfAnswer).
  Sampler(std::shared_ptr<const SamplingParams> params, uint64_t seed);

  // Tells the sampler which tokens there are already.
  void AddPrompt(absl::Span<const int32_t> ids);
  void AddGenerated(int32_t id);
  int64_t num_generated() const { return num_generated_; }

  // Returns the token at `position`, its index in prompt + generated, or -1 where the logits [V]
  // have no finite maximum. The logits are changed in place.
  int32_t Sample(absl::Span<float> logits, int64_t position, SamplerScratch* scratch) const;

  // Returns whether `id` ends the answer. Sample never returns such an id before min_tokens.
  bool IsEnd(int32_t id) const;

 private:
  void Adjust(absl::Span<float> logits) const;

  std::shared_ptr<const SamplingParams> params_;
  uint64_t seed_;
  int64_t num_generated_ = 0;
  absl::flat_hash_map<int32_t, int32_t> seen_;  // id -> times generated; kept if penalties are on
};

// What the model's own distribution says of a token; becomes v1::TokenLogprob.
struct TokenScore {
  int32_t id = 0;
  float logprob = 0;  // natural logarithm
  int32_t rank = 0;   // 1 is the most likely
};

struct TokenScores {
  TokenScore chosen;
  std::vector<TokenScore> top;  // most likely first
};

// Returns the log-probability of `id` and of the `num_top` most likely tokens under the raw logits.
TokenScores ScoreToken(absl::Span<const float> logits, int32_t id, int num_top,
                       SamplerScratch* scratch);

}  // namespace mneme::executor
