#include "services/gateway/model_queries.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "common/status/status_macros.h"
#include "services/gateway/upstream_call.h"

namespace mneme::gateway {
namespace {

constexpr absl::Duration kTimeout = absl::Seconds(30);
constexpr absl::Duration kPatience = absl::Seconds(5);

absl::Time DeadlineOf(const Caller& caller) {
  return std::min(caller.deadline, caller.arrived + kTimeout);
}

}  // namespace

absl::StatusOr<v1::TokenizeResponse> Tokenize(ChatCore& core, const v1::TokenizeRequest& request,
                                              const Caller& caller) {
  v1::TokenizeResponse response;
  ASSIGN_OR_RETURN(*response.mutable_model(), core.executors().Resolve(request.model()));
  ASSIGN_OR_RETURN(
      const std::vector<std::vector<int32_t>> encodings,
      core.tokenizer().Encode(response.model(), {request.text()}, request.add_special_tokens(),
                              caller.context, DeadlineOf(caller)));
  response.mutable_token_ids()->Assign(encodings[0].begin(), encodings[0].end());
  return response;
}

absl::StatusOr<v1::EstimateResponse> Estimate(ChatCore& core, const v1::EstimateRequest& request,
                                              const Caller& caller) {
  v1::EstimateResponse response;
  ASSIGN_OR_RETURN(*response.mutable_model(), core.executors().Resolve(request.model()));
  executor::v1::EstimateRequest estimate;
  *estimate.mutable_memory_policy() = request.memory_policy();
  estimate.set_tokens(request.tokens());
  executor::v1::EstimateResponse estimated;
  RETURN_IF_ERROR(CallUpstream(
      "executor", caller.context, DeadlineOf(caller), kPatience,
      [&](grpc::ClientContext* context) -> grpc::Status {
        // Nothing runs, so that a full executor answers as well.
        ExecutorPool::Executor* const executor = core.executors().AnyReady(response.model());
        if (executor == nullptr) {
          return {grpc::StatusCode::UNAVAILABLE, "no executor of this model is ready"};
        }
        return executor->stub->Estimate(context, estimate, &estimated);
      }));
  *response.mutable_estimate() = std::move(*estimated.mutable_estimate());
  return response;
}

}  // namespace mneme::gateway
