#include "services/memory/memory_service.h"

#include <memory>
#include <string>
#include <utility>

#include "absl/time/clock.h"
#include "common/log/log.h"
#include "common/rpc/client.h"
#include "common/rpc/grpc_status.h"
#include "common/status/annotate.h"
#include "common/status/status_macros.h"
#include "services/memory/request_check.h"
#include "services/memory/session_compaction.h"
#include "services/memory/session_transfer.h"

namespace mneme::memory {

void MemoryServiceImpl::Note(absl::string_view name, const grpc::ServerContext& context,
                             const absl::Status& status, absl::Time start) {
  metrics_.CountCall(name, status, absl::Now() - start);
  // A store that does not answer is counted, and logged once by the readiness check.
  if (absl::IsInternal(status) || absl::IsDataLoss(status)) {
    log::Error("call failed", {{"method", name},
                               {"request", rpc::ContextOf(context).request_id},
                               {"error", std::string(status.message())}});
  }
}

template <typename Request, typename Response>
absl::StatusOr<Response> MemoryServiceImpl::Call(
    absl::string_view name, const grpc::ServerContext& context, const Request& request,
    absl::StatusOr<Response> (SessionStore::*method)(const Request&, absl::Time)) {
  const absl::Time start = absl::Now();
  Request normalized = request;
  const absl::Status checked = Normalize(&normalized);
  absl::StatusOr<Response> response =
      checked.ok() ? (store_.*method)(normalized, rpc::DeadlineOf(context)) : checked;
  Note(name, context, response.status(), start);
  return response;
}

grpc::Status MemoryServiceImpl::CreateSession(grpc::ServerContext* context,
                                              const v1::CreateSessionRequest* request,
                                              v1::CreateSessionResponse* response) {
  return rpc::Reply(Call("CreateSession", *context, *request, &SessionStore::CreateSession),
                    response);
}

grpc::Status MemoryServiceImpl::GetSession(grpc::ServerContext* context,
                                           const v1::GetSessionRequest* request,
                                           v1::GetSessionResponse* response) {
  return rpc::Reply(Call("GetSession", *context, *request, &SessionStore::GetSession), response);
}

grpc::Status MemoryServiceImpl::ListSessions(grpc::ServerContext* context,
                                             const v1::ListSessionsRequest* request,
                                             v1::ListSessionsResponse* response) {
  return rpc::Reply(Call("ListSessions", *context, *request, &SessionStore::ListSessions),
                    response);
}

grpc::Status MemoryServiceImpl::DeleteSession(grpc::ServerContext* context,
                                              const v1::DeleteSessionRequest* request,
                                              v1::DeleteSessionResponse* response) {
  return rpc::Reply(Call("DeleteSession", *context, *request, &SessionStore::DeleteSession),
                    response);
}

grpc::Status MemoryServiceImpl::AcquireLease(grpc::ServerContext* context,
                                             const v1::AcquireLeaseRequest* request,
                                             v1::AcquireLeaseResponse* response) {
  auto result = Call("AcquireLease", *context, *request, &SessionStore::AcquireLease);
  const bool is_repeated = result.ok() && result->has_committed();
  if (result.ok() && !is_repeated) *result->mutable_plan() = plans_.Of(*request, result->session());
  metrics_.CountLease(OutcomeOf(result.status(), is_repeated ? "repeated" : "granted"));
  return rpc::Reply(std::move(result), response);
}

grpc::Status MemoryServiceImpl::RenewLease(grpc::ServerContext* context,
                                           const v1::RenewLeaseRequest* request,
                                           v1::RenewLeaseResponse* response) {
  return rpc::Reply(Call("RenewLease", *context, *request, &SessionStore::RenewLease), response);
}

grpc::Status MemoryServiceImpl::ReleaseLease(grpc::ServerContext* context,
                                             const v1::ReleaseLeaseRequest* request,
                                             v1::ReleaseLeaseResponse* response) {
  return rpc::Reply(Call("ReleaseLease", *context, *request, &SessionStore::ReleaseLease),
                    response);
}

grpc::Status MemoryServiceImpl::CommitTurn(grpc::ServerContext* context,
                                           const v1::CommitTurnRequest* request,
                                           v1::CommitTurnResponse* response) {
  auto result = Call("CommitTurn", *context, *request, &SessionStore::CommitTurn);
  metrics_.CountCommit(OutcomeOf(result.status(), "committed"));
  return rpc::Reply(std::move(result), response);
}

absl::StatusOr<v1::StageSnapshotResponse> MemoryServiceImpl::Stage(
    const grpc::ServerContext& context, grpc::ServerReader<v1::StageSnapshotRequest>& reader) {
  v1::StageSnapshotRequest part;
  if (!reader.Read(&part) || !part.has_header()) {
    return status::InvalidField("header", "must come first");
  }
  RETURN_IF_ERROR(Normalize(part.mutable_header()));
  ASSIGN_OR_RETURN(const std::unique_ptr<SnapshotStaging> staging,
                   store_.StageSnapshot(part.header(), rpc::DeadlineOf(context)));
  while (reader.Read(&part)) {
    switch (part.part_case()) {
      case v1::StageSnapshotRequest::kChunk:
        RETURN_IF_ERROR(staging->Add(std::move(*part.mutable_chunk())));
        break;
      case v1::StageSnapshotRequest::kManifest:
        return staging->Finish(std::move(*part.mutable_manifest()));
      default:
        return status::InvalidField("part", "must be a chunk or, last, the manifest");
    }
  }
  return absl::CancelledError("the stream ended before the manifest");
}

grpc::Status MemoryServiceImpl::StageSnapshot(grpc::ServerContext* context,
                                              grpc::ServerReader<v1::StageSnapshotRequest>* reader,
                                              v1::StageSnapshotResponse* response) {
  const absl::Time start = absl::Now();
  absl::StatusOr<v1::StageSnapshotResponse> result = Stage(*context, *reader);
  Note("StageSnapshot", *context, result.status(), start);
  if (result.ok()) metrics_.CountStagedBytes(result->bytes_stored());
  return rpc::Reply(std::move(result), response);
}

absl::Status MemoryServiceImpl::Fetch(const grpc::ServerContext& context,
                                      const v1::FetchSnapshotRequest& request,
                                      grpc::ServerWriter<v1::FetchSnapshotResponse>& writer) {
  v1::FetchSnapshotRequest normalized = request;
  RETURN_IF_ERROR(Normalize(&normalized));
  int64_t bytes = 0;
  const auto send = [&](const v1::FetchSnapshotResponse& part) {
    bytes += static_cast<int64_t>(part.chunk().payload().size());
    return writer.Write(part) ? absl::OkStatus() : absl::CancelledError("the reader has gone");
  };
  const absl::Status status = store_.FetchSnapshot(normalized, send, rpc::DeadlineOf(context));
  metrics_.CountFetchedBytes(bytes);
  return status;
}

grpc::Status MemoryServiceImpl::FetchSnapshot(
    grpc::ServerContext* context, const v1::FetchSnapshotRequest* request,
    grpc::ServerWriter<v1::FetchSnapshotResponse>* writer) {
  const absl::Time start = absl::Now();
  const absl::Status status = Fetch(*context, *request, *writer);
  Note("FetchSnapshot", *context, status, start);
  return rpc::ToGrpc(status);
}

grpc::Status MemoryServiceImpl::ForkSession(grpc::ServerContext* context,
                                            const v1::ForkSessionRequest* request,
                                            v1::ForkSessionResponse* response) {
  return rpc::Reply(Call("ForkSession", *context, *request, &SessionStore::ForkSession), response);
}

grpc::Status MemoryServiceImpl::RewindSession(grpc::ServerContext* context,
                                              const v1::RewindSessionRequest* request,
                                              v1::RewindSessionResponse* response) {
  return rpc::Reply(Call("RewindSession", *context, *request, &SessionStore::RewindSession),
                    response);
}

grpc::Status MemoryServiceImpl::CompactSession(grpc::ServerContext* context,
                                               const v1::CompactSessionRequest* request,
                                               v1::CompactSessionResponse* response) {
  const absl::Time start = absl::Now();
  v1::CompactSessionRequest normalized = *request;
  const absl::Status checked = Normalize(&normalized);
  absl::StatusOr<v1::CompactSessionResponse> result =
      checked.ok() ? memory::CompactSession(store_, normalized, rpc::DeadlineOf(*context))
                   : checked;
  Note("CompactSession", *context, result.status(), start);
  if (result.ok()) {
    metrics_.CountCompactedBytes(result->kv_bytes_before() - result->kv_bytes_after());
  }
  return rpc::Reply(std::move(result), response);
}

grpc::Status MemoryServiceImpl::DescribeSession(grpc::ServerContext* context,
                                                const v1::DescribeSessionRequest* request,
                                                v1::DescribeSessionResponse* response) {
  return rpc::Reply(Call("DescribeSession", *context, *request, &SessionStore::DescribeSession),
                    response);
}

grpc::Status MemoryServiceImpl::UpdateSession(grpc::ServerContext* context,
                                              const v1::UpdateSessionRequest* request,
                                              v1::UpdateSessionResponse* response) {
  return rpc::Reply(Call("UpdateSession", *context, *request, &SessionStore::UpdateSession),
                    response);
}

absl::Status MemoryServiceImpl::Export(const grpc::ServerContext& context,
                                       const v1::ExportSessionRequest& request,
                                       grpc::ServerWriter<v1::ExportSessionResponse>& writer) {
  v1::ExportSessionRequest normalized = request;
  RETURN_IF_ERROR(Normalize(&normalized));
  const auto send = [&](std::string piece) {
    v1::ExportSessionResponse response;
    response.set_piece(std::move(piece));
    return writer.Write(response) ? absl::OkStatus() : absl::CancelledError("the reader has gone");
  };
  return memory::ExportSession(store_, normalized, send, rpc::DeadlineOf(context));
}

grpc::Status MemoryServiceImpl::ExportSession(
    grpc::ServerContext* context, const v1::ExportSessionRequest* request,
    grpc::ServerWriter<v1::ExportSessionResponse>* writer) {
  const absl::Time start = absl::Now();
  const absl::Status status = Export(*context, *request, *writer);
  Note("ExportSession", *context, status, start);
  return rpc::ToGrpc(status);
}

absl::StatusOr<v1::ImportSessionResponse> MemoryServiceImpl::Import(
    const grpc::ServerContext& context, grpc::ServerReader<v1::ImportSessionRequest>& reader) {
  v1::ImportSessionRequest part;
  if (!reader.Read(&part) || !part.has_header()) {
    return status::InvalidField("header", "must come first");
  }
  RETURN_IF_ERROR(Normalize(part.mutable_header()));
  SessionImporter importer(store_, part.header(), rpc::DeadlineOf(context));
  while (reader.Read(&part)) {
    if (part.part_case() != v1::ImportSessionRequest::kPiece) {
      return status::InvalidField("part", "must be a piece of the file after the header");
    }
    RETURN_IF_ERROR(importer.Add(part.piece()));
  }
  if (context.IsCancelled()) return absl::CancelledError("the caller has gone");
  return importer.Finish();
}

grpc::Status MemoryServiceImpl::ImportSession(grpc::ServerContext* context,
                                              grpc::ServerReader<v1::ImportSessionRequest>* reader,
                                              v1::ImportSessionResponse* response) {
  const absl::Time start = absl::Now();
  absl::StatusOr<v1::ImportSessionResponse> result = Import(*context, *reader);
  Note("ImportSession", *context, result.status(), start);
  return rpc::Reply(std::move(result), response);
}

grpc::Status MemoryServiceImpl::ForgetTenant(grpc::ServerContext* context,
                                             const v1::ForgetTenantRequest* request,
                                             v1::ForgetTenantResponse* response) {
  return rpc::Reply(Call("ForgetTenant", *context, *request, &SessionStore::ForgetTenant),
                    response);
}

}  // namespace mneme::memory
