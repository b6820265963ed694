// The gRPC edge of the memory service: checks requests, calls the store, counts. Start reading at
// session_store.h.
#pragma once

#include "mneme/memory/v1/memory.grpc.pb.h"
#include "services/memory/memory_metrics.h"
#include "services/memory/session_store.h"

namespace mneme::memory {

// Thread-safe; holds no state of its own.
class MemoryServiceImpl final : public v1::MemoryService::Service {
 public:
  // Both must outlive the service.
  MemoryServiceImpl(SessionStore& store, MemoryMetrics& metrics)
      : store_(store), metrics_(metrics) {}

  grpc::Status CreateSession(grpc::ServerContext* context, const v1::CreateSessionRequest* request,
                             v1::CreateSessionResponse* response) override;
  grpc::Status GetSession(grpc::ServerContext* context, const v1::GetSessionRequest* request,
                          v1::GetSessionResponse* response) override;
  grpc::Status ListSessions(grpc::ServerContext* context, const v1::ListSessionsRequest* request,
                            v1::ListSessionsResponse* response) override;
  grpc::Status DeleteSession(grpc::ServerContext* context, const v1::DeleteSessionRequest* request,
                             v1::DeleteSessionResponse* response) override;
  grpc::Status AcquireLease(grpc::ServerContext* context, const v1::AcquireLeaseRequest* request,
                            v1::AcquireLeaseResponse* response) override;
  grpc::Status RenewLease(grpc::ServerContext* context, const v1::RenewLeaseRequest* request,
                          v1::RenewLeaseResponse* response) override;
  grpc::Status ReleaseLease(grpc::ServerContext* context, const v1::ReleaseLeaseRequest* request,
                            v1::ReleaseLeaseResponse* response) override;
  grpc::Status CommitTurn(grpc::ServerContext* context, const v1::CommitTurnRequest* request,
                          v1::CommitTurnResponse* response) override;

 private:
  // Checks the request, runs one method of the store within the call's deadline, and counts it.
  template <typename Request, typename Response>
  absl::StatusOr<Response> Call(absl::string_view name, const grpc::ServerContext& context,
                                const Request& request,
                                absl::StatusOr<Response> (SessionStore::*method)(const Request&,
                                                                                 absl::Time));

  SessionStore& store_;
  MemoryMetrics& metrics_;
};

}  // namespace mneme::memory
