#include "tests/support/time_limit.h"

#include <algorithm>
#include <cstdlib>

namespace mneme::testing {

absl::Duration TimeLimit(absl::Duration limit) {
  const char* factor = std::getenv("MNEME_TEST_TIME_FACTOR");
  return limit * std::max(1, factor == nullptr ? 1 : std::atoi(factor));
}

}  // namespace mneme::testing
