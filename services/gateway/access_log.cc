#include "services/gateway/access_log.h"

#include <utility>

#include "absl/time/clock.h"
#include "common/log/log.h"

namespace mneme::gateway {
namespace {

constexpr absl::Duration kOverloadInterval = absl::Seconds(1);

}  // namespace

void AccessLog::Write(const AccessRecord& record) {
  const absl::Time now = absl::Now();
  const absl::Duration took = now - record.arrived;
  metrics_.CountRequest(record.route, record.code, absl::ToDoubleSeconds(took));
  int64_t left_out = 0;
  if (record.overload) {
    sync::MutexLock lock(mutex_);
    if (now < next_overload_) {
      ++left_out_;
      return;
    }
    next_overload_ = now + kOverloadInterval;
    left_out = std::exchange(left_out_, 0);
  }
  if (left_out > 0) {
    log::Warning("requests were refused without a line", {{"requests", left_out}});
  }
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
