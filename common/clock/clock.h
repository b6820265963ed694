// Time as a dependency, so that tests can set it.
#pragma once

#include "absl/time/time.h"

namespace mneme::clock {

// Thread-safe.
class Clock {
 public:
  virtual ~Clock() = default;
  // Returns the wall-clock time.
  virtual absl::Time Now() const = 0;
};

// The machine's own clock.
class SystemClock final : public Clock {
 public:
  absl::Time Now() const override;
};

}  // namespace mneme::clock
