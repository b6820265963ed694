// Sessions in Redis: they outlive every process of Mneme. What is stored under which key is written
// in redis_scripts.h; docs/snapshots.md tells why.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "common/redis/client.h"
#include "services/memory/chunk_promoter.h"
#include "services/memory/chunk_source.h"
#include "services/memory/disk_tier.h"
#include "services/memory/family_directory.h"
#include "services/memory/memory_metrics.h"
#include "services/memory/redis_tiers.h"
#include "services/memory/session_store.h"
#include "services/memory/store_options.h"
#include "services/memory/sweep_lock.h"
#include "services/memory/tenant_keys.h"

namespace mneme::memory {

// Thread-safe; what it remembers can be found again, so that any replica can serve any call.
//
// A session and its tenant's index cannot change in one step (they may be on different servers):
//   - A session that is made enters the index first, so that a crash in between leaves an entry
//     without a session and never a session that no listing shows. Once made it enters again: if
//     the first entry was removed meanwhile (with a session of that id that was just being deleted)
//     it is put back, and if the id has come to belong to another family the new session is taken
//     back.
//   - A session that is used moves in the index afterwards; if that fails it is listed in its old
//     place until the next use. The call itself has succeeded.
//   - Entries without a session (deleted, expired, never made) are dropped when a listing meets
//     them, by each creation, which looks at a few at random, and by the sweeper. An entry younger
//     than a minute stays: its session may be about to be made.
class RedisSessionStore final : public SessionStore {
 public:
  // `disk` is null where there is no disk tier. It and all references must outlive the store.
  RedisSessionStore(redis::Client& client, TenantKeys& keys, StoreOptions options,
                    MemoryMetrics& metrics, DiskTier* disk = nullptr);

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
  class Import;
  using Ran = FamilyDirectory::Ran;

  template <typename Request, typename MakeArguments>
  absl::StatusOr<Ran> RunOn(const redis::Script& script, const Request& request,
                            const MakeArguments& arguments, absl::Time deadline) {
    return directory_.Run(script, request.tenant(), request.session_id(),
                          options_.TtlSecondsOf(request.tenant()), arguments, deadline);
  }

  // Runs a script in the family that it is handed.
  using RunScript = std::function<absl::StatusOr<redis::Reply>(const Family& family)>;
  // What a script that may make a session answered, in which family, once the tenant's index knows
  // of it.
  absl::StatusOr<Ran> Make(const std::string& tenant, const std::string& session_id,
                           const std::optional<Family>& candidate, const RunScript& run,
                           absl::Time deadline);
  absl::StatusOr<v1::ListSessionsResponse> ListPage(const v1::ListSessionsRequest& request,
                                                    absl::Time deadline);
  absl::StatusOr<Family> Claim(const std::string& tenant, const std::string& session_id,
                               const std::optional<Family>& candidate, absl::Time deadline);
  // The same in a family that is given: an entry that an earlier session of that id has left in
  // another is removed. ALREADY_EXISTS: one is there.
  absl::StatusOr<Ran> MakeIn(const std::string& tenant, const std::string& session_id,
                             const Family& family, const RunScript& run, absl::Time deadline);
  // Returns the bytes that count towards the tenant's quota; 0 where it has none.
  absl::StatusOr<int64_t> KvBytes(const std::string& tenant, absl::Time deadline);
  absl::Status TakeBack(const Family& family, const std::string& session_id, absl::Time deadline);

  absl::StatusOr<std::vector<IndexEntry>> WithoutSession(const std::string& tenant,
                                                         std::vector<IndexEntry> entries,
                                                         absl::Time deadline);
  void SweepSomeOfIndex(const std::string& tenant, absl::Time deadline);
  absl::Status SweepIndex(const std::string& tenant, absl::Time deadline);
  absl::Status SweepTenant(const std::string& tenant, SweepLock& sweep_lock, absl::Time deadline);
  // Returns whether the family has no key any more. NOT_FOUND: the tenant was forgotten.
  absl::StatusOr<bool> SweepFamily(const std::string& tenant, const std::string& name,
                                   absl::Time deadline);
  absl::StatusOr<std::vector<std::string>> DeadParts(const Family& family,
                                                     const redis::Reply& marked,
                                                     absl::Time deadline);
  // Rounds what idle sessions have stored, the least used first, until Redis is within its budget:
  // what is rounded need not be dropped. Where there is a disk tier that is for it to do.
  absl::Status RoundIdle(const std::vector<std::string>& tenants, SweepLock& sweep_lock,
                         absl::Time deadline);
  absl::Status RoundFamily(const Family& family, SweepLock& sweep_lock, absl::Time deadline);
  absl::StatusOr<int64_t> RemoveRemains(const std::string& tenant, absl::Time deadline);
  void RewriteAppendOnlyFile(absl::Time deadline);

  const StoreOptions options_;
  FamilyDirectory directory_;
  const std::unique_ptr<ChunkPromoter> promoter_;  // null: there is no disk tier
  ChunkSource source_;
  RedisTiers tiers_;
  // A tenant was forgotten, and the append-only file still holds its wrapped key.
  std::atomic<bool> must_rewrite_ = false;
};

}  // namespace mneme::memory
