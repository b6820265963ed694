// Which sequence gets how many tokens of the next step: the engine's idea of fairness, apart from
// pages and models.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"

namespace mneme::executor {

// A sequence that could run.
struct StepWish {
  int64_t waiting_tokens = 0;  // to be computed; 1 is a decode step
  bool needs_all_logits = false;
};

struct StepRoom {
  int64_t step_tokens = 512;     // all tokens of a step
  int64_t prefill_tokens = 512;  // those of chunks, all together
  int64_t logit_rows = 512;      // rows of logits that chunks may ask for, all together
};

// Returns how many tokens each of `wishes` gets, in their order, which is the order of arrival.
//
// Every decode gets its token before any chunk gets one. Of the room for chunks a quarter goes to
// the prompt that came first, so that short newcomers cannot starve it; the rest goes to the
// prompts with the fewest tokens left, so that a long prompt does not keep short ones waiting.
std::vector<int64_t> PlanStep(absl::Span<const StepWish> wishes, const StepRoom& room);

}  // namespace mneme::executor
