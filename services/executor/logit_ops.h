// Passes over one row of logits, [V], each made to run at the speed of memory: sampling a batch of
// 64 sequences must cost little beside the model's own step. NaN counts as minus infinity.
//
// Results depend only on the row's values, never on alignment or threads.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"

namespace mneme::executor {

struct Candidate {
  float logit;
  int32_t id;
};

// Returns whether `a` comes before `b`: the higher logit first, the lower id among equals.
inline bool ComesBefore(const Candidate& a, const Candidate& b) {
  return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

// Returns the largest logit; minus infinity for an empty row.
float MaxLogit(absl::Span<const float> logits);

// Returns the lowest id that has the largest logit, or -1 where no logit is finite.
int32_t ArgMax(absl::Span<const float> logits);

// Writes exp((logits[i] - max) * scale) into weights[i] and returns their sum; values below e^-87
// become 0. `max` must be MaxLogit(logits), scale > 0. Blocks of kWeightBlock weights are summed in
// float32 and the blocks in double; their sums go to `block_sums`, if given.
inline constexpr int64_t kWeightBlock = 512;
double ExpWeights(absl::Span<const float> logits, float max, float scale, absl::Span<float> weights,
                  std::vector<double>* block_sums = nullptr);

// Appends the weights of at least `least` > 0 with their ids, ascending, and returns their sum.
double GatherAtLeast(absl::Span<const float> weights, float least, std::vector<Candidate>* found);

// Returns log(sum(exp(logits))), natural logarithm.
double LogSumExp(absl::Span<const float> logits);

// Returns the first `k` of the row in the order of ComesBefore, sorted; all of it if k >= V.
void SelectTop(absl::Span<const float> logits, int64_t k, std::vector<Candidate>* top);

// Returns how many come before `id`, plus one: 1 is the token that ArgMax returns.
int32_t RankOf(absl::Span<const float> logits, int32_t id);

}  // namespace mneme::executor
