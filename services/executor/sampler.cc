#include "services/executor/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "services/executor/philox.h"

namespace mneme::executor {
namespace {

// Below this, weights other than the maximum's vanish in float32 anyway.
constexpr float kGreedyTemperature = 1e-5F;
// Beside the heaviest token's weight of 1.
constexpr float kHeavy = 1e-2F;
constexpr float kLeastWeight = std::numeric_limits<float>::min();

// Returns the token whose cumulative weight passes u * total, in order of ids.
int32_t DrawFromAll(const SamplerScratch& scratch, double total, double u) {
  double target = u * total;
  size_t block = 0;
  while (block + 1 < scratch.block_sums.size() && target >= scratch.block_sums[block]) {
    target -= scratch.block_sums[block++];
  }
  // Rounding may leave the target at the very end of the block or of the row: the last token that
  // has any weight takes it.
  int32_t last = -1;
  for (;; --block) {
    const size_t end = std::min<size_t>((block + 1) * kWeightBlock, scratch.weights.size());
    double sum = 0;
    for (size_t i = block * kWeightBlock; i < end; ++i) {
      if (scratch.weights[i] <= 0) continue;
      last = static_cast<int32_t>(i);
      sum += scratch.weights[i];
      if (sum > target) return last;
    }
    if (last >= 0 || block == 0) return last;
    target = total;
  }
}

// Sorts a prefix of `candidates` and returns its size: the fewest whose weights, best first, sum to
// at least `needed`. Their `logit` is their weight. Sorts in growing pieces, for most
// distributions are decided by a few tokens.
size_t SortNucleus(std::vector<Candidate>* candidates, double needed) {
  double sum = 0;
  size_t begin = 0;
  for (size_t piece = 64; begin < candidates->size(); piece *= 4) {
    const size_t end = std::min(candidates->size(), begin + piece);
    if (end < candidates->size()) {
      std::nth_element(candidates->begin() + begin, candidates->begin() + end, candidates->end(),
                       ComesBefore);
    }
    std::sort(candidates->begin() + begin, candidates->begin() + end, ComesBefore);
    for (size_t i = begin; i < end; ++i) {
      sum += (*candidates)[i].logit;
      if (sum >= needed) return i + 1;
    }
    begin = end;
  }
  return candidates->size();
}

// Returns the candidate whose cumulative weight passes u times the weight of all.
int32_t DrawFrom(absl::Span<const Candidate> candidates, double u) {
  double total = 0;
  for (const Candidate& candidate : candidates) total += candidate.logit;
  const double target = u * total;
  double sum = 0;
  for (const Candidate& candidate : candidates) {
    sum += candidate.logit;
    if (sum > target) return candidate.id;
  }
  return candidates.back().id;
}

int32_t Draw(const SamplingParams& params, absl::Span<const float> logits, double u,
             SamplerScratch* scratch) {
  if (params.temperature < kGreedyTemperature || params.top_k == 1) return ArgMax(logits);
  const float max = MaxLogit(logits);
  if (!std::isfinite(max)) return -1;
  const float scale = 1 / params.temperature;
  const int64_t size = logits.size();
  std::vector<Candidate>& candidates = scratch->candidates;
  candidates.clear();
  double total = 0;
  if (params.top_k > 0 && params.top_k < size) {
    SelectTop(logits, params.top_k, &candidates);
    std::vector<float>& top = scratch->weights;
    top.resize(candidates.size());
    for (size_t i = 0; i < candidates.size(); ++i) top[i] = candidates[i].logit;
    ExpWeights(top, max, scale, absl::MakeSpan(top));
    size_t kept = 0;
    for (; kept < top.size() && (kept == 0 || top[kept] >= params.min_p); ++kept) {
      candidates[kept].logit = top[kept];
      total += top[kept];
    }
    candidates.resize(kept);
  } else {
    scratch->weights.resize(size);
    total = ExpWeights(logits, max, scale, absl::MakeSpan(scratch->weights), &scratch->block_sums);
    if (params.min_p == 0 && params.top_p == 1) return DrawFromAll(*scratch, total, u);
    if (params.min_p > 0) {
      total = GatherAtLeast(scratch->weights, params.min_p, &candidates);
    } else {
      // Tokens lighter than (1 - p) * total / V weigh less than 1 - p together, so the nucleus lies
      // within the others; the margin covers rounding. Mostly the heaviest few suffice.
      const double needed = params.top_p * total;
      const float light = static_cast<float>((1 - double{params.top_p}) * total / size * 0.99);
      if (GatherAtLeast(scratch->weights, std::max(light, kHeavy), &candidates) < needed) {
        candidates.clear();
        GatherAtLeast(scratch->weights, std::max(light, kLeastWeight), &candidates);
      }
    }
  }
  if (params.top_p < 1) candidates.resize(SortNucleus(&candidates, params.top_p * total));
  return DrawFrom(candidates, u);
}

}  // namespace

Sampler::Sampler(std::shared_ptr<const SamplingParams> params, uint64_t seed)
    : params_(std::move(params)), seed_(seed) {}

void Sampler::AddPrompt(absl::Span<const int32_t> ids) {
  if (params_->repetition_penalty == 1) return;
  for (const int32_t id : ids) seen_.try_emplace(id, 0);
}

void Sampler::AddGenerated(int32_t id) {
  ++num_generated_;
  if (params_->has_penalties()) ++seen_[id];
}

bool Sampler::IsEnd(int32_t id) const {
  return std::binary_search(params_->end_ids.begin(), params_->end_ids.end(), id);
}

void Sampler::Adjust(absl::Span<float> logits) const {
  if (num_generated_ < params_->min_tokens) {
    for (const int32_t id : params_->end_ids) {
      logits[id] = -std::numeric_limits<float>::infinity();
    }
  }
  for (const auto& [id, bias] : params_->logit_bias) logits[id] += bias;
  for (const auto& [id, count] : seen_) {
    float& logit = logits[id];
    logit = logit > 0 ? logit / params_->repetition_penalty : logit * params_->repetition_penalty;
    if (count > 0) {
      logit -= params_->frequency_penalty * static_cast<float>(count) + params_->presence_penalty;
    }
  }
}

int32_t Sampler::Sample(absl::Span<float> logits, int64_t position, SamplerScratch* scratch) const {
  Adjust(logits);
  return Draw(*params_, logits, Uniform(seed_, static_cast<uint64_t>(position)), scratch);
}

TokenScores ScoreToken(absl::Span<const float> logits, int32_t id, int num_top,
                       SamplerScratch* scratch) {
  const double log_sum = LogSumExp(logits);
  TokenScores scores;
  scores.chosen = {id, static_cast<float>(logits[id] - log_sum), RankOf(logits, id)};
  if (num_top == 0) return scores;
  SelectTop(logits, num_top, &scratch->candidates);
  for (const Candidate& candidate : scratch->candidates) {
    scores.top.push_back({candidate.id, static_cast<float>(candidate.logit - log_sum),
                          static_cast<int32_t>(scores.top.size()) + 1});
  }
  return scores;
}

}  // namespace mneme::executor
