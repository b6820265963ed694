// Sessions in this process's memory: for tests, and as the plainest statement of the contract that
// RedisSessionStore is compared with.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "common/clock/clock.h"
#include "common/sync/mutex.h"
#include "services/memory/session_store.h"

namespace mneme::memory {

// Thread-safe; deadlines are met by never waiting.
class InMemorySessionStore final : public SessionStore {
 public:
  // `clock` must outlive the store. `default_ttl_seconds` is that of sessions without one of their
  // own; 0: they stay for ever.
  InMemorySessionStore(const clock::Clock& clock, int64_t default_ttl_seconds)
      : clock_(clock), default_ttl_seconds_(default_ttl_seconds) {}

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
  struct Lease {
    uint64_t token = 0;  // 0: nobody has it
    std::string holder;
    std::string request_id;
    int64_t until_ms = 0;
  };
  struct StoredTurn {
    v1::Turn turn;
    uint64_t lease_token;
  };
  struct Entry {
    v1::Session session;
    std::string create_request_id;
    std::vector<StoredTurn> turns;
    std::map<std::string, uint64_t> versions_by_request_id;
    Lease lease;
    int64_t expires_at_ms = 0;  // 0: never
    int64_t order = 0;          // of the last use; unique
  };
  using Key = std::pair<std::string, std::string>;  // tenant, session id

  template <typename Request>
  Entry* Find(const Request& request, int64_t now_ms) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  Entry& Make(const Key& key, int64_t now_ms) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Use(Entry& entry, int64_t now_ms) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Prolong(Entry& entry) const;

  const clock::Clock& clock_;
  const int64_t default_ttl_seconds_;
  sync::Mutex mutex_;
  std::map<Key, Entry> entries_ ABSL_GUARDED_BY(mutex_);
  uint64_t last_lease_token_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t last_order_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace mneme::memory
