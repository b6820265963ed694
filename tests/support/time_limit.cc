#include "tests/support/time_limit.h"

#include "tests/support/environment.h"

namespace mneme::testing {

absl::Duration TimeLimit(absl::Duration limit) {
  return limit * NumberFrom("MNEME_TEST_TIME_FACTOR", 1);
}

}  // namespace mneme::testing
