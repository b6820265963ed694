// Keeps Redis and the disk tier to their budgets: what is used least goes from Redis to disk, and
// from disk away.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/sync/mutex.h"
#include "services/memory/chunk_promoter.h"
#include "services/memory/disk_tier.h"
#include "services/memory/family_directory.h"
#include "services/memory/memory_metrics.h"
#include "services/memory/store_options.h"
#include "services/memory/sweep_lock.h"

namespace mneme::memory {

// Thread-safe, and safe beside other replicas: a record moves only if it is as it was read.
class RedisTiers {
 public:
  // `disk` and `promoter` are both null where there is no disk tier. All must outlive this.
  RedisTiers(FamilyDirectory& directory, const StoreOptions& options, DiskTier* disk,
             ChunkPromoter* promoter, MemoryMetrics& metrics)
      : directory_(directory),
        options_(options),
        disk_(disk),
        promoter_(promoter),
        metrics_(metrics) {}

  // A family and what it has where.
  struct Use {
    std::string tenant;
    std::string family;
    int64_t redis_bytes = 0;
    double used = 0;  // when the last of its sessions was, in microseconds
  };
  // Returns all families with chunks, the least used first.
  absl::StatusOr<std::vector<Use>> UsesOf(const std::vector<std::string>& tenants,
                                          absl::Time deadline);
  // Demotes, or drops, the least used families of these tenants until Redis is within its budget.
  // A disk that cannot be written now keeps nothing from working: its chunks stay in Redis.
  absl::Status KeepRedisToBudget(const std::vector<std::string>& tenants, SweepLock& sweep_lock,
                                 absl::Time deadline);
  // Removes files that nothing refers to, and drops the least used snapshots that are on disk until
  // it is within its budget.
  absl::Status SweepDisk(absl::Time deadline);
  // Removes the files of a family that no record names. Best effort.
  void RemoveUnused(const std::string& tenant, const std::string& family, absl::Time deadline);
  // Removes the files of a tenant whose key is destroyed; those that are too many for now are found
  // by the sweep.
  void RemoveTenant(const std::string& tenant, absl::Time deadline);

 private:
  // Returns the bytes that left Redis; fewer than there are if the family is in use. Errors of the
  // disk are RESOURCE_EXHAUSTED and UNAVAILABLE of `disk_status`.
  struct Demoted {
    int64_t bytes = 0;
    absl::Status disk_status;
  };
  absl::StatusOr<Demoted> Demote(const Use& use, bool may_be_pinned, SweepLock& sweep_lock,
                                 absl::Time deadline);
  // Returns the bytes that left Redis; 0: it is in use.
  absl::StatusOr<int64_t> Drop(const Use& use, absl::string_view budget, absl::Time deadline);
  // Drops snapshots on disk, the least used first, until `limit_bytes` are left or nothing more can
  // go. Returns whether any was dropped.
  absl::StatusOr<bool> TrimDisk(int64_t limit_bytes, absl::Time deadline);
  // Returns how many there were.
  absl::StatusOr<size_t> RemoveUnusedFiles(const DiskTier::FamilyFiles& files, absl::Time deadline);
  // The same for all, passing over families that have not changed since none was found.
  absl::Status RemoveUnusedOfAll(const std::vector<DiskTier::FamilyFiles>& all,
                                 SweepLock& sweep_lock, absl::Time deadline);
  void NoteDisk(const absl::Status& status);

  FamilyDirectory& directory_;
  const StoreOptions& options_;
  DiskTier* const disk_;
  ChunkPromoter* const promoter_;
  MemoryMetrics& metrics_;
  std::atomic<bool> is_disk_failing_ = false;

  // As a family was when every file of it was in use.
  struct Clean {
    std::string epoch;
    std::string files;  // digest of their places
  };
  sync::Mutex mutex_;
  std::map<std::pair<std::string, std::string>, Clean> clean_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace mneme::memory
