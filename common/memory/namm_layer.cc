#include "common/memory/namm_layer.h"

#include <ATen/Functions.h>

#include <algorithm>
#include <cstring>
#include <limits>

#include "absl/strings/str_cat.h"
#include "kernels/parallel.h"

namespace mneme::memory {
namespace {

constexpr int64_t kTokensPerTask = 64;
constexpr int64_t kMinCapacity = 64;

void AppendFloats(const at::Tensor& tensor, std::string* bytes) {
  const at::Tensor dense = tensor.contiguous();
  bytes->append(reinterpret_cast<const char*>(dense.const_data_ptr<float>()),
                static_cast<size_t>(dense.numel()) * sizeof(float));
}

}  // namespace

NammLayer::NammLayer(const NammLayer& other)
    : spectrogram_(other.spectrogram_),
      num_heads_(other.num_heads_),
      num_tokens_(other.num_tokens_),
      pending_(other.pending_) {
  if (!other.ema_.defined()) return;
  ema_ = other.ema_.clone();
  samples_ = other.samples_.clone();
}

int64_t NammLayer::num_bytes() const {
  if (!ema_.defined()) return 0;
  return (ema_.numel() + samples_.numel()) * static_cast<int64_t>(sizeof(float));
}

at::Tensor NammLayer::ema() const {
  return ema_.defined() ? ema_.narrow(1, 0, num_tokens_)
                        : at::empty({num_heads_, 0, spectrogram_->num_frequencies()}, at::kFloat);
}

at::Tensor NammLayer::samples() const {
  const int64_t width = spectrogram_->carry() + pending_;
  return samples_.defined() ? samples_.narrow(1, 0, num_tokens_).narrow(2, 0, width)
                            : at::empty({num_heads_, 0, width}, at::kFloat);
}

void NammLayer::Grow(int64_t num_tokens) {
  const int64_t capacity = ema_.defined() ? ema_.size(1) : 0;
  if (num_tokens > capacity) {
    const int64_t wanted = std::max({num_tokens, kMinCapacity, capacity + capacity / 2});
    at::Tensor ema = at::zeros({num_heads_, wanted, spectrogram_->num_frequencies()}, at::kFloat);
    at::Tensor samples = at::zeros({num_heads_, wanted, spectrogram_->options().n_fft}, at::kFloat);
    if (num_tokens_ > 0) {
      ema.narrow(1, 0, num_tokens_).copy_(ema_.narrow(1, 0, num_tokens_));
      samples.narrow(1, 0, num_tokens_).copy_(samples_.narrow(1, 0, num_tokens_));
    }
    ema_ = std::move(ema);
    samples_ = std::move(samples);
  } else if (num_tokens > num_tokens_) {
    ema_.narrow(1, num_tokens_, num_tokens - num_tokens_).zero_();
    samples_.narrow(1, num_tokens_, num_tokens - num_tokens_).zero_();
  }
  num_tokens_ = std::max(num_tokens_, num_tokens);
}

void NammLayer::Observe(const at::Tensor& weights) {
  const int64_t num_queries = weights.size(1);
  const int64_t num_tokens = weights.size(2);
  Grow(num_tokens);
  const int64_t hop = spectrogram_->options().hop;
  const int64_t width = spectrogram_->options().n_fft;
  const int64_t capacity = ema_.size(1);
  const float* const source = weights.const_data_ptr<float>();
  float* const samples = samples_.data_ptr<float>();
  for (int64_t begin = 0; begin < num_queries;) {
    const int64_t count = std::min(hop - pending_, num_queries - begin);
    const int64_t column = spectrogram_->carry() + pending_;
    for (int64_t head = 0; head < num_heads_; ++head) {
      const float* const rows = source + (head * num_queries + begin) * num_tokens;
      float* const target = samples + head * capacity * width + column;
      for (int64_t token = 0; token < num_tokens; ++token) {
        for (int64_t i = 0; i < count; ++i) {
          target[token * width + i] = rows[i * num_tokens + token];
        }
      }
    }
    pending_ += count;
    begin += count;
    if (pending_ == hop) ConsumeFrame();
  }
}

void NammLayer::ConsumeFrame() {
  const int64_t hop = spectrogram_->options().hop;
  const int64_t width = spectrogram_->options().n_fft;
  const int64_t frequencies = spectrogram_->num_frequencies();
  const int64_t capacity = ema_.size(1);
  float* const samples = samples_.data_ptr<float>();
  float* const ema = ema_.data_ptr<float>();
  const int64_t pieces = (num_tokens_ + kTokensPerTask - 1) / kTokensPerTask;
  kernels::ParallelFor(num_heads_ * pieces, [&](int64_t task) {
    const int64_t first = task % pieces * kTokensPerTask;
    const int64_t end = std::min(num_tokens_, first + kTokensPerTask);
    for (int64_t token = first; token < end; ++token) {
      const int64_t row = task / pieces * capacity + token;
      float* const frame = samples + row * width;
      spectrogram_->Accumulate(frame, ema + row * frequencies);
      std::memmove(frame, frame + hop, static_cast<size_t>(width - hop) * sizeof(float));
    }
  });
  pending_ = 0;
}

NammLayer::Evaluation NammLayer::Evaluate(const NammModel& model, const at::Tensor& positions,
                                          RunningStatistics* running,
                                          const at::Tensor& valid) const {
  Evaluation evaluation;
  evaluation.ema = ema();
  const at::Tensor dense = evaluation.ema.contiguous();
  const bool is_frozen = !model.statistics().empty();
  if (!is_frozen && running->stored.empty()) {
    std::vector<uint8_t> counted;
    if (valid.defined()) {
      for (int64_t head = 0; head < num_heads_; ++head) {
        const uint8_t* const flags = valid.const_data_ptr<uint8_t>();
        counted.insert(counted.end(), flags, flags + num_tokens_);
      }
    }
    running->fresh.Merge(FrequencyStatistics::Measure(
        absl::MakeConstSpan(dense.const_data_ptr<float>(), dense.numel()),
        spectrogram_->num_frequencies(), counted));
  }
  evaluation.features =
      model.Features(dense, positions, is_frozen ? model.statistics() : running->effective());
  evaluation.scores = model.network().Score(evaluation.features, positions, valid);
  std::vector<HeadScores> heads;
  for (int64_t head = 0; head < num_heads_; ++head) {
    HeadScores scores;
    scores.scores = absl::MakeConstSpan(
        evaluation.scores.const_data_ptr<float>() + head * num_tokens_, num_tokens_);
    if (valid.defined()) {
      scores.valid = absl::MakeConstSpan(valid.const_data_ptr<uint8_t>(), num_tokens_);
    }
    heads.push_back(scores);
  }
  evaluation.selection = SelectByThreshold(heads, model.config().selection);
  return evaluation;
}

void NammLayer::Keep(absl::Span<const std::vector<int64_t>> kept) {
  const int64_t count = static_cast<int64_t>(kept[0].size());
  const int64_t frequencies = spectrogram_->num_frequencies();
  const int64_t width = spectrogram_->options().n_fft;
  const int64_t capacity = ema_.size(1);
  float* const ema = ema_.data_ptr<float>();
  float* const samples = samples_.data_ptr<float>();
  for (int64_t head = 0; head < num_heads_; ++head) {
    // Indices ascend, so a row never overwrites one that is still to move.
    for (int64_t i = 0; i < count; ++i) {
      const int64_t from = head * capacity + kept[head][i];
      const int64_t to = head * capacity + i;
      if (from == to) continue;
      std::copy_n(ema + from * frequencies, frequencies, ema + to * frequencies);
      std::copy_n(samples + from * width, width, samples + to * width);
    }
  }
  num_tokens_ = count;
}

void NammLayer::Serialise(std::string* bytes) const {
  const int64_t header[] = {num_tokens_, pending_};
  bytes->append(reinterpret_cast<const char*>(header), sizeof(header));
  AppendFloats(ema(), bytes);
  AppendFloats(samples(), bytes);
}

absl::Status NammLayer::Restore(absl::string_view* bytes) {
  int64_t header[2];
  if (bytes->size() < sizeof(header)) return absl::InvalidArgumentError("NAMM state is cut short");
  std::memcpy(header, bytes->data(), sizeof(header));
  bytes->remove_prefix(sizeof(header));
  const auto [tokens, pending] = header;
  const int64_t frequencies = spectrogram_->num_frequencies();
  const int64_t width = spectrogram_->carry() + pending;
  if (tokens < 0 || tokens > std::numeric_limits<int32_t>::max() || pending < 0 ||
      pending >= spectrogram_->options().hop) {
    return absl::InvalidArgumentError(
        absl::StrCat("no such NAMM state: ", tokens, " tokens, ", pending, " pending"));
  }
  const int64_t floats = num_heads_ * tokens * (frequencies + width);
  if (static_cast<int64_t>(bytes->size()) < floats * static_cast<int64_t>(sizeof(float))) {
    return absl::InvalidArgumentError("NAMM state is cut short");
  }
  num_tokens_ = 0;
  Grow(tokens);
  pending_ = pending;
  const auto take = [&](at::Tensor target) {
    at::Tensor dense = at::empty(target.sizes(), at::kFloat);
    const size_t size = static_cast<size_t>(dense.numel()) * sizeof(float);
    if (size > 0) std::memcpy(dense.data_ptr<float>(), bytes->data(), size);
    bytes->remove_prefix(size);
    target.copy_(dense);
  };
  if (tokens == 0) return absl::OkStatus();
  take(ema_.narrow(1, 0, tokens));
  take(samples_.narrow(1, 0, tokens).narrow(2, 0, width));
  return absl::OkStatus();
}

}  // namespace mneme::memory
