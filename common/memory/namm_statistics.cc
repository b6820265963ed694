#include "common/memory/namm_statistics.h"

#include <algorithm>
#include <cmath>

namespace mneme::memory {
namespace {

constexpr double kMinDeviation = 1e-7;

}  // namespace

FrequencyStatistics FrequencyStatistics::Measure(absl::Span<const float> values,
                                                 int64_t num_frequencies,
                                                 absl::Span<const uint8_t> valid) {
  const auto rows = static_cast<int64_t>(values.size()) / num_frequencies;
  FrequencyStatistics result;
  result.mean.assign(num_frequencies, 0);
  result.variance.assign(num_frequencies, 0);
  int64_t count = 0;
  const auto counts = [&](int64_t row) { return valid.empty() || valid[row]; };
  for (int64_t row = 0; row < rows; ++row) {
    if (!counts(row)) continue;
    ++count;
    for (int64_t f = 0; f < num_frequencies; ++f) {
      result.mean[f] += values[row * num_frequencies + f];
    }
  }
  const auto divisor = static_cast<double>(std::max<int64_t>(count, 1));
  for (double& mean : result.mean) mean /= divisor;
  for (int64_t row = 0; row < rows; ++row) {
    if (!counts(row)) continue;
    for (int64_t f = 0; f < num_frequencies; ++f) {
      const double distance = values[row * num_frequencies + f] - result.mean[f];
      result.variance[f] += distance * distance;
    }
  }
  for (double& variance : result.variance) variance /= divisor;
  result.count.assign(num_frequencies, count);
  return result;
}

void FrequencyStatistics::Merge(const FrequencyStatistics& other) {
  if (other.empty()) return;
  if (empty()) {
    *this = other;
    return;
  }
  for (size_t f = 0; f < mean.size(); ++f) {
    const int64_t total = count[f] + other.count[f];
    const double share =
        static_cast<double>(count[f]) / static_cast<double>(std::max<int64_t>(total, 1));
    const double distance = other.mean[f] - mean[f];
    mean[f] = share * mean[f] + (1 - share) * other.mean[f];
    variance[f] = share * variance[f] + (1 - share) * other.variance[f] +
                  distance * distance * share * (1 - share);
    count[f] = total;
  }
}

void FrequencyStatistics::Normalise(absl::Span<const float> values, float* normalised) const {
  const size_t num_frequencies = mean.size();
  for (size_t i = 0; i < values.size(); ++i) {
    const size_t f = i % num_frequencies;
    normalised[i] =
        static_cast<float>((values[i] - mean[f]) / std::max(std::sqrt(variance[f]), kMinDeviation));
  }
}

void RunningStatistics::Fold() {
  stored.Merge(fresh);
  fresh = {};
}

}  // namespace mneme::memory
