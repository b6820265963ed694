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

void StepPlanner::AddTokens(const SequenceStep& step, Rows* rows) {
  const memory::KvSequence& sequence = *step.sequence;
  const memory::AttentionMask mask = sequence.policy().mask();
  for (size_t i = 0; i < step.tokens.size(); ++i) {
    const int64_t position = sequence.num_tokens() + static_cast<int64_t>(i);
    rows->tokens.push_back(step.tokens[i]);
    rows->positions.push_back(position);
    // A window never spans more than its own entries.
    rows->lengths.push_back(mask.window == 0 ? position + 1
                                             : std::min(position + 1, mask.sinks + mask.window));
  }
  const auto end = static_cast<int64_t>(rows->tokens.size());
  for (int64_t row = end - step.num_logits; row < end; ++row) rows->logit_rows.push_back(row);
}

void StepPlanner::AddPass(const SequenceStep& step, Rows* rows) {
  const auto first_row = static_cast<int64_t>(rows->tokens.size());
  int64_t num_tokens = 0;
  for (const memory::BeaconRow& row : step.pass->rows) {
    const auto index = static_cast<int64_t>(rows->tokens.size());
    if (row.kind == memory::BeaconRowKind::kToken) {
      rows->tokens.push_back(step.tokens[num_tokens++]);
      if (static_cast<int64_t>(step.tokens.size()) - num_tokens < step.num_logits) {
        rows->logit_rows.push_back(index);
      }
    } else {
      rows->tokens.push_back(0);
      rows->beacon_rows.push_back(index);
    }
    if (row.kind == memory::BeaconRowKind::kReplica) {
      rows->replica_rows.push_back(index);
      rows->replica_origins.push_back(first_row + row.origin);
    }
    rows->positions.push_back(row.position);
    rows->lengths.push_back(step.pass->after.rope_length);
  }
}

absl::StatusOr<StepPlan> StepPlanner::Plan(absl::Span<const SequenceStep> steps) {
  Rows rows;
  for (const SequenceStep& step : steps) {
    rows.slots.push_back(step.sequence->slot());
    if (step.pass == nullptr) {
      AddTokens(step, &rows);
    } else {
      AddPass(step, &rows);
    }
    rows.starts.push_back(static_cast<int32_t>(rows.tokens.size()));
  }

  StepPlan plan{.num_tokens = static_cast<int64_t>(rows.tokens.size()),
                .num_logits = static_cast<int64_t>(rows.logit_rows.size()),
                .mask_of_layer = mask_of_layer_};
  RETURN_IF_ERROR(CatchTorch("planning the step", [&] {
    plan.tokens = ToDevice(rows.tokens, at::kInt, device_);
    plan.seq_slot = ToDevice(rows.slots, at::kInt, device_);
    plan.query_start = ToDevice(rows.starts, at::kInt, device_);
    plan.logit_rows = ToDevice(rows.logit_rows, at::kLong, device_);
    if (!rows.beacon_rows.empty()) {
      plan.beacon_rows = ToDevice(rows.beacon_rows, at::kLong, device_);
    }
    if (!rows.replica_rows.empty()) {
      plan.replica_rows = ToDevice(rows.replica_rows, at::kLong, device_);
      plan.replica_origins = ToDevice(rows.replica_origins, at::kLong, device_);
    }
  }));
  ASSIGN_OR_RETURN(Rotation rotation, Rotate(rotation_, rows.positions, rows.lengths));
  plan.cos = std::move(rotation.cos);
  plan.sin = std::move(rotation.sin);
  if (rotary_.scales_queries()) {
    ASSIGN_OR_RETURN(Rotation query, Rotate(query_rotation_, rows.positions, rows.lengths));
    RETURN_IF_ERROR(rotary_.ScaleQueries(rows.positions, query.cos, query.sin));
    plan.q_cos = std::move(query.cos);
    plan.q_sin = std::move(query.sin);
  }
  RETURN_IF_ERROR(AddHidden(steps, rows, &plan));
  RETURN_IF_ERROR(AddMasks(steps, rows, &plan));
  return plan;
}

absl::Status StepPlanner::AddHidden(absl::Span<const SequenceStep> steps, const Rows& rows,
                                    StepPlan* plan) const {
  int64_t num_columns = 0;
  for (const SequenceStep& step : steps) {
    if (step.pass == nullptr || step.pass->visible.empty()) continue;
    num_columns = std::max(num_columns, step.pass->num_columns());
  }
  if (num_columns == 0) return absl::OkStatus();
  return CatchTorch("planning the step", [&] {
    at::Tensor hidden = at::zeros({plan->num_tokens, num_columns}, at::kByte);
    uint8_t* const cells = hidden.mutable_data_ptr<uint8_t>();
    std::vector<int32_t> hidden_from(steps.size(), 0);
    for (size_t s = 0; s < steps.size(); ++s) {
      const memory::BeaconPass* const pass = steps[s].pass;
      if (pass == nullptr || pass->visible.empty()) continue;
      hidden_from[s] = static_cast<int32_t>(pass->first_column);
      const int64_t width = pass->num_columns();
      for (size_t r = 0; r < pass->rows.size(); ++r) {
        for (int64_t c = 0; c < width; ++c) {
          cells[(rows.starts[s] + static_cast<int64_t>(r)) * num_columns + c] =
              pass->visible[r * width + c] == 0;
        }
      }
    }
    plan->hidden = hidden.to(device_);
    plan->hidden_from = ToDevice(hidden_from, at::kInt, device_);
  });
}

absl::Status StepPlanner::AddMasks(absl::Span<const SequenceStep> steps, const Rows& rows,
                                   StepPlan* plan) {
  for (size_t m = 0; m < windows_.size(); ++m) {
    std::vector<int32_t> window, sinks;
    std::vector<int64_t> sink_positions;
    bool any_window = false;
    bool any_sinks = false;
    for (const SequenceStep& step : steps) {
      // Beacons are seen from any distance: the model's own window does not count.
      const memory::AttentionMask mask =
          step.pass != nullptr ? memory::AttentionMask()
                               : memory::MaskOfLayer(step.sequence->policy().mask(), windows_[m]);
      window.push_back(static_cast<int32_t>(mask.window));
      sinks.push_back(static_cast<int32_t>(mask.sinks));
      any_window |= mask.window > 0;
      any_sinks |= mask.sinks > 0;
      while (static_cast<int64_t>(sink_positions.size()) < rows.starts[window.size()]) {
        const int64_t position = rows.positions[sink_positions.size()];
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
      ASSIGN_OR_RETURN(Rotation sink, Rotate(sink_rotations_[m], sink_positions, rows.lengths));
      if (rotary_.scales_queries()) {
        RETURN_IF_ERROR(rotary_.ScaleQueries(sink_positions, sink.cos, sink.sin));
      }
      layer_mask.sink_cos = std::move(sink.cos);
      layer_mask.sink_sin = std::move(sink.sin);
      plan->has_sinks = true;
    }
    plan->masks.push_back(std::move(layer_mask));
  }
  return absl::OkStatus();
}

}  // namespace mneme::model
