// Sessions in Redis: they outlive every process of Mneme. What is stored under which key is written
// in redis_scripts.h.
#pragma once

#include <string>
#include <vector>

#include "common/metrics/metrics.h"
#include "common/redis/client.h"
#include "services/memory/redis_scripts.h"
#include "services/memory/session_store.h"

namespace mneme::memory {

// Thread-safe; holds no state of its own, so that any replica can serve any call.
//
// A session and its tenant's index cannot change in one step (they may be on different servers):
//   - A session that is made enters the index first, so that a crash in between leaves an entry
//     without a session and never a session that no listing shows.
//   - A session that is used moves in the index afterwards; if that fails it is listed in its old
//     place until the next use. The call itself has succeeded.
//   - Entries without a session (deleted, expired, never made) are dropped when a listing meets
//     them, and by each creation, which looks at a few at random: while sessions come and go, at
//     most about a quarter of an index is such entries. An entry younger than a minute stays: its
//     session may be about to be made.
class RedisSessionStore final : public SessionStore {
 public:
  // `client` and `redis_errors` (calls of Redis that failed) must outlive the store.
  // `default_ttl_seconds` is that of sessions without one of their own; 0: they stay for ever.
  RedisSessionStore(redis::Client& client, int64_t default_ttl_seconds,
                    metrics::Counter& redis_errors)
      : client_(client), default_ttl_seconds_(default_ttl_seconds), redis_errors_(redis_errors) {}

  absl::StatusOr<v1::CreateSessionResponse> CreateSession(const v1::CreateSessionRequest& request,
                                                          absl::Time deadline) override;
  absl::StatusOr<v1::GetSessionResponse> GetSession(const v1::GetSessionRequest& request,
                                                    absl::Time deadline) override;
  absl::StatusOr<v1::ListSessionsResponse> ListSessions(const v1::ListSessionsRequest& request,
                                                        absl::Time deadline) override;
  absl::StatusOr<v1::DeleteSessionResponse> DeleteSession(const v1::DeleteSessionRequest& request,
                                                          absl::Time deadline) override;
  absl::StatusOr<v1::AcquireLeaseResponse> AcquireLease(const v1::AcquireLeaseRequest& request,
                                                        absl::Time deadline) override;
  absl::StatusOr<v1::RenewLeaseResponse> RenewLease(const v1::RenewLeaseRequest& request,
                                                    absl::Time deadline) override;
  absl::StatusOr<v1::ReleaseLeaseResponse> ReleaseLease(const v1::ReleaseLeaseRequest& request,
                                                        absl::Time deadline) override;
  absl::StatusOr<v1::CommitTurnResponse> CommitTurn(const v1::CommitTurnRequest& request,
                                                    absl::Time deadline) override;
  absl::Status CheckReady(absl::Time deadline) override;

 private:
  // One entry of a tenant's index as it was read.
  struct IndexEntry {
    std::string session_id;
    int64_t order = 0;
  };

  absl::StatusOr<redis::Reply> Eval(const redis::Script& script,
                                    const std::vector<std::string>& keys,
                                    const std::vector<redis::Argument>& arguments,
                                    absl::Time deadline);
  absl::StatusOr<std::vector<redis::Reply>> RunPipeline(const std::vector<redis::Command>& commands,
                                                        absl::Time deadline);
  absl::Status AddToIndex(const std::string& tenant, const std::string& session_id,
                          absl::Time deadline);
  void MoveInIndex(const std::string& tenant, const std::string& session_id, absl::Time deadline);
  void DropFromIndex(const std::string& tenant, const std::vector<IndexEntry>& entries,
                     absl::Duration min_age, absl::Time deadline);
  void SweepIndex(const std::string& tenant, absl::Time deadline);
  absl::StatusOr<redis::Reply> EvalAcquire(const v1::AcquireLeaseRequest& request, bool create,
                                           absl::Time deadline);

  redis::Client& client_;
  const int64_t default_ttl_seconds_;
  metrics::Counter& redis_errors_;
  const RedisScripts scripts_;
};

}  // namespace mneme::memory
