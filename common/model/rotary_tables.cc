#include "common/model/rotary_tables.h"

#include <ATen/Functions.h>

#include "common/model/torch_status.h"
#include "common/status/status_macros.h"
#include "common/weights/rope.h"
#include "kernels/rotary.h"

namespace mneme::model {
namespace {

at::Tensor Frequencies(const weights::RopeFrequencies& rope, at::Device device) {
  return at::tensor(rope.inverse_frequencies, at::kFloat).to(device, at::kDouble);
}

at::Tensor Positions(absl::Span<const int64_t> positions, at::Device device) {
  return at::tensor(at::ArrayRef<int64_t>(positions.data(), positions.size()), at::kLong)
      .to(device);
}

}  // namespace

absl::StatusOr<RotaryTables> RotaryTables::Create(const weights::ModelConfig& config,
                                                  at::Device device) {
  RotaryTables tables(config, device);
  ASSIGN_OR_RETURN(const weights::RopeFrequencies rope, weights::ComputeRope(config, 1));
  ASSIGN_OR_RETURN(tables.inverse_frequencies_,
                   CatchTorch("rotary frequencies", [&] { return Frequencies(rope, device); }));
  tables.attention_factor_ = rope.attention_factor;
  return tables;
}

absl::Status RotaryTables::Fill(absl::Span<const int64_t> positions,
                                absl::Span<const int64_t> lengths, const at::Tensor& cos,
                                const at::Tensor& sin) const {
  RETURN_IF_ERROR(CatchTorch("rotary tables", [&] {
    kernels::RotaryTableOut(Positions(positions, device_), inverse_frequencies_, attention_factor_,
                            cos, sin);
  }));
  if (config_.rope_scaling.kind != weights::RopeScalingKind::kDynamicNtk) return absl::OkStatus();
  for (size_t t = 0; t < positions.size(); ++t) {
    if (lengths[t] <= config_.context_length) continue;
    ASSIGN_OR_RETURN(const weights::RopeFrequencies rope,
                     weights::ComputeRope(config_, lengths[t]));
    RETURN_IF_ERROR(CatchTorch("rotary tables", [&] {
      const auto row = static_cast<int64_t>(t);
      kernels::RotaryTableOut(Positions(positions.subspan(t, 1), device_),
                              Frequencies(rope, device_), rope.attention_factor,
                              cos.narrow(0, row, 1), sin.narrow(0, row, 1));
    }));
  }
  return absl::OkStatus();
}

}  // namespace mneme::model
