// What the memory service shows of itself on /metrics.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "common/metrics/metrics.h"

namespace mneme::memory {

// Thread-safe. `registry` must outlive it.
class MemoryMetrics {
 public:
  explicit MemoryMetrics(metrics::Registry& registry);

  // Counts one call that ended with `status` and took `duration`.
  void CountCall(absl::string_view method, const absl::Status& status, absl::Duration duration);
  // Counts one try to take a lease: granted, repeated (the turn was committed before), or refused
  // with a reason.
  void CountLease(absl::string_view outcome);
  // Counts one try to commit: committed, or refused with a reason.
  void CountCommit(absl::string_view outcome);
  // Counts payload bytes of chunks that were stored anew, and that were sent out.
  void CountStagedBytes(int64_t bytes) { staged_bytes_.Increment(static_cast<double>(bytes)); }
  void CountFetchedBytes(int64_t bytes) { fetched_bytes_.Increment(static_cast<double>(bytes)); }

  // Payload bytes that went from Redis to disk and back, and those of snapshots that were dropped
  // to keep to a tier's budget.
  void CountDemotedBytes(int64_t bytes) { demoted_bytes_.Increment(static_cast<double>(bytes)); }
  void CountPromotedBytes(int64_t bytes) { promoted_bytes_.Increment(static_cast<double>(bytes)); }
  void CountDroppedBytes(int64_t bytes) { dropped_bytes_.Increment(static_cast<double>(bytes)); }
  // Payload bytes by which CompactSession made snapshots smaller.
  void CountCompactedBytes(int64_t bytes) {
    compacted_bytes_.Increment(static_cast<double>(bytes));
  }
  // Counts a failure of the disk tier: open, write, read, damaged (a file was not what it was),
  // missing, or elsewhere (a chunk is in a folder that this service has not got).
  void CountDiskError(absl::string_view operation);

  metrics::Counter& redis_errors() { return redis_errors_; }
  // Of listed chunks: payload bytes in Redis, and bytes of this service's own files.
  metrics::Gauge& redis_bytes() { return redis_bytes_; }
  metrics::Gauge& disk_bytes() { return disk_bytes_; }

 private:
  metrics::Registry& registry_;
  metrics::Counter& redis_errors_;
  metrics::Counter& staged_bytes_;
  metrics::Counter& fetched_bytes_;
  metrics::Counter& demoted_bytes_;
  metrics::Counter& promoted_bytes_;
  metrics::Counter& dropped_bytes_;
  metrics::Counter& compacted_bytes_;
  metrics::Gauge& redis_bytes_;
  metrics::Gauge& disk_bytes_;
};

// Returns the word that CountLease and CountCommit know a status by: `success` for OK, else the
// reason in lower case (session_busy), or the code where there is none (not_found).
std::string OutcomeOf(const absl::Status& status, absl::string_view success);

}  // namespace mneme::memory
