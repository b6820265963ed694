// The memory service as the gateway uses it: sessions, and the lease that makes one turn at a time.
#pragma once

#include <atomic>
#include <memory>
#include <set>
#include <string>
#include <thread>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "common/sync/mutex.h"
#include "common/trace/request_context.h"
#include "mneme/memory/v1/memory.grpc.pb.h"

namespace mneme::gateway {

// Thread-safe. Every method takes the tenant from the authenticated identity.
class SessionStore {
 public:
  struct Options {
    // Short, so that a gateway that was killed blocks its sessions only so long; renewed while a
    // generation runs.
    absl::Duration lease_ttl = absl::Seconds(8);
    absl::Duration renew_interval = absl::Seconds(2);
    // How long a turn waits for the session's other turn: longer than a lease nobody renews.
    absl::Duration busy_patience = absl::Seconds(12);
    absl::Duration unavailable_patience = absl::Seconds(3);
    absl::Duration commit_patience = absl::Seconds(10);
  };

  // The right to write a session, renewed in the background and given back by the destructor.
  class Lease {
   public:
    ~Lease();
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;

    uint64_t token() const { return token_; }
    // Whether another holder has the session now: the turn cannot be committed any more.
    bool lost() const { return lost_; }

    // Adds the turn and gives the lease back. Tries again while the service is away, for
    // commit_patience at most. Returns the new head. The turn needs a request_id.
    absl::StatusOr<uint64_t> Commit(uint64_t parent_version, memory::v1::Turn turn);

   private:
    friend class SessionStore;
    Lease(SessionStore& store, std::string tenant, std::string session_id, uint64_t token,
          trace::RequestContext request)
        : store_(store),
          tenant_(std::move(tenant)),
          session_id_(std::move(session_id)),
          token_(token),
          request_(std::move(request)) {}

    SessionStore& store_;
    const std::string tenant_;
    const std::string session_id_;
    const uint64_t token_;
    const trace::RequestContext request_;
    std::atomic<bool> lost_{false};
    bool released_ = false;
  };

  struct Opened {
    std::unique_ptr<Lease> lease;  // null where the turn was committed before
    memory::v1::AcquireLeaseResponse state;
  };

  SessionStore(const std::string& address, const Options& options);
  ~SessionStore();

  // Takes the session's lease with its history. Waits for another turn of the session to end.
  // FAILED_PRECONDITION with reason SESSION_BUSY, ABORTED with reason STALE_VERSION, UNAVAILABLE.
  // Gives up early with CANCELLED when `gone` says so.
  template <typename Gone>
  absl::StatusOr<Opened> Open(memory::v1::AcquireLeaseRequest acquire,
                              const trace::RequestContext& request, absl::Time deadline,
                              const Gone& gone);

  absl::StatusOr<memory::v1::CreateSessionResponse> Create(
      const memory::v1::CreateSessionRequest& create, const trace::RequestContext& request);
  absl::StatusOr<memory::v1::GetSessionResponse> Get(const memory::v1::GetSessionRequest& get,
                                                     const trace::RequestContext& request);
  absl::StatusOr<memory::v1::ListSessionsResponse> List(const memory::v1::ListSessionsRequest& list,
                                                        const trace::RequestContext& request);
  absl::Status Delete(const memory::v1::DeleteSessionRequest& remove,
                      const trace::RequestContext& request);

 private:
  absl::StatusOr<Opened> TryOpen(const memory::v1::AcquireLeaseRequest& acquire,
                                 const trace::RequestContext& request, absl::Time deadline);
  static absl::Duration BusyPause(const absl::Status& status);
  void RenewLoop(std::stop_token stop);
  void Renew(Lease& lease);

  const Options options_;
  const std::string holder_;
  const std::unique_ptr<memory::v1::MemoryService::Stub> stub_;
  sync::Mutex mutex_;
  sync::CondVar changed_;
  std::set<Lease*> leases_ ABSL_GUARDED_BY(mutex_);
  Lease* renewing_ ABSL_GUARDED_BY(mutex_) = nullptr;
  std::jthread renewer_;  // last: ends first
};

template <typename Gone>
absl::StatusOr<SessionStore::Opened> SessionStore::Open(memory::v1::AcquireLeaseRequest acquire,
                                                        const trace::RequestContext& request,
                                                        absl::Time deadline, const Gone& gone) {
  const absl::Time give_up = std::min(deadline, absl::Now() + options_.busy_patience);
  while (true) {
    absl::StatusOr<Opened> opened = TryOpen(acquire, request, deadline);
    const absl::Duration pause = BusyPause(opened.status());
    if (pause == absl::ZeroDuration() || absl::Now() + pause > give_up) return opened;
    if (gone()) return absl::CancelledError("the client went away");
    std::this_thread::sleep_for(absl::ToChronoMilliseconds(pause));
  }
}

}  // namespace mneme::gateway
