// What the gateway counts. One object per process; all members are thread-safe.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "common/metrics/metrics.h"

namespace mneme::gateway {

class GatewayMetrics {
 public:
  // `registry` must outlive this object.
  explicit GatewayMetrics(metrics::Registry& registry);

  // Counts a finished request. `route` is a fixed name, never what the client sent.
  void CountRequest(absl::string_view route, absl::string_view code, double seconds);
  // Counts a request that was refused before work was done for it. `reason` is a fixed word.
  void CountRejection(absl::string_view reason);

  metrics::Gauge& in_flight;
  metrics::Histogram& time_to_first_token_seconds;
  metrics::Histogram& inter_token_seconds;
  metrics::Counter& prompt_tokens;
  metrics::Counter& cached_tokens;
  metrics::Counter& completion_tokens;
  metrics::Counter& retries;
  metrics::Counter& failovers;
  metrics::Counter& cancelled;
  metrics::Counter& unpersisted_turns;
  metrics::Gauge& ready_executors;

 private:
  metrics::Registry& registry_;
};

}  // namespace mneme::gateway
