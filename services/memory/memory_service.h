// The gRPC edge of the memory service: checks requests, calls the store, counts. Start reading at
// session_store.h.
#pragma once

#include <utility>

#include "mneme/memory/v1/memory.grpc.pb.h"
#include "services/memory/memory_metrics.h"
#include "services/memory/memory_plans.h"
#include "services/memory/session_store.h"

namespace mneme::memory {

// Thread-safe; holds no state of its own.
class MemoryServiceImpl final : public v1::MemoryService::Service {
 public:
  // `store` and `metrics` must outlive the service.
  MemoryServiceImpl(SessionStore& store, MemoryPlans plans, MemoryMetrics& metrics)
      : store_(store), plans_(std::move(plans)), metrics_(metrics) {}

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
  grpc::Status StageSnapshot(grpc::ServerContext* context,
                             grpc::ServerReader<v1::StageSnapshotRequest>* reader,
                             v1::StageSnapshotResponse* response) override;
  grpc::Status FetchSnapshot(grpc::ServerContext* context, const v1::FetchSnapshotRequest* request,
                             grpc::ServerWriter<v1::FetchSnapshotResponse>* writer) override;
  grpc::Status ForkSession(grpc::ServerContext* context, const v1::ForkSessionRequest* request,
                           v1::ForkSessionResponse* response) override;
  grpc::Status RewindSession(grpc::ServerContext* context, const v1::RewindSessionRequest* request,
                             v1::RewindSessionResponse* response) override;
  grpc::Status CompactSession(grpc::ServerContext* context,
                              const v1::CompactSessionRequest* request,
                              v1::CompactSessionResponse* response) override;
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
  grpc::Status ForgetTenant(grpc::ServerContext* context, const v1::ForgetTenantRequest* request,
                            v1::ForgetTenantResponse* response) override;

 private:
  // Counts and, where it is worth it, logs a call that has ended.
  void Note(absl::string_view name, const grpc::ServerContext& context, const absl::Status& status,
            absl::Time start);
  absl::StatusOr<v1::StageSnapshotResponse> Stage(
      const grpc::ServerContext& context, grpc::ServerReader<v1::StageSnapshotRequest>& reader);
  absl::Status Fetch(const grpc::ServerContext& context, const v1::FetchSnapshotRequest& request,
                     grpc::ServerWriter<v1::FetchSnapshotResponse>& writer);
  absl::Status Export(const grpc::ServerContext& context, const v1::ExportSessionRequest& request,
                      grpc::ServerWriter<v1::ExportSessionResponse>& writer);
  absl::StatusOr<v1::ImportSessionResponse> Import(
      const grpc::ServerContext& context, grpc::ServerReader<v1::ImportSessionRequest>& reader);

  // Checks the request, runs one method of the store within the call's deadline, and counts it.
  template <typename Request, typename Response>
  absl::StatusOr<Response> Call(absl::string_view name, const grpc::ServerContext& context,
                                const Request& request,
                                absl::StatusOr<Response> (SessionStore::*method)(const Request&,
                                                                                 absl::Time));

  SessionStore& store_;
  const MemoryPlans plans_;
  MemoryMetrics& metrics_;
};

}  // namespace mneme::memory
