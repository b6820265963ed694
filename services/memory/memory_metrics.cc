#include "services/memory/memory_metrics.h"

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "common/status/annotate.h"

namespace mneme::memory {
namespace {

constexpr char kTierBytes[] = "mneme_memory_tier_bytes";
constexpr char kTierBytesHelp[] =
    "Bytes of committed chunks: payload in Redis, files of this service's disk tier. As of the "
    "last sweep.";

}  // namespace

MemoryMetrics::MemoryMetrics(metrics::Registry& registry)
    : registry_(registry),
      redis_errors_(registry.AddCounter("mneme_memory_redis_errors_total",
                                        "Calls of Redis that failed, whatever the reason.")),
      staged_bytes_(registry.AddCounter("mneme_memory_staged_bytes_total",
                                        "Payload bytes of chunks that were stored anew.")),
      fetched_bytes_(registry.AddCounter("mneme_memory_fetched_bytes_total",
                                         "Payload bytes of chunks that were sent out.")),
      demoted_bytes_(registry.AddCounter("mneme_memory_demoted_bytes_total",
                                         "Payload bytes that went from Redis to disk.")),
      promoted_bytes_(registry.AddCounter("mneme_memory_promoted_bytes_total",
                                          "Payload bytes that came back from disk to Redis.")),
      dropped_bytes_(registry.AddCounter(
          "mneme_memory_dropped_bytes_total",
          "Payload bytes of snapshots that were dropped to keep to a tier's budget.")),
      compacted_bytes_(registry.AddCounter(
          "mneme_memory_compacted_bytes_total",
          "Payload bytes by which sessions' snapshots were made smaller on request.")),
      redis_bytes_(registry.AddGauge(kTierBytes, kTierBytesHelp, {{"tier", "redis"}})),
      disk_bytes_(registry.AddGauge(kTierBytes, kTierBytesHelp, {{"tier", "disk"}})) {
  // Those that dashboards ask for are there from the start, at zero.
  for (const char* outcome : {"granted", "session_busy"}) {
    registry_.AddCounter("mneme_memory_leases_total", "Tries to take a lease, by outcome.",
                         {{"outcome", outcome}});
  }
  registry_.AddCounter("mneme_memory_commits_total", "Tries to commit a turn, by outcome.",
                       {{"outcome", "committed"}});
  for (const char* operation : {"open", "write", "read", "damaged", "missing", "elsewhere"}) {
    registry_.AddCounter("mneme_memory_disk_errors_total",
                         "Failures of the disk tier, by operation.", {{"operation", operation}});
  }
}

void MemoryMetrics::CountCall(absl::string_view method, const absl::Status& status,
                              absl::Duration duration) {
  const std::string name(method);
  registry_
      .AddCounter("mneme_memory_calls_total", "Calls by method and status code.",
                  {{"method", name}, {"code", absl::StatusCodeToString(status.code())}})
      .Increment();
  registry_
      .AddHistogram("mneme_memory_call_seconds", "Duration of calls by method.",
                    metrics::LatencyBounds(), {{"method", name}})
      .Observe(absl::ToDoubleSeconds(duration));
}

void MemoryMetrics::CountLease(absl::string_view outcome) {
  registry_
      .AddCounter("mneme_memory_leases_total", "Tries to take a lease, by outcome.",
                  {{"outcome", std::string(outcome)}})
      .Increment();
}

void MemoryMetrics::CountCommit(absl::string_view outcome) {
  registry_
      .AddCounter("mneme_memory_commits_total", "Tries to commit a turn, by outcome.",
                  {{"outcome", std::string(outcome)}})
      .Increment();
}

void MemoryMetrics::CountDiskError(absl::string_view operation) {
  registry_
      .AddCounter("mneme_memory_disk_errors_total", "Failures of the disk tier, by operation.",
                  {{"operation", std::string(operation)}})
      .Increment();
}

std::string OutcomeOf(const absl::Status& status, absl::string_view success) {
  if (status.ok()) return std::string(success);
  const std::string reason = status::PayloadOf(status, status::kReasonPayload);
  return absl::AsciiStrToLower(reason.empty() ? absl::StatusCodeToString(status.code()) : reason);
}

}  // namespace mneme::memory
