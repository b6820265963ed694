// A unary call to another service of the system, tried again while that service is away.
#pragma once

#include <grpcpp/client_context.h>

#include <algorithm>
#include <thread>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/rpc/client.h"
#include "common/rpc/grpc_status.h"
#include "common/status/annotate.h"
#include "common/trace/request_context.h"

namespace mneme::gateway {

// Runs `call(ClientContext*) -> grpc::Status` until it answers something else than UNAVAILABLE, for
// `patience` at most and never past `deadline`. `service` names it in the error.
template <typename Call>
absl::Status CallUpstream(absl::string_view service, const trace::RequestContext& request,
                          absl::Time deadline, absl::Duration patience, Call call) {
  const absl::Time give_up = std::min(deadline, absl::Now() + patience);
  absl::Duration pause = absl::Milliseconds(20);
  while (true) {
    grpc::ClientContext context;
    rpc::Prepare(request, deadline, &context);
    absl::Status status = rpc::FromGrpc(call(&context));
    if (!absl::IsUnavailable(status)) return status;
    if (absl::Now() + pause >= give_up) {
      return status::WithRetryAfter(
          status::Annotate(status, absl::StrCat("the ", service, " service does not answer")),
          absl::Seconds(1));
    }
    std::this_thread::sleep_for(absl::ToChronoMilliseconds(pause));
    pause = std::min(pause * 2, absl::Milliseconds(250));
  }
}

}  // namespace mneme::gateway
