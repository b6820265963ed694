#include "services/memory/sweeper.h"

#include <algorithm>
#include <chrono>
#include <string>

#include "absl/time/clock.h"
#include "common/log/log.h"

namespace mneme::memory {
namespace {

// Enough for what must be moved, however often it is looked for.
constexpr absl::Duration kLeastTime = absl::Seconds(10);

}  // namespace

Sweeper::Sweeper(SessionStore& store, absl::Duration interval)
    : store_(store),
      interval_(interval),
      thread_([this](const std::stop_token& stop) { Run(stop); }) {}

Sweeper::~Sweeper() {
  sync::MutexLock lock(mutex_);
  thread_.request_stop();
  stopped_.NotifyAll();
}

void Sweeper::Run(const std::stop_token& stop) {
  bool is_failing = false;
  while (true) {
    {
      const auto next = std::chrono::steady_clock::now() + absl::ToChronoNanoseconds(interval_);
      sync::MutexLock lock(mutex_);
      while (!stop.stop_requested() && stopped_.WaitUntil(mutex_, next)) {
      }
      if (stop.stop_requested()) return;
    }
    const absl::Status status = store_.Sweep(absl::Now() + std::max(interval_, kLeastTime));
    if (!status.ok() && !is_failing) {
      log::Warning("sweeping failed, it is tried again",
                   {{"error", std::string(status.message())}});
    }
    is_failing = !status.ok();
  }
}

}  // namespace mneme::memory
