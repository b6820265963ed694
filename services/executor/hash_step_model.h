// A model for tests of the engine: small and quick, but it keeps its past in the same pages as a
// real one, through the same tables. Its logits are a hash of every entry that a query can see, in
// every layer and head, so a page that is shared wrongly, given back too early or never written
// changes the text.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "services/executor/step_model.h"

namespace mneme::executor {

struct HashModelOptions {
  int64_t vocab_size = 64;
  int64_t context_length = 512;
  int64_t num_layers = 2;
  int64_t num_kv_heads = 2;
  std::vector<int32_t> eos_token_ids = {0};
};

// What one step consisted of, for tests of fairness: tokens of each sequence, in order.
using StepRecord = std::vector<int64_t>;

class HashStepModel final : public StepModel {
 public:
  explicit HashStepModel(const HashModelOptions& options = {});

  const ModelLimits& limits() const override { return limits_; }
  const memory::KvShape& kv_shape() const override { return shape_; }
  memory::KvPoolOptions PoolOptions(int64_t budget_bytes) const override;
  absl::StatusOr<at::Tensor> Forward(absl::Span<const model::SequenceStep> steps) override;

  // The budget of a pool of so many pages.
  int64_t BudgetOf(int64_t num_pages) const;

  const std::vector<StepRecord>& steps() const { return steps_; }
  // Called before each step, on the engine's thread; an error is the step's result.
  std::function<absl::Status()> before_step;
  bool gives_nan = false;

 private:
  void WriteEntries(const model::SequenceStep& step) const;
  uint64_t HashPast(const memory::KvSequence& sequence, int64_t query) const;

  ModelLimits limits_;
  memory::KvShape shape_;
  std::vector<StepRecord> steps_;
};

}  // namespace mneme::executor
