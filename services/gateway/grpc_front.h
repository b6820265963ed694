// The gRPC door: translates between mneme.gateway.v1 and the core.
#pragma once

#include <grpcpp/server_context.h>
#include <grpcpp/support/sync_stream.h>

#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "mneme/gateway/v1/chat.grpc.pb.h"
#include "mneme/gateway/v1/model.grpc.pb.h"
#include "services/gateway/access_log.h"
#include "services/gateway/authenticator.h"
#include "services/gateway/chat_core.h"
#include "services/gateway/write_watch.h"

namespace mneme::gateway {

// What every method of the front begins and ends with: identity, request id, log line.
class GrpcEdge {
 public:
  // All must outlive the edge.
  GrpcEdge(const Authenticator& authenticator, GatewayMetrics& metrics, AccessLog& log)
      : authenticator_(authenticator), metrics_(metrics), log_(log) {}

  // Fills `caller` and the record; the request id goes back in the initial metadata.
  absl::Status Begin(grpc::ServerContext* context, const char* route, Caller* caller,
                     AccessRecord* record) const;
  grpc::Status End(const absl::Status& status, AccessRecord* record) const;

 private:
  const Authenticator& authenticator_;
  GatewayMetrics& metrics_;
  AccessLog& log_;
};

// Runs `core(caller) -> absl::Status` between a method's beginning and its end.
template <typename Core>
grpc::Status Run(const GrpcEdge& edge, grpc::ServerContext* context, const char* route,
                 const Core& core) {
  Caller caller;
  AccessRecord record;
  absl::Status status = edge.Begin(context, route, &caller, &record);
  if (status.ok()) status = core(caller);
  return edge.End(status, &record);
}

// Moves a result into the response of a call; returns its status.
template <typename Response>
absl::Status Take(absl::StatusOr<Response> result, Response* response) {
  if (result.ok()) *response = *std::move(result);
  return result.status();
}

// Thread-safe.
class ChatServiceImpl final : public v1::ChatService::Service {
 public:
  // All must outlive the service.
  ChatServiceImpl(ChatCore& core, const GrpcEdge& edge, WriteWatch& watch)
      : core_(core), edge_(edge), watch_(watch) {}

  grpc::Status Chat(grpc::ServerContext* context, const v1::ChatRequest* request,
                    grpc::ServerWriter<v1::ChatResponse>* writer) override;
  grpc::Status Complete(grpc::ServerContext* context, const v1::CompleteRequest* request,
                        grpc::ServerWriter<v1::CompleteResponse>* writer) override;
  grpc::Status Attach(grpc::ServerContext* context, const v1::AttachRequest* request,
                      grpc::ServerWriter<v1::AttachResponse>* writer) override;
  grpc::Status Cancel(grpc::ServerContext* context, const v1::CancelRequest* request,
                      v1::CancelResponse* response) override;

 private:
  ChatCore& core_;
  const GrpcEdge& edge_;
  WriteWatch& watch_;
};

// Thread-safe.
class ModelServiceImpl final : public v1::ModelService::Service {
 public:
  // Both must outlive the service.
  ModelServiceImpl(ChatCore& core, const GrpcEdge& edge) : core_(core), edge_(edge) {}

  grpc::Status ListModels(grpc::ServerContext* context, const v1::ListModelsRequest* request,
                          v1::ListModelsResponse* response) override;
  grpc::Status GetModel(grpc::ServerContext* context, const v1::GetModelRequest* request,
                        v1::GetModelResponse* response) override;
  grpc::Status CountTokens(grpc::ServerContext* context, const v1::CountTokensRequest* request,
                           v1::CountTokensResponse* response) override;
  grpc::Status Tokenize(grpc::ServerContext* context, const v1::TokenizeRequest* request,
                        v1::TokenizeResponse* response) override;
  grpc::Status Estimate(grpc::ServerContext* context, const v1::EstimateRequest* request,
                        v1::EstimateResponse* response) override;

 private:
  ChatCore& core_;
  const GrpcEdge& edge_;
};

}  // namespace mneme::gateway
