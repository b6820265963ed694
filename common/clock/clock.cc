#include "common/clock/clock.h"

#include "absl/time/clock.h"

namespace mneme::clock {

absl::Time SystemClock::Now() const { return absl::Now(); }

}  // namespace mneme::clock
