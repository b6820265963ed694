// Sessions in this process's memory: for tests, and as the plainest statement of the contract that
// RedisSessionStore is compared with.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "common/clock/clock.h"
#include "common/sync/mutex.h"
#include "services/memory/session_store.h"
#include "services/memory/store_options.h"

namespace mneme::memory {

// Thread-safe; deadlines are met by never waiting.
class InMemorySessionStore final : public SessionStore {
 public:
  // `clock` must outlive the store. Without `disk_budget_bytes` there is no disk tier; 0: it has no
  // bound. What is said to be on disk is in memory too.
  InMemorySessionStore(const clock::Clock& clock, StoreOptions options,
                       std::optional<int64_t> disk_budget_bytes = std::nullopt)
      : clock_(clock), options_(std::move(options)), disk_budget_bytes_(disk_budget_bytes) {}

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
  absl::StatusOr<std::unique_ptr<SnapshotStaging>> StageSnapshot(
      const v1::StageSnapshotRequest::Header& header, absl::Time deadline) override;
  absl::Status FetchSnapshot(const v1::FetchSnapshotRequest& request, const FetchSink& sink,
                             absl::Time deadline) override;
  absl::StatusOr<ReplacedSnapshot> ReplaceSnapshot(const SnapshotReplacement& request,
                                                   absl::Time deadline) override;
  absl::StatusOr<v1::ForkSessionResponse> ForkSession(const v1::ForkSessionRequest& request,
                                                      absl::Time deadline) override;
  absl::StatusOr<v1::RewindSessionResponse> RewindSession(const v1::RewindSessionRequest& request,
                                                          absl::Time deadline) override;
  absl::StatusOr<v1::DescribeSessionResponse> DescribeSession(
      const v1::DescribeSessionRequest& request, absl::Time deadline) override;
  absl::StatusOr<v1::UpdateSessionResponse> UpdateSession(const v1::UpdateSessionRequest& request,
                                                          absl::Time deadline) override;
  absl::StatusOr<v1::ForgetTenantResponse> ForgetTenant(const v1::ForgetTenantRequest& request,
                                                        absl::Time deadline) override;
  absl::StatusOr<WholeSession> ReadSession(const std::string& tenant, const std::string& session_id,
                                           absl::Time deadline) override;
  absl::StatusOr<std::unique_ptr<SessionImport>> ImportSession(const std::string& tenant,
                                                               absl::Time deadline) override;
  absl::Status Sweep(absl::Time deadline) override;
  absl::Status CheckReady(absl::Time deadline) override;

 private:
  class Staging;
  class Import;

  struct Lease {
    uint64_t token = 0;  // 0: nobody has it
    std::string holder;
    std::string request_id;
    int64_t until_ms = 0;
  };
  // Shared between forks; never changes.
  struct StoredTurn {
    v1::Turn turn;
    uint64_t lease_token = 0;
    int32_t num_messages = 0;  // of the session after the turn
    int64_t num_tokens = 0;
    std::shared_ptr<const snapshot::v1::Manifest> manifest;  // null: it has no snapshot
  };
  struct StoredChunk {
    std::string payload;
    int64_t expires_at_ms = 0;  // 0: a turn lists it, or did
    bool is_on_disk = false;
  };
  struct Staged {
    uint64_t lease_token = 0;
    std::shared_ptr<const snapshot::v1::Manifest> manifest;
    int64_t expires_at_ms = 0;
  };
  // What a session shares with its forks and theirs; gone with the last of them.
  struct Family {
    std::map<std::string, StoredChunk> chunks;  // by digest
    std::map<std::string, Staged> staged;

    // Of listed chunks.
    int64_t Bytes(bool on_disk) const;
  };
  struct Entry {
    v1::Session session;
    std::string create_request_id;
    std::vector<std::shared_ptr<const StoredTurn>> turns;
    std::map<std::string, uint64_t> versions_by_request_id;
    std::shared_ptr<Family> family;
    std::string executor;
    Lease lease;
    int64_t expires_at_ms = 0;  // 0: never
    int64_t order = 0;          // of the last use; unique
  };
  using Key = std::pair<std::string, std::string>;  // tenant, session id

  Entry* Find(const Key& key, int64_t now_ms) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  template <typename Request>
  Entry* Find(const Request& request, int64_t now_ms) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return Find(Key{request.tenant(), request.session_id()}, now_ms);
  }
  // RESOURCE_EXHAUSTED: the tenant has as many as it may.
  absl::StatusOr<Entry*> Make(const Key& key, int64_t now_ms) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Use(const std::string& tenant, Entry& entry, int64_t now_ms)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Prolong(const std::string& tenant, Entry& entry) const;
  // Sets what follows from the turns.
  static void SetVersion(Entry& entry);
  // Returns the latest version up to `version` that has a snapshot, 0 if none has.
  static uint64_t SnapshotVersion(const Entry& entry, uint64_t version);
  int64_t KvBytes(const std::string& tenant) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::StatusOr<Entry*> Leased(const Key& key, uint64_t lease_token, int64_t now_ms)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Attaches a staged snapshot to a turn; returns why that cannot be, "" if it was done.
  static absl::string_view Attach(Entry& entry, const std::string& snapshot_id,
                                  uint64_t lease_token, int64_t now_ms, StoredTurn& turn);
  // Says whether another session has the turn, too.
  bool IsShared(const Entry& entry, const std::shared_ptr<const StoredTurn>& turn, int64_t now_ms)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  // A family in the order of use, and whether it must stay where it is.
  struct FamilyUse {
    Family* family = nullptr;
    int64_t order = 0;  // of the last use of any of its sessions
    bool is_leased = false;
    bool is_pinned = false;
  };
  std::vector<FamilyUse> FamiliesByUse(int64_t now_ms) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Removes what has expired, and chunks that nothing lists.
  void DropUnlisted(int64_t now_ms);
  // As RedisSessionStore does.
  void RoundIdle(int64_t now_ms, absl::Time deadline);
  void KeepToBudgets(int64_t now_ms) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void DropSnapshots(const Family* family) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const clock::Clock& clock_;
  const StoreOptions options_;
  const std::optional<int64_t> disk_budget_bytes_;
  sync::Mutex mutex_;
  std::map<Key, Entry> entries_ ABSL_GUARDED_BY(mutex_);
  uint64_t last_lease_token_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t last_snapshot_id_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t last_order_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace mneme::memory
