// Where sessions live. One contract, two implementations: Redis (redis_session_store.h), which
// outlives every process of Mneme, and memory (in_memory_session_store.h), which tests compare it
// with. What each method does and how it fails is written in mneme/memory/v1/memory.proto.
//
// Requests come normalised (request_check.h): identifiers are valid, defaults are filled in.
#pragma once

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "mneme/memory/v1/memory.pb.h"

namespace mneme::memory {

namespace v1 = ::mneme::memory::v1;

// Thread-safe. Every method ends by `deadline`. Methods that change a session do so at once or not
// at all. UNAVAILABLE: the store does not answer, and a change may have happened: all of them may
// be repeated safely.
//
// Leases: a lease's token is larger than that of every lease of the same session id before it, also
// of one that was deleted since. A lease whose time is over can be prolonged as long as nobody else
// took the session, but it cannot commit.
class SessionStore {
 public:
  virtual ~SessionStore() = default;

  virtual absl::StatusOr<v1::CreateSessionResponse> CreateSession(
      const v1::CreateSessionRequest& request, absl::Time deadline) = 0;
  virtual absl::StatusOr<v1::GetSessionResponse> GetSession(const v1::GetSessionRequest& request,
                                                            absl::Time deadline) = 0;
  virtual absl::StatusOr<v1::ListSessionsResponse> ListSessions(
      const v1::ListSessionsRequest& request, absl::Time deadline) = 0;
  virtual absl::StatusOr<v1::DeleteSessionResponse> DeleteSession(
      const v1::DeleteSessionRequest& request, absl::Time deadline) = 0;
  virtual absl::StatusOr<v1::AcquireLeaseResponse> AcquireLease(
      const v1::AcquireLeaseRequest& request, absl::Time deadline) = 0;
  virtual absl::StatusOr<v1::RenewLeaseResponse> RenewLease(const v1::RenewLeaseRequest& request,
                                                            absl::Time deadline) = 0;
  virtual absl::StatusOr<v1::ReleaseLeaseResponse> ReleaseLease(
      const v1::ReleaseLeaseRequest& request, absl::Time deadline) = 0;
  virtual absl::StatusOr<v1::CommitTurnResponse> CommitTurn(const v1::CommitTurnRequest& request,
                                                            absl::Time deadline) = 0;

  // Returns OK while the store can serve calls.
  virtual absl::Status CheckReady(absl::Time deadline) = 0;
};

}  // namespace mneme::memory
