// What the layers of a step need to know about its sequences, worked out once before the first.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/memory/kv_shape.h"
#include "common/model/model.h"
#include "common/model/rotary_tables.h"
#include "common/weights/model_config.h"

namespace mneme::model {

// The masks of all layers that have the same window of the model's own. Undefined tensors: no
// sequence needs one.
struct LayerMask {
  at::Tensor window;  // int32 [S]
  at::Tensor sinks;   // int32 [S]
  // The rotation that queries have for the sinks. float32 [T, D/2]
  at::Tensor sink_cos;
  at::Tensor sink_sin;
};

struct StepPlan {
  int64_t num_tokens = 0;  // T, of all sequences
  int64_t num_logits = 0;  // R
  at::Tensor tokens;       // int32 [T]
  at::Tensor seq_slot;     // int32 [S]
  at::Tensor query_start;  // int32 [S + 1]
  at::Tensor logit_rows;   // int64 [R]: rows of T whose logits are wanted
  at::Tensor cos;          // float32 [T, D/2]
  at::Tensor sin;          // float32 [T, D/2]
  std::vector<LayerMask> masks;
  std::vector<int32_t> mask_of_layer;  // [L], index into masks
  bool has_sinks = false;
  // The rotation of queries where it isn't that of keys; else undefined.
  at::Tensor q_cos;
  at::Tensor q_sin;

  // Of sequences with beacons; undefined where there are none.
  at::Tensor beacon_rows;      // int64: rows of T that are beacons or replicas; their token is 0
  at::Tensor replica_rows;     // int64: replicas, which take q, k and v from
  at::Tensor replica_origins;  // int64: these rows
  at::Tensor hidden;           // as kernels::AttentionBatch has it
  at::Tensor hidden_from;
};

// Makes plans of checked steps. Not thread-safe; a plan is valid until the next.
class StepPlanner {
 public:
  StepPlanner(const weights::ModelConfig& config, const memory::KvShape& shape, RotaryTables rotary,
              at::Device device);

  absl::StatusOr<StepPlan> Plan(absl::Span<const SequenceStep> steps);

  const RotaryTables& rotary() const { return rotary_; }

 private:
  // The rows of a step, before they become tensors.
  struct Rows {
    std::vector<int32_t> tokens, slots, starts = {0};
    std::vector<int64_t> logit_rows, positions, lengths;
    std::vector<int64_t> beacon_rows, replica_rows, replica_origins;
  };
  static void AddTokens(const SequenceStep& step, Rows* rows);
  static void AddPass(const SequenceStep& step, Rows* rows);
  // Gathers the masks of the passes that have one.
  absl::Status AddHidden(absl::Span<const SequenceStep> steps, const Rows& rows,
                         StepPlan* plan) const;
  absl::Status AddMasks(absl::Span<const SequenceStep> steps, const Rows& rows, StepPlan* plan);

  // Tables of float32 [T, D/2] that live from step to step.
  struct Rotation {
    at::Tensor cos;
    at::Tensor sin;
  };
  absl::StatusOr<Rotation> Rotate(Rotation& storage, const std::vector<int64_t>& positions,
                                  const std::vector<int64_t>& lengths);

  const int64_t head_size_;
  const RotaryTables rotary_;
  const at::Device device_;
  std::vector<int64_t> windows_;        // the distinct sliding windows of the layers
  std::vector<int32_t> mask_of_layer_;  // [L]
  Rotation rotation_;
  Rotation query_rotation_;
  std::vector<Rotation> sink_rotations_;  // one per distinct window
};

}  // namespace mneme::model
