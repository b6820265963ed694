// Who asks, and how to learn that they no longer do: what both fronts hand to the core.
#pragma once

#include <functional>
#include <string>

#include "absl/time/time.h"
#include "common/trace/request_context.h"
#include "mneme/gateway/v1/config.pb.h"

namespace mneme::gateway {

struct Caller {
  std::string tenant;
  bool admin = false;  // may do what concerns other tenants
  v1::Limits limits;
  trace::RequestContext context;
  absl::Time arrived;
  absl::Time deadline = absl::InfiniteFuture();
  std::function<bool()> gone;  // whether the client went away; cheap, called from one thread
};

}  // namespace mneme::gateway
