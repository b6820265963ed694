// Which replica sweeps: one at a time does, as far as that is easily had.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "services/memory/family_directory.h"

namespace mneme::memory {

// A key in Redis that names who sweeps. It saves work; that two sweepers do no harm to each other
// does not depend on it. That of a sweeper that has died ends by itself after kTime. Used by one
// thread.
class SweepLock {
 public:
  // How long a sweeper that has died keeps the others from sweeping.
  static constexpr absl::Duration kTime = absl::Seconds(10);

  // `directory` must outlive this.
  SweepLock(FamilyDirectory& directory, std::string key);

  // Returns whether this may sweep: nobody else does, or Redis is too full to say so, when sweeping
  // is needed most.
  absl::StatusOr<bool> Take(absl::Time deadline);
  // To be called at least every few seconds of a sweep. Best effort.
  void Keep(absl::Time deadline);
  void Release(absl::Time deadline);

 private:
  bool IsOurs(absl::Time deadline);

  FamilyDirectory& directory_;
  const std::string key_;
  const std::string owner_;
  absl::Time kept_ = absl::InfinitePast();
};

}  // namespace mneme::memory
