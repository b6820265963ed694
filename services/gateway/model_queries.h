// What can be asked of a model without running it, whichever door the question came through.
#pragma once

#include "absl/status/statusor.h"
#include "mneme/gateway/v1/model.pb.h"
#include "services/gateway/caller.h"
#include "services/gateway/chat_core.h"

namespace mneme::gateway {

// Thread-safe, both. Errors as ModelService documents them.
absl::StatusOr<v1::TokenizeResponse> Tokenize(ChatCore& core, const v1::TokenizeRequest& request,
                                              const Caller& caller);
absl::StatusOr<v1::EstimateResponse> Estimate(ChatCore& core, const v1::EstimateRequest& request,
                                              const Caller& caller);

}  // namespace mneme::gateway
