#include "common/memory/namm_spectrogram.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "absl/strings/str_cat.h"
#include "common/status/annotate.h"

namespace mneme::memory {
namespace {

constexpr int64_t kMaxFft = 1024;

}  // namespace

absl::StatusOr<Spectrogram> Spectrogram::Create(const SpectrogramOptions& options) {
  if (options.n_fft < 2 || options.n_fft > kMaxFft) {
    return status::InvalidField("n_fft",
                                absl::StrCat("must be from 2 to ", kMaxFft, ": ", options.n_fft));
  }
  if (options.hop < 1 || options.hop > options.n_fft) {
    return status::InvalidField(
        "hop", absl::StrCat("must be from 1 to n_fft = ", options.n_fft, ": ", options.hop));
  }
  if (!(options.ema_coefficient >= 0 && options.ema_coefficient < 1)) {
    return status::InvalidField("ema_coeff",
                                absl::StrCat("must be in [0, 1): ", options.ema_coefficient));
  }
  return Spectrogram(options);
}

Spectrogram::Spectrogram(const SpectrogramOptions& options) : options_(options) {
  const int64_t size = options.n_fft;
  decay_ = static_cast<float>(std::pow(options.ema_coefficient, static_cast<double>(options.hop)));
  for (int64_t n = 0; n < size; ++n) {
    for (int64_t f = 0; f < num_frequencies(); ++f) {
      const double turn = 2 * std::numbers::pi / static_cast<double>(size);
      const double weight = options.window == SpectrogramWindow::kHann
                                ? 0.5 - 0.5 * std::cos(turn * static_cast<double>(n))
                                : 1 / static_cast<double>(size);
      // Reduced first, so that large products lose nothing.
      const double angle = turn * static_cast<double>(f * n % size);
      cosine_.push_back(static_cast<float>(weight * std::cos(angle)));
      sine_.push_back(static_cast<float>(weight * std::sin(angle)));
    }
  }
}

void Spectrogram::Transform(const float* samples, float* magnitudes) const {
  const int64_t size = options_.n_fft;
  const int64_t width = num_frequencies();
  // Frequencies innermost: they are independent sums, which the compiler turns into vectors.
  float real[kMaxFft / 2 + 1];
  float imaginary[kMaxFft / 2 + 1];
  std::fill_n(real, width, 0.0f);
  std::fill_n(imaginary, width, 0.0f);
  for (int64_t n = 0; n < size; ++n) {
    const float* const cosine = cosine_.data() + n * width;
    const float* const sine = sine_.data() + n * width;
    const float sample = samples[n];
    for (int64_t f = 0; f < width; ++f) {
      real[f] += cosine[f] * sample;
      imaginary[f] += sine[f] * sample;
    }
  }
  for (int64_t f = 0; f < width; ++f) {
    magnitudes[f] = std::sqrt(real[f] * real[f] + imaginary[f] * imaginary[f]);
  }
}

void Spectrogram::Accumulate(const float* samples, float* ema) const {
  float magnitudes[kMaxFft / 2 + 1];
  Transform(samples, magnitudes);
  for (int64_t f = 0; f < num_frequencies(); ++f) {
    ema[f] = decay_ * ema[f] + (1 - decay_) * magnitudes[f];
  }
}

void Spectrogram::Reduce(absl::Span<const float> tail, absl::Span<const float> signal, float* ema,
                         float* frames) const {
  std::vector<float> extended(carry(), 0.0f);
  std::copy(tail.begin(), tail.end(), extended.begin());
  extended.insert(extended.end(), signal.begin(), signal.end());
  const auto num_frames = static_cast<int64_t>(signal.size()) / options_.hop;
  std::vector<float> magnitudes(num_frequencies());
  std::vector<float> sum(num_frequencies(), 0.0f);
  for (int64_t t = 0; t < num_frames; ++t) {
    float* const frame = frames == nullptr ? magnitudes.data() : frames + t * num_frequencies();
    Transform(extended.data() + t * options_.hop, frame);
    const auto weight = static_cast<float>(
        (1 - double{decay_}) * std::pow(double{decay_}, static_cast<double>(num_frames - 1 - t)));
    for (int64_t f = 0; f < num_frequencies(); ++f) sum[f] += weight * frame[f];
  }
  const auto carried =
      static_cast<float>(std::pow(double{decay_}, static_cast<double>(num_frames)));
  for (int64_t f = 0; f < num_frequencies(); ++f) ema[f] = carried * ema[f] + sum[f];
}

}  // namespace mneme::memory
