#include "common/memory/namm_selection.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace mneme::memory {
namespace {

constexpr float kLowest = std::numeric_limits<float>::lowest();

std::vector<float> WithoutPadding(const HeadScores& head) {
  std::vector<float> scores(head.scores.begin(), head.scores.end());
  for (size_t i = 0; i < scores.size(); ++i) {
    if ((!head.valid.empty() && head.valid[i] == 0) || std::isnan(scores[i])) scores[i] = kLowest;
  }
  return scores;
}

}  // namespace

std::vector<int64_t> LargestIndices(absl::Span<const float> scores, int64_t size) {
  std::vector<int64_t> indices(scores.size());
  std::iota(indices.begin(), indices.end(), 0);
  size = std::clamp<int64_t>(size, 0, static_cast<int64_t>(indices.size()));
  std::nth_element(
      indices.begin(), indices.begin() + size, indices.end(),
      [&](int64_t a, int64_t b) { return scores[a] != scores[b] ? scores[a] > scores[b] : a > b; });
  indices.resize(size);
  std::sort(indices.begin(), indices.end());
  return indices;
}

Selection SelectByThreshold(absl::Span<const HeadScores> heads, const ThresholdSelection& options) {
  Selection selection;
  std::vector<std::vector<float>> scores;
  int64_t most = 0;
  for (const HeadScores& head : heads) {
    scores.push_back(WithoutPadding(head));
    scores.back().back() = std::numeric_limits<float>::max();
    int64_t above = std::count_if(scores.back().begin(), scores.back().end(),
                                  [&](float score) { return score >= options.threshold; });
    if (options.cache_size.has_value()) {
      above = std::min(above, std::max<int64_t>(*options.cache_size, 1));
    }
    selection.above_threshold.push_back(above);
    most = std::max(most, above);
  }
  for (const std::vector<float>& head : scores)
    selection.kept.push_back(LargestIndices(head, most));
  return selection;
}

Selection SelectTopK(absl::Span<const HeadScores> heads, int64_t size) {
  Selection selection;
  for (const HeadScores& head : heads) {
    selection.kept.push_back(LargestIndices(WithoutPadding(head), size));
    selection.above_threshold.push_back(static_cast<int64_t>(selection.kept.back().size()));
  }
  return selection;
}

std::vector<int64_t> SelectRecent(int64_t num_tokens, int64_t size) {
  std::vector<int64_t> indices(std::clamp<int64_t>(size, 0, num_tokens));
  std::iota(indices.begin(), indices.end(), num_tokens - static_cast<int64_t>(indices.size()));
  return indices;
}

}  // namespace mneme::memory
