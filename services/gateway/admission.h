// Who may start a request now: the gateway's own bound, and each tenant's limits.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/clock/clock.h"
#include "common/sync/mutex.h"
#include "mneme/gateway/v1/config.pb.h"

namespace mneme::gateway {

// Thread-safe.
class Admission {
 public:
  // A request that was let in; the destructor gives its place back.
  class Ticket {
   public:
    ~Ticket();
    Ticket(const Ticket&) = delete;
    Ticket& operator=(const Ticket&) = delete;

    // Takes tokens from the tenant's rate. They were used already, so the rate may go below zero
    // and the tenant's next requests wait for it.
    void Spend(int64_t tokens);

   private:
    friend class Admission;
    Ticket(Admission& admission, std::string tenant, int64_t tokens_per_minute)
        : admission_(admission),
          tenant_(std::move(tenant)),
          tokens_per_minute_(tokens_per_minute) {}

    Admission& admission_;
    const std::string tenant_;
    const int64_t tokens_per_minute_;
  };

  // `max_requests` over all tenants. `clock` must outlive this object.
  Admission(int max_requests, const clock::Clock& clock)
      : max_requests_(max_requests), clock_(clock) {}

  // RESOURCE_EXHAUSTED with a retry delay; with a quota where a limit of the tenant is the reason.
  // UNAVAILABLE while draining.
  absl::StatusOr<std::unique_ptr<Ticket>> Enter(const std::string& tenant,
                                                const v1::Limits& limits);

  // Lets nobody in any more.
  void Drain();
  // Waits until nobody is in. Returns false after `timeout`.
  bool WaitUntilEmpty(absl::Duration timeout);
  int num_inside() const;

 private:
  struct Tenant {
    int inside = 0;
    double tokens = 0;  // may be below zero
    absl::Time refilled;
    bool rated = false;  // `tokens` is in use
  };

  void Refill(Tenant& tenant, int64_t tokens_per_minute) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Leave(const std::string& name);

  const int max_requests_;
  const clock::Clock& clock_;
  mutable sync::Mutex mutex_;
  sync::CondVar left_;
  std::map<std::string, Tenant> tenants_ ABSL_GUARDED_BY(mutex_);
  int inside_ ABSL_GUARDED_BY(mutex_) = 0;
  bool draining_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace mneme::gateway
