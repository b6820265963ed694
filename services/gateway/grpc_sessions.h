// The gRPC door to sessions and to what administrators may do.
#pragma once

#include <grpcpp/server_context.h>
#include <grpcpp/support/sync_stream.h>

#include "mneme/gateway/v1/admin.grpc.pb.h"
#include "mneme/gateway/v1/session.grpc.pb.h"
#include "services/gateway/grpc_front.h"
#include "services/gateway/session_directory.h"

namespace mneme::gateway {

// Thread-safe.
class SessionServiceImpl final : public v1::SessionService::Service {
 public:
  // Both must outlive the service. A file of more than `max_import_bytes` is not imported.
  SessionServiceImpl(const SessionDirectory& sessions, const GrpcEdge& edge,
                     int64_t max_import_bytes)
      : sessions_(sessions), edge_(edge), max_import_bytes_(max_import_bytes) {}

  grpc::Status CreateSession(grpc::ServerContext* context, const v1::CreateSessionRequest* request,
                             v1::CreateSessionResponse* response) override;
  grpc::Status GetSession(grpc::ServerContext* context, const v1::GetSessionRequest* request,
                          v1::GetSessionResponse* response) override;
  grpc::Status ListSessions(grpc::ServerContext* context, const v1::ListSessionsRequest* request,
                            v1::ListSessionsResponse* response) override;
  grpc::Status DeleteSession(grpc::ServerContext* context, const v1::DeleteSessionRequest* request,
                             v1::DeleteSessionResponse* response) override;
  grpc::Status ForkSession(grpc::ServerContext* context, const v1::ForkSessionRequest* request,
                           v1::ForkSessionResponse* response) override;
  grpc::Status CompactSession(grpc::ServerContext* context,
                              const v1::CompactSessionRequest* request,
                              v1::CompactSessionResponse* response) override;
  grpc::Status RewindSession(grpc::ServerContext* context, const v1::RewindSessionRequest* request,
                             v1::RewindSessionResponse* response) override;
  grpc::Status DescribeSession(grpc::ServerContext* context,
                               const v1::DescribeSessionRequest* request,
                               v1::DescribeSessionResponse* response) override;
  grpc::Status UpdateSession(grpc::ServerContext* context, const v1::UpdateSessionRequest* request,
                             v1::UpdateSessionResponse* response) override;
  grpc::Status ExportSession(grpc::ServerContext* context, const v1::ExportSessionRequest* request,
                             grpc::ServerWriter<v1::ExportSessionResponse>* writer) override;
  grpc::Status ImportSession(grpc::ServerContext* context,
                             grpc::ServerReader<v1::ImportSessionRequest>* reader,
                             v1::ImportSessionResponse* response) override;

 private:
  const SessionDirectory& sessions_;
  const GrpcEdge& edge_;
  const int64_t max_import_bytes_;
};

// Thread-safe.
class AdminServiceImpl final : public v1::AdminService::Service {
 public:
  // Both must outlive the service.
  AdminServiceImpl(const SessionDirectory& sessions, const GrpcEdge& edge)
      : sessions_(sessions), edge_(edge) {}

  grpc::Status ForgetTenant(grpc::ServerContext* context, const v1::ForgetTenantRequest* request,
                            v1::ForgetTenantResponse* response) override;

 private:
  const SessionDirectory& sessions_;
  const GrpcEdge& edge_;
};

}  // namespace mneme::gateway
