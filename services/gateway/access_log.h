// One line and one count per request, whichever front it came through. Never what was said. Of
// requests that are refused under overload only one a second has a line: a flood must neither fill
// the disk nor take the processor from what was accepted.
#pragma once

#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "common/sync/mutex.h"
#include "services/gateway/gateway_metrics.h"

namespace mneme::gateway {

struct AccessRecord {
  std::string front;  // http or grpc
  std::string route;  // a fixed name
  std::string code;   // HTTP number or gRPC name
  std::string request_id;
  std::string traceparent;
  std::string tenant;
  std::string model;
  int prompt_tokens = 0;
  int completion_tokens = 0;
  absl::Time arrived;
  std::string error;      // the status' message; "" where none
  bool overload = false;  // refused with RESOURCE_EXHAUSTED
};

// Thread-safe.
class AccessLog {
 public:
  // `metrics` must outlive the log.
  explicit AccessLog(GatewayMetrics& metrics) : metrics_(metrics) {}

  void Write(const AccessRecord& record);

 private:
  GatewayMetrics& metrics_;
  sync::Mutex mutex_;
  absl::Time next_overload_ ABSL_GUARDED_BY(mutex_) = absl::InfinitePast();
  int64_t left_out_ ABSL_GUARDED_BY(mutex_) = 0;  // without a line since the last one
};

}  // namespace mneme::gateway
