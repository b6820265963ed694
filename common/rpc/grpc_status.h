// absl::Status to grpc::Status and back: the only place where the two meet.
//
// The payloads of common/status/annotate.h travel as google.rpc details, so that any gRPC client
// can read them: field -> BadRequest, retry-after -> RetryInfo, quota -> QuotaFailure, reason ->
// ErrorInfo (domain "mneme"), which has a session's current version as the metadata "version".
#pragma once

#include <grpcpp/support/status.h>

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace mneme::rpc {

grpc::Status ToGrpc(const absl::Status& status);
absl::Status FromGrpc(const grpc::Status& status);

// Ends a unary method: moves the value into `response`, or returns the error.
template <typename Response>
grpc::Status Reply(absl::StatusOr<Response> result, Response* response) {
  if (!result.ok()) return ToGrpc(result.status());
  *response = *std::move(result);
  return grpc::Status::OK;
}

}  // namespace mneme::rpc
