// The memory service as the gateway uses it: sessions, and the lease that makes one turn at a time.
#pragma once

#include <atomic>
#include <list>
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
#include "services/gateway/session_transfer.h"

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
    // What commit_patience was not enough for is tried again in the background: so long, and so
    // many turns at a time.
    absl::Duration late_commit_patience = absl::Minutes(10);
    absl::Duration late_commit_interval = absl::Milliseconds(500);
    size_t max_late_commits = 256;
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
    // commit_patience at most; a lease that ran out meanwhile is taken up again, if nobody else has
    // had the session since. `commit` has parent version, turn (with a request_id) and snapshot;
    // the rest is filled in.
    absl::StatusOr<memory::v1::CommitTurnResponse> Commit(memory::v1::CommitTurnRequest* commit);

   private:
    friend class SessionStore;
    absl::StatusOr<memory::v1::CommitTurnResponse> Commit(
        const memory::v1::CommitTurnRequest& commit, absl::Duration patience);
    absl::Status TryCommit(const memory::v1::CommitTurnRequest& commit, absl::Duration patience,
                           memory::v1::CommitTurnResponse* response);

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

  // Goes on trying a commit that was UNAVAILABLE, with its lease, until the service answers: the
  // turn is then committed, or was overtaken by another and is dropped. Returns false where nothing
  // is tried: too many wait already.
  bool CommitLater(std::unique_ptr<Lease> lease, memory::v1::CommitTurnRequest commit);
  // Waits until no turn of this request is left for CommitLater to commit, for unavailable_patience
  // at most: who asks for it again is to find it committed.
  void AwaitLateCommit(const std::string& tenant, const std::string& session_id,
                       const std::string& request_id, absl::Time deadline);

  absl::StatusOr<memory::v1::CreateSessionResponse> Create(
      const memory::v1::CreateSessionRequest& create, const trace::RequestContext& request);
  absl::StatusOr<memory::v1::GetSessionResponse> Get(const memory::v1::GetSessionRequest& get,
                                                     const trace::RequestContext& request);
  absl::StatusOr<memory::v1::ListSessionsResponse> List(const memory::v1::ListSessionsRequest& list,
                                                        const trace::RequestContext& request);
  absl::StatusOr<memory::v1::DeleteSessionResponse> Delete(
      const memory::v1::DeleteSessionRequest& remove, const trace::RequestContext& request);
  absl::StatusOr<memory::v1::ForkSessionResponse> Fork(const memory::v1::ForkSessionRequest& fork,
                                                       const trace::RequestContext& request);
  absl::StatusOr<memory::v1::RewindSessionResponse> Rewind(
      const memory::v1::RewindSessionRequest& rewind, const trace::RequestContext& request);
  // Chunks may have to be read and written anew: it ends at `deadline`.
  absl::StatusOr<memory::v1::CompactSessionResponse> Compact(
      const memory::v1::CompactSessionRequest& compact, const trace::RequestContext& request,
      absl::Time deadline);
  absl::StatusOr<memory::v1::DescribeSessionResponse> Describe(
      const memory::v1::DescribeSessionRequest& describe, const trace::RequestContext& request);
  absl::StatusOr<memory::v1::UpdateSessionResponse> Update(
      const memory::v1::UpdateSessionRequest& update, const trace::RequestContext& request);
  absl::StatusOr<memory::v1::ForgetTenantResponse> ForgetTenant(
      const memory::v1::ForgetTenantRequest& forget, const trace::RequestContext& request);

  // Returns the turn that a request id was committed with. NOT_FOUND: there is none.
  absl::StatusOr<memory::v1::Turn> FindTurn(const std::string& tenant,
                                            const std::string& session_id,
                                            const std::string& request_id,
                                            const trace::RequestContext& request);

  // Begin a transfer that ends at `deadline`. They never fail here: Next or Finish does.
  std::unique_ptr<SessionExport> Export(const memory::v1::ExportSessionRequest& request,
                                        const trace::RequestContext& context, absl::Time deadline);
  std::unique_ptr<SessionImport> Import(const memory::v1::ImportSessionRequest::Header& header,
                                        const trace::RequestContext& context, absl::Time deadline);

 private:
  template <typename Request, typename Response>
  absl::StatusOr<Response> Call(grpc::Status (memory::v1::MemoryService::Stub::*method)(
                                    grpc::ClientContext*, const Request&, Response*),
                                const Request& request, const trace::RequestContext& context);
  absl::StatusOr<Opened> TryOpen(const memory::v1::AcquireLeaseRequest& acquire,
                                 const trace::RequestContext& request, absl::Time deadline);
  static absl::Duration BusyPause(const absl::Status& status);
  // A turn that was answered but not committed.
  struct LateCommit {
    std::unique_ptr<Lease> lease;
    memory::v1::CommitTurnRequest commit;
    absl::Time give_up;
  };

  void RenewLoop(std::stop_token stop);
  absl::Status Renew(Lease& lease);
  void CommitLoop(std::stop_token stop);
  // Returns whether it is over.
  bool TryLateCommit(LateCommit& late);

  const Options options_;
  const std::string holder_;
  const std::unique_ptr<memory::v1::MemoryService::Stub> stub_;
  sync::Mutex mutex_;
  sync::CondVar changed_;
  std::set<Lease*> leases_ ABSL_GUARDED_BY(mutex_);
  Lease* renewing_ ABSL_GUARDED_BY(mutex_) = nullptr;
  std::list<LateCommit> late_ ABSL_GUARDED_BY(mutex_);
  size_t num_late_ ABSL_GUARDED_BY(mutex_) = 0;  // those in `late_` and those being tried
  std::multiset<std::string> late_requests_ ABSL_GUARDED_BY(mutex_);  // of the same, by LateKey
  std::jthread renewer_;                                              // these last: they end first
  std::jthread late_committer_;
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
