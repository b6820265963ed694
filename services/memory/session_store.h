// Where sessions live. One contract, two implementations: Redis (redis_session_store.h), which
// outlives every process of Mneme, and memory (in_memory_session_store.h), which tests compare it
// with. What each method does and how it fails is written in mneme/memory/v1/memory.proto.
//
// Requests come normalised (request_check.h): identifiers are valid, defaults are filled in.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "mneme/inference/v1/inference.pb.h"
#include "mneme/memory/v1/memory.pb.h"

namespace mneme::memory {

// A snapshot on its way into a store. Used by one thread at a time. Destroyed before Finish has
// succeeded it leaves nothing that anybody refers to.
class SnapshotStaging {
 public:
  virtual ~SnapshotStaging() = default;

  // Takes the next chunk. Returns before it is stored; an error may concern an earlier one. Waits
  // while the store is slower than the sender, so that memory stays bounded.
  virtual absl::Status Add(v1::ChunkPayload chunk) = 0;

  // Ends the snapshot: once it returns OK, CommitTurn can name it. Nothing can be called after it.
  virtual absl::StatusOr<v1::StageSnapshotResponse> Finish(snapshot::v1::Manifest manifest) = 0;
};

// Takes the next part of a stream; an error (the reader has gone) ends it.
using FetchSink = std::function<absl::Status(v1::FetchSnapshotResponse part)>;

// A session with all its turns, and without the payloads of its chunks.
struct WholeSession {
  struct Turn {
    v1::Turn turn;
    std::optional<snapshot::v1::Manifest> manifest;  // none: the turn has no snapshot
  };
  v1::Session session;
  std::vector<Turn> turns;
};

// What the stored memory of a session's head becomes (session_compaction.h).
struct SnapshotReplacement {
  std::string tenant;
  std::string session_id;
  uint64_t lease_token = 0;
  uint64_t version = 0;           // the head that it was made of
  uint64_t snapshot_version = 0;  // whose snapshot it replaces
  std::string snapshot_id;        // from StageSnapshot under the same lease; "": it stays as it is
  std::optional<inference::v1::MemoryPolicy> memory_policy;  // none: the session's stays
  bool drop_older_snapshots = false;
};

struct ReplacedSnapshot {
  v1::Session session;
  int64_t num_dropped = 0;  // older snapshots
};

// A session on its way into a store from elsewhere. Used by one thread at a time. Nothing can be
// seen of it before Finish, nor if that fails.
class SessionImport {
 public:
  virtual ~SessionImport() = default;

  // Takes the next chunk, as SnapshotStaging does.
  virtual absl::Status Add(v1::ChunkPayload chunk) = 0;
  // Makes the session: as it was, but used just now, on no executor and forked from nowhere.
  // ALREADY_EXISTS: its id is taken. DATA_LOSS: a manifest lists a chunk that was not added.
  virtual absl::StatusOr<v1::Session> Finish(WholeSession session) = 0;
};

// Thread-safe. Every method ends by `deadline`. Methods that change a session do so at once or not
// at all. UNAVAILABLE: the store does not answer, and a change may have happened: all of them may
// be repeated safely.
//
// Leases: a lease's token is larger than that of every lease of the same session before it. It is
// never one that the session id, made anew after a deletion, gets again. A lease whose time is over
// can be prolonged as long as nobody else took the session, but it cannot commit.
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
  // All but `plan`, which is not the store's to know (memory_plans.h).
  virtual absl::StatusOr<v1::AcquireLeaseResponse> AcquireLease(
      const v1::AcquireLeaseRequest& request, absl::Time deadline) = 0;
  virtual absl::StatusOr<v1::RenewLeaseResponse> RenewLease(const v1::RenewLeaseRequest& request,
                                                            absl::Time deadline) = 0;
  virtual absl::StatusOr<v1::ReleaseLeaseResponse> ReleaseLease(
      const v1::ReleaseLeaseRequest& request, absl::Time deadline) = 0;
  virtual absl::StatusOr<v1::CommitTurnResponse> CommitTurn(const v1::CommitTurnRequest& request,
                                                            absl::Time deadline) = 0;

  // `deadline` holds for all that is done with the staging.
  virtual absl::StatusOr<std::unique_ptr<SnapshotStaging>> StageSnapshot(
      const v1::StageSnapshotRequest::Header& header, absl::Time deadline) = 0;
  virtual absl::Status FetchSnapshot(const v1::FetchSnapshotRequest& request, const FetchSink& sink,
                                     absl::Time deadline) = 0;

  // Replaces a snapshot, sets the policy, drops older snapshots and gives the lease back, at once
  // or not at all. Forks keep what they share. ABORTED: LEASE_LOST, STALE_VERSION. UNAVAILABLE,
  // also: the staged snapshot is gone, or the one to replace is; begin anew.
  virtual absl::StatusOr<ReplacedSnapshot> ReplaceSnapshot(const SnapshotReplacement& request,
                                                           absl::Time deadline) = 0;

  virtual absl::StatusOr<v1::ForkSessionResponse> ForkSession(const v1::ForkSessionRequest& request,
                                                              absl::Time deadline) = 0;
  virtual absl::StatusOr<v1::RewindSessionResponse> RewindSession(
      const v1::RewindSessionRequest& request, absl::Time deadline) = 0;
  virtual absl::StatusOr<v1::DescribeSessionResponse> DescribeSession(
      const v1::DescribeSessionRequest& request, absl::Time deadline) = 0;
  virtual absl::StatusOr<v1::UpdateSessionResponse> UpdateSession(
      const v1::UpdateSessionRequest& request, absl::Time deadline) = 0;
  virtual absl::StatusOr<v1::ForgetTenantResponse> ForgetTenant(
      const v1::ForgetTenantRequest& request, absl::Time deadline) = 0;

  // What an export needs beside FetchSnapshot. NOT_FOUND.
  virtual absl::StatusOr<WholeSession> ReadSession(const std::string& tenant,
                                                   const std::string& session_id,
                                                   absl::Time deadline) = 0;
  virtual absl::StatusOr<std::unique_ptr<SessionImport>> ImportSession(const std::string& tenant,
                                                                       absl::Time deadline) = 0;

  // Removes what nothing refers to any more: what expired sessions and turns that were taken back
  // have left. To be called now and then; several replicas may do so at the same time.
  virtual absl::Status Sweep(absl::Time deadline) = 0;

  // Returns OK while the store can serve calls.
  virtual absl::Status CheckReady(absl::Time deadline) = 0;
};

}  // namespace mneme::memory
