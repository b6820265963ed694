// Brings chunks that were read from disk back into Redis, behind the reader's back: no stream waits
// for it, and a full Redis fails none.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <optional>
#include <stop_token>
#include <string>
#include <thread>

#include "absl/time/time.h"
#include "common/sync/mutex.h"
#include "services/memory/disk_tier.h"
#include "services/memory/family.h"
#include "services/memory/family_directory.h"
#include "services/memory/memory_metrics.h"

namespace mneme::memory {

// Thread-safe. Its one thread ends with it; what it has not done by then stays on disk.
class ChunkPromoter {
 public:
  // Redis has `redis_budget_bytes` for chunks; 0: no bound. All references must outlive this.
  ChunkPromoter(FamilyDirectory& directory, DiskTier& disk, int64_t redis_budget_bytes,
                MemoryMetrics& metrics);
  ~ChunkPromoter();
  ChunkPromoter(const ChunkPromoter&) = delete;
  ChunkPromoter& operator=(const ChunkPromoter&) = delete;

  // Takes a chunk as it was read. It is passed over where Redis has no room, or when too much waits
  // already: the next use brings it again.
  void Offer(const Family& family, std::string name, std::string place, const std::string& payload);

  // What Redis has of chunks, as a sweep has counted it.
  void SetRedisBytes(int64_t bytes) { redis_bytes_ = bytes; }

 private:
  struct Offered {
    Family family;
    std::string name;
    std::string place;
    std::string payload;
  };

  bool HasRoomFor(size_t bytes) const;
  void Run(const std::stop_token& stop);
  void Promote(Offered offered);

  FamilyDirectory& directory_;
  DiskTier& disk_;
  const int64_t redis_budget_bytes_;
  MemoryMetrics& metrics_;
  std::atomic<int64_t> redis_bytes_ = 0;
  sync::Mutex mutex_;
  sync::CondVar changed_;
  std::deque<Offered> waiting_ ABSL_GUARDED_BY(mutex_);
  size_t waiting_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Time full_until_ ABSL_GUARDED_BY(mutex_) = absl::InfinitePast();
  std::jthread thread_;  // last: it uses all of the above
};

}  // namespace mneme::memory
