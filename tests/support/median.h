// What a bench shows of figures that come with noise.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

namespace mneme::testing {

// Returns the middle one, the mean of the middle two of an even number, 0 of none.
inline double Median(std::vector<double> values) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  const size_t half = values.size() / 2;
  return values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2;
}

}  // namespace mneme::testing
