// What compression costs a sequence, found out while it runs (memory_policy.guard): the latest
// tokens are read twice, by the full cache and by the sequence's policy at the share that it keeps
// at present, and how they predict the last of those is compared. Over the bound the sequence's
// budget is doubled.
//
// A probe is a function of tokens and policy alone, and comes at fixed numbers of tokens: the same
// in any batch, on any replica, after any restore. It costs two readings of kShadowTokens.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/memory/kv_pool.h"
#include "common/memory/kv_tables.h"
#include "services/executor/executor_metrics.h"
#include "services/executor/sequence.h"
#include "services/executor/sequence_cache.h"
#include "services/executor/step_model.h"

namespace mneme::executor {

// Used by the engine's thread.
class QualityGuard {
 public:
  // Tokens that a probe reads, and those of them that are predicted after the policy has dropped.
  static constexpr int64_t kShadowTokens = 256;
  static constexpr int64_t kScoredTokens = 16;

  // All must outlive this. Steps of probes have at most `step_tokens` tokens. Pages come from the
  // pool, and from `cache` where there are too few.
  QualityGuard(StepModel* model, memory::KvPool* pool, memory::KvTables* tables,
               SequenceCache* cache, int64_t step_tokens, ExecutorMetrics* metrics)
      : model_(model),
        pool_(pool),
        tables_(tables),
        cache_(cache),
        step_tokens_(step_tokens),
        metrics_(metrics) {}

  // Says whether the sequence is to be probed at the number of tokens that it has.
  static bool IsDue(const Sequence& sequence);

  // Probes the sequence and loosens its policy where it must. Where there are no pages for the
  // probe it is skipped; where the pool could not hold the looser memory the policy stays. Both
  // are no error. Anything that the model returns is. Invalidates the model's last logits.
  absl::Status Probe(Sequence* sequence);

 private:
  // Returns the mean divergence from the full cache; RESOURCE_EXHAUSTED: no pages.
  absl::StatusOr<double> Measure(absl::Span<const int32_t> tokens,
                                 std::shared_ptr<const memory::MemoryPolicy> policy);

  StepModel* const model_;
  memory::KvPool* const pool_;
  memory::KvTables* const tables_;
  SequenceCache* const cache_;
  const int64_t step_tokens_;
  ExecutorMetrics* const metrics_;
};

// The mean over rows of the Kullback-Leibler divergence of `other` from `exact`, in nats; logits
// float32 [R, V] each, contiguous, on the CPU.
double MeanDivergence(const at::Tensor& exact, const at::Tensor& other);

}  // namespace mneme::executor
