// The thread that sweeps a store now and then.
#pragma once

#include <stop_token>
#include <thread>

#include "absl/time/time.h"
#include "common/sync/mutex.h"
#include "services/memory/session_store.h"

namespace mneme::memory {

// Sweeps every `interval`, each time for no longer than that or 10 s, until it is destroyed. What
// fails is logged once until it works again: a store that does not answer is tried again at the
// next turn.
class Sweeper {
 public:
  // `store` must outlive this.
  Sweeper(SessionStore& store, absl::Duration interval);
  ~Sweeper();
  Sweeper(const Sweeper&) = delete;
  Sweeper& operator=(const Sweeper&) = delete;

 private:
  void Run(const std::stop_token& stop);

  SessionStore& store_;
  const absl::Duration interval_;
  sync::Mutex mutex_;
  sync::CondVar stopped_;
  std::jthread thread_;  // last: it uses all of the above
};

}  // namespace mneme::memory
