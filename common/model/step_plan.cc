#include "common/model/step_plan.h"

#include <ATen/Functions.h>

#include <algorithm>
#include <utility>

#include "common/model/torch_status.h"
#include "common/status/status_macros.h"

namespace mneme::model {
namespace {

template <typename T>
at::Tensor ToDevice(const std::vector<T>& values, at::ScalarType type, at::Device device) {
  return at::tensor(at::ArrayRef<T>(values), type).to(device);
}

}  // namespace

StepPlanner::StepPlanner(const weights::ModelConfig& config, const memory::KvShape& shape,
                         RotaryTables rotary, at::Device device)
    : head_size_(config.head_size), rotary_(std::move(rotary)), device_(device) {
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    const int64_t window = shape.sliding_window(layer);
    const auto found = std::find(windows_.begin(), windows_.end(), window);
    mask_of_layer_.push_back(static_cast<int32_t>(found - windows_.begin()));
    if (found == windows_.end()) windows_.push_back(window);
  }
  sink_rotations_.resize(windows_.size());
}

absl::StatusOr<StepPlanner::Rotation> StepPlanner::Rotate(Rotation& storage,
                                                          const std::vector<int64_t>& positions,
                                                          const std::vector<int64_t>& lengths) {
  const auto rows = static_cast<int64_t>(positions.size());
  if (!storage.cos.defined() || storage.cos.size(0) < rows) {
    RETURN_IF_ERROR(CatchTorch("rotary tables", [&] {
      const auto options = at::TensorOptions().dtype(at::kFloat).device(device_);
      storage.cos = at::empty({rows, head_size_ / 2}, options);
      storage.sin = at::empty({rows, head_size_ / 2}, options);
    }));
  }
  Rotation step{.cos = storage.cos.narrow(0, 0, rows), .sin = storage.sin.narrow(0, 0, rows)};
  RETURN_IF_ERROR(rotary_.Fill(positions, lengths, step.cos, step.sin));
  return step;
}

absl::StatusOr<StepPlan> StepPlanner::Plan(absl::Span<const SequenceStep> steps) {
  std::vector<int32_t> tokens, slots, starts = {0};
  std::vector<int64_t> logit_rows, positions, lengths;
  for (const SequenceStep& step : steps) {
    const memory::KvSequence& sequence = *step.sequence;
    const memory::AttentionMask mask = sequence.policy().mask();
    slots.push_back(sequence.slot());
    for (size_t i = 0; i < step.tokens.size(); ++i) {
      const int64_t position = sequence.num_tokens() + static_cast<int64_t>(i);
      tokens.push_back(step.tokens[i]);
      positions.push_back(position);
      // A window never spans more than its own entries.
      lengths.push_back(mask.window == 0 ? position + 1
                                         : std::min(position + 1, mask.sinks + mask.window));
    }
    starts.push_back(static_cast<int32_t>(tokens.size()));
    const auto end = static_cast<int64_t>(tokens.size());
    for (int64_t row = end - step.num_logits; row < end; ++row) logit_rows.push_back(row);
  }

  StepPlan plan{.num_tokens = static_cast<int64_t>(tokens.size()),
                .num_logits = static_cast<int64_t>(logit_rows.size()),
                .mask_of_layer = mask_of_layer_};
  RETURN_IF_ERROR(CatchTorch("planning the step", [&] {
    plan.tokens = ToDevice(tokens, at::kInt, device_);
    plan.seq_slot = ToDevice(slots, at::kInt, device_);
    plan.query_start = ToDevice(starts, at::kInt, device_);
    plan.logit_rows = ToDevice(logit_rows, at::kLong, device_);
  }));
  ASSIGN_OR_RETURN(Rotation rotation, Rotate(rotation_, positions, lengths));
  plan.cos = std::move(rotation.cos);
  plan.sin = std::move(rotation.sin);

  for (size_t m = 0; m < windows_.size(); ++m) {
    std::vector<int32_t> window, sinks;
    std::vector<int64_t> sink_positions;
    bool any_window = false;
    bool any_sinks = false;
    for (const SequenceStep& step : steps) {
      const memory::AttentionMask mask =
          memory::MaskOfLayer(step.sequence->policy().mask(), windows_[m]);
      window.push_back(static_cast<int32_t>(mask.window));
      sinks.push_back(static_cast<int32_t>(mask.sinks));
      any_window |= mask.window > 0;
      any_sinks |= mask.sinks > 0;
      for (size_t i = 0; i < step.tokens.size(); ++i) {
        const int64_t position = step.sequence->num_tokens() + static_cast<int64_t>(i);
        sink_positions.push_back(
            mask.sinks == 0 ? position : std::min(position, mask.sinks + mask.window - 1));
      }
    }
    LayerMask layer_mask;
    RETURN_IF_ERROR(CatchTorch("planning the step", [&] {
      if (any_window) layer_mask.window = ToDevice(window, at::kInt, device_);
      if (any_sinks) layer_mask.sinks = ToDevice(sinks, at::kInt, device_);
    }));
    if (any_sinks) {
      ASSIGN_OR_RETURN(Rotation sink, Rotate(sink_rotations_[m], sink_positions, lengths));
      layer_mask.sink_cos = std::move(sink.cos);
      layer_mask.sink_sin = std::move(sink.sin);
      plan.has_sinks = true;
    }
    plan.masks.push_back(std::move(layer_mask));
  }
  return plan;
}

}  // namespace mneme::model
