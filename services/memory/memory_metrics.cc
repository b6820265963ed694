#include "services/memory/memory_metrics.h"

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "common/status/annotate.h"

namespace mneme::memory {

MemoryMetrics::MemoryMetrics(metrics::Registry& registry)
    : registry_(registry),
      redis_errors_(registry.AddCounter("mneme_memory_redis_errors_total",
                                        "Calls of Redis that failed, whatever the reason.")),
      staged_bytes_(registry.AddCounter("mneme_memory_staged_bytes_total",
                                        "Payload bytes of chunks that were stored anew.")),
      fetched_bytes_(registry.AddCounter("mneme_memory_fetched_bytes_total",
                                         "Payload bytes of chunks that were sent out.")) {
  // Those that dashboards ask for are there from the start, at zero.
  for (const char* outcome : {"granted", "session_busy"}) {
    registry_.AddCounter("mneme_memory_leases_total", "Tries to take a lease, by outcome.",
                         {{"outcome", outcome}});
  }
  registry_.AddCounter("mneme_memory_commits_total", "Tries to commit a turn, by outcome.",
                       {{"outcome", "committed"}});
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

std::string OutcomeOf(const absl::Status& status, absl::string_view success) {
  if (status.ok()) return std::string(success);
  const std::string reason = status::PayloadOf(status, status::kReasonPayload);
  return absl::AsciiStrToLower(reason.empty() ? absl::StatusCodeToString(status.code()) : reason);
}

}  // namespace mneme::memory
