// What the engine asks of a model: one step for many sequences. Implemented by the real model and,
// in tests, by a small one that reads and writes the same pages.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/memory/kv_pool.h"
#include "common/memory/kv_shape.h"
#include "common/memory/memory_policy.h"
#include "common/model/model.h"

namespace mneme::executor {

// What requests are checked against.
struct ModelLimits {
  int64_t vocab_size = 0;      // V
  int64_t context_length = 0;  // tokens of prompt and answer together
  std::vector<int32_t> eos_token_ids;
  memory::PolicyResources policies;  // what memory policies may refer to
};

// Used by one thread.
class StepModel {
 public:
  virtual ~StepModel() = default;

  virtual const ModelLimits& limits() const = 0;
  virtual const memory::KvShape& kv_shape() const = 0;
  virtual memory::KvPoolOptions PoolOptions(int64_t budget_bytes) const = 0;

  // As model::Model::Forward: logits float32 [R, V], valid until the next call. A sequence's
  // results must not depend on the others of the step, nor on how its tokens were cut into steps.
  virtual absl::StatusOr<at::Tensor> Forward(absl::Span<const model::SequenceStep> steps) = 0;
};

}  // namespace mneme::executor
