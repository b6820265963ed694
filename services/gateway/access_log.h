// One line and one count per request, whichever front it came through. Never what was said.
#pragma once

#include <string>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
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
  std::string error;  // the status' message; "" where none
};

void LogAccess(const AccessRecord& record, GatewayMetrics& metrics);

}  // namespace mneme::gateway
