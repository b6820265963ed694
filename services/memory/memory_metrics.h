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

  metrics::Counter& redis_errors() { return redis_errors_; }

 private:
  metrics::Registry& registry_;
  metrics::Counter& redis_errors_;
  metrics::Counter& staged_bytes_;
  metrics::Counter& fetched_bytes_;
};

// Returns the word that CountLease and CountCommit know a status by: `success` for OK, else the
// reason in lower case (session_busy), or the code where there is none (not_found).
std::string OutcomeOf(const absl::Status& status, absl::string_view success);

}  // namespace mneme::memory
