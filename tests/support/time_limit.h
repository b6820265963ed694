// How long a test waits before it calls something hung. Sanitizers make everything slower: their
// presets set MNEME_TEST_TIME_FACTOR, by which all of these limits grow.
#pragma once

#include "absl/time/time.h"

namespace mneme::testing {

// Returns `limit`, or several times as much in a build with sanitizers.
absl::Duration TimeLimit(absl::Duration limit);

}  // namespace mneme::testing
