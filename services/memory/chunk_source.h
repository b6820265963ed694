// Where committed chunks come from: Redis, else the disk tier.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "mneme/snapshot/v1/snapshot.pb.h"
#include "services/memory/chunk_promoter.h"
#include "services/memory/disk_tier.h"
#include "services/memory/family.h"
#include "services/memory/family_directory.h"
#include "services/memory/memory_metrics.h"

namespace mneme::memory {

// Thread-safe.
class ChunkSource {
 public:
  // `disk` and `promoter` are both null where there is no disk tier. All must outlive this.
  ChunkSource(FamilyDirectory& directory, DiskTier* disk, ChunkPromoter* promoter,
              MemoryMetrics& metrics)
      : directory_(directory), disk_(disk), promoter_(promoter), metrics_(metrics) {}

  struct Found {
    std::string payload;
    bool is_from_disk = false;
  };
  // Returns chunks `positions` of a manifest in this order. DATA_LOSS names the first that is gone
  // or damaged; a damaged one is removed, so that it can be stored anew. FAILED_PRECONDITION: one
  // is on a disk that this service has not got. UNAVAILABLE: the disk cannot be read now.
  absl::StatusOr<std::vector<Found>> Read(const Family& family, const std::string& session_id,
                                          const snapshot::v1::Manifest& manifest,
                                          const std::vector<int>& positions, absl::Time deadline);

 private:
  struct Wanted {
    int position = 0;  // in the manifest
    std::string name;
    size_t num_bytes = 0;
  };
  // `place` is what its record says; "": nothing.
  absl::StatusOr<Found> ReadBelow(const Family& family, const std::string& session_id,
                                  const Wanted& wanted, std::string place, absl::Time deadline);
  absl::StatusOr<Found> OpenSealed(const Family& family, const std::string& session_id,
                                   const Wanted& wanted, std::string sealed, absl::Time deadline);
  void Lose(const Family& family, const std::string& name, const std::string& place,
            absl::Time deadline);

  FamilyDirectory& directory_;
  DiskTier* const disk_;
  ChunkPromoter* const promoter_;
  MemoryMetrics& metrics_;
};

}  // namespace mneme::memory
