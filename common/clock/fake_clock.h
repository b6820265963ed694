// A clock for tests that stands still until it is moved.
#pragma once

#include "common/clock/clock.h"
#include "common/sync/mutex.h"

namespace mneme::clock {

// Thread-safe.
class FakeClock final : public Clock {
 public:
  explicit FakeClock(absl::Time now = absl::FromUnixSeconds(1'800'000'000)) : now_(now) {}

  absl::Time Now() const override {
    sync::MutexLock lock(mutex_);
    return now_;
  }
  void Advance(absl::Duration duration) {
    sync::MutexLock lock(mutex_);
    now_ += duration;
  }

 private:
  mutable sync::Mutex mutex_;
  absl::Time now_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace mneme::clock
