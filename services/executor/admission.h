// Whether a request can run here at all, decided before it joins the queue.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "common/memory/kv_shape.h"
#include "common/memory/memory_policy.h"
#include "mneme/inference/v1/inference.pb.h"
#include "services/executor/sequence.h"
#include "services/executor/step_model.h"

namespace mneme::executor {

struct AdmissionLimits {
  ModelLimits model;
  memory::KvShape kv_shape;
  int64_t num_pages = 0;  // of the pool
  int64_t step_tokens = 0;
  int64_t max_running = 0;
};

// Returns how many tokens the request's answers may have, prompt included: what the context (and
// max_tokens) allow. A window whose entries fit into the context may run past it. Where max_tokens
// is absent, the limit shrinks to what the pages can hold.
// INVALID_ARGUMENT: prompt or context over the context, or more answers than may run at a time.
// RESOURCE_EXHAUSTED: the pages of the whole pool would not suffice.
absl::StatusOr<int64_t> TokenLimit(const WorkSpec& spec, const AdmissionLimits& limits);

// Returns what a sequence of `num_tokens` holds under a policy, of pages of `page_bytes`.
inference::v1::MemoryEstimate EstimateMemory(const memory::MemoryPolicy& policy,
                                             const AdmissionLimits& limits, int64_t num_tokens,
                                             int64_t page_bytes);

}  // namespace mneme::executor
