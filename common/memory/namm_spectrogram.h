// How a cached token has been attended to, as NAMM sees it (Cetin et al. 2024, "An Evolved
// Universal Transformer Memory"): the attention that the token receives from one query after the
// other is a signal; a short-time Fourier transform over it gives frames of magnitudes, and an
// exponential moving average over the frames gives a few numbers per token, whatever the length of
// its past.
//
// Two forms that agree to rounding: streaming, which keeps the average and the last n_fft samples,
// and buffered, over the whole Q x K matrix of all queries since the last update.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace mneme::memory {

enum class SpectrogramWindow {
  kHann,  // periodic: 0.5 - 0.5 cos(2 pi n / N)
  kFlat,  // 1 / N
};

struct SpectrogramOptions {
  int64_t n_fft = 32;             // N: samples of a frame
  int64_t hop = 16;               // queries from one frame to the next
  double ema_coefficient = 0.99;  // per query; a frame weighs old values with its hop-th power
  SpectrogramWindow window = SpectrogramWindow::kHann;
};

// Immutable, thread-safe.
class Spectrogram {
 public:
  // INVALID_ARGUMENT, naming the field: n_fft not from 2 to 1024, hop not from 1 to n_fft, the
  // coefficient not in [0, 1).
  static absl::StatusOr<Spectrogram> Create(const SpectrogramOptions& options);

  const SpectrogramOptions& options() const { return options_; }
  // F = N / 2 + 1.
  int64_t num_frequencies() const { return options_.n_fft / 2 + 1; }
  // Samples of the past that the next frame needs: N - hop.
  int64_t carry() const { return options_.n_fft - options_.hop; }

  // magnitudes [F] = |sum_n window[n] samples[n] e^(-2 pi i f n / N)|.
  void Transform(const float* samples, float* magnitudes) const;

  // Streaming: the frame of samples [N] enters the average: ema [F] = a ema + (1 - a) |frame|, with
  // a = ema_coefficient ^ hop. A token's average begins at zero, without bias correction.
  void Accumulate(const float* samples, float* ema) const;

  // Buffered: the `signal` [Q] of one token, Q a multiple of the hop, after the last carry()
  // samples before it in `tail` (empty: zeros). ema [F] holds the average before (zeros for a new
  // token) and afterwards the one after. `frames` [Q / hop, F], unless null, takes the magnitudes.
  void Reduce(absl::Span<const float> tail, absl::Span<const float> signal, float* ema,
              float* frames) const;

 private:
  explicit Spectrogram(const SpectrogramOptions& options);

  SpectrogramOptions options_;
  float decay_ = 0;            // a
  std::vector<float> cosine_;  // [N, F], times the window
  std::vector<float> sine_;
};

}  // namespace mneme::memory
