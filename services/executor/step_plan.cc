#include "services/executor/step_plan.h"

#include <algorithm>

namespace mneme::executor {

std::vector<int64_t> PlanStep(absl::Span<const StepWish> wishes, const StepRoom& room) {
  std::vector<int64_t> plan(wishes.size(), 0);
  int64_t left = room.step_tokens;
  std::vector<size_t> chunks;
  for (size_t i = 0; i < wishes.size(); ++i) {
    if (wishes[i].waiting_tokens > 1) {
      chunks.push_back(i);
    } else if (left > 0) {
      plan[i] = wishes[i].waiting_tokens;
      left -= plan[i];
    }
  }
  left = std::min(left, room.prefill_tokens);
  if (chunks.empty() || left <= 0) return plan;
  int64_t rows = room.logit_rows;
  const auto give = [&](size_t i, int64_t tokens) {
    tokens = std::min({tokens, left, wishes[i].waiting_tokens - plan[i]});
    if (wishes[i].needs_all_logits) {
      tokens = std::min(tokens, rows);
      rows -= tokens;
    }
    plan[i] += tokens;
    left -= tokens;
  };
  give(chunks.front(), std::max<int64_t>(left / 4, 1));
  std::stable_sort(chunks.begin(), chunks.end(), [&wishes](size_t a, size_t b) {
    return wishes[a].waiting_tokens < wishes[b].waiting_tokens;
  });
  for (const size_t i : chunks) give(i, left);
  return plan;
}

}  // namespace mneme::executor
