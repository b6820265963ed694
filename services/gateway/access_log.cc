#include "services/gateway/access_log.h"

#include "absl/time/clock.h"
#include "common/log/log.h"

namespace mneme::gateway {

void LogAccess(const AccessRecord& record, GatewayMetrics& metrics) {
  const absl::Duration took = absl::Now() - record.arrived;
  metrics.CountRequest(record.route, record.code, absl::ToDoubleSeconds(took));
  log::Info("request", {{"front", record.front},
                        {"route", record.route},
                        {"code", record.code},
                        {"request_id", record.request_id},
                        {"traceparent", record.traceparent},
                        {"tenant", record.tenant},
                        {"model", record.model},
                        {"prompt_tokens", record.prompt_tokens},
                        {"completion_tokens", record.completion_tokens},
                        {"ms", absl::ToDoubleMilliseconds(took)},
                        {"error", record.error}});
}

}  // namespace mneme::gateway
