#include "common/model/rotary_tables.h"

#include <ATen/Functions.h>

#include <algorithm>
#include <cmath>

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
  const int64_t fixed_length = weights::FixedRopeLength(config_);
  for (size_t begin = 0, end = 0; begin < positions.size(); begin = end) {
    // Neighbours of one length have one set of frequencies.
    for (end = begin; end < positions.size() && lengths[end] == lengths[begin];) ++end;
    if (lengths[begin] <= fixed_length) continue;
    ASSIGN_OR_RETURN(const weights::RopeFrequencies rope,
                     weights::ComputeRope(config_, lengths[begin]));
    RETURN_IF_ERROR(CatchTorch("rotary tables", [&] {
      const auto row = static_cast<int64_t>(begin);
      const auto rows = static_cast<int64_t>(end - begin);
      kernels::RotaryTableOut(Positions(positions.subspan(begin, end - begin), device_),
                              Frequencies(rope, device_), rope.attention_factor,
                              cos.narrow(0, row, rows), sin.narrow(0, row, rows));
    }));
  }
  return absl::OkStatus();
}

bool RotaryTables::scales_queries() const {
  return config_.rope_scaling.kind == weights::RopeScalingKind::kYarnT ||
         config_.rope_scaling.kind == weights::RopeScalingKind::kYarnTLogN;
}

absl::Status RotaryTables::ScaleQueries(absl::Span<const int64_t> positions, const at::Tensor& cos,
                                        const at::Tensor& sin) const {
  std::vector<float> scales;
  scales.reserve(positions.size());
  for (const int64_t position : positions) {
    scales.push_back(static_cast<float>(weights::QueryScale(config_, position)));
  }
  return CatchTorch("rotary tables", [&] {
    const at::Tensor column = at::tensor(scales, at::kFloat).to(device_).unsqueeze(1);
    cos.mul_(column);
    sin.mul_(column);
  });
}

absl::StatusOr<std::pair<at::Tensor, at::Tensor>> RotaryTables::TurnTable(const Turn& turn) const {
  ASSIGN_OR_RETURN(const weights::RopeFrequencies from,
                   weights::ComputeRope(config_, turn.from_length));
  ASSIGN_OR_RETURN(const weights::RopeFrequencies to,
                   weights::ComputeRope(config_, turn.to_length));
  const double scale = to.attention_factor / from.attention_factor;
  return CatchTorch("rotary tables", [&] {
    const auto rows = static_cast<int64_t>(turn.to_positions.size());
    const auto width = static_cast<int64_t>(to.inverse_frequencies.size());
    const at::Tensor cos = at::empty({rows, width}, at::kFloat);
    const at::Tensor sin = at::empty({rows, width}, at::kFloat);
    float* c = cos.mutable_data_ptr<float>();
    float* s = sin.mutable_data_ptr<float>();
    for (int64_t t = 0; t < rows; ++t) {
      for (int64_t i = 0; i < width; ++i) {
        const double angle =
            static_cast<double>(turn.to_positions[t]) * to.inverse_frequencies[i] -
            static_cast<double>(turn.from_positions[t]) * from.inverse_frequencies[i];
        c[t * width + i] = static_cast<float>(scale * std::cos(angle));
        s[t * width + i] = static_cast<float>(scale * std::sin(angle));
      }
    }
    return std::pair(cos.to(device_), sin.to(device_));
  });
}

}  // namespace mneme::model
