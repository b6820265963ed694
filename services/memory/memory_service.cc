#include "services/memory/memory_service.h"

#include <utility>

#include "absl/time/clock.h"
#include "common/log/log.h"
#include "common/rpc/client.h"
#include "common/rpc/grpc_status.h"
#include "services/memory/request_check.h"

namespace mneme::memory {

template <typename Request, typename Response>
absl::StatusOr<Response> MemoryServiceImpl::Call(
    absl::string_view name, const grpc::ServerContext& context, const Request& request,
    absl::StatusOr<Response> (SessionStore::*method)(const Request&, absl::Time)) {
  const absl::Time start = absl::Now();
  Request normalized = request;
  const absl::Status checked = Normalize(&normalized);
  absl::StatusOr<Response> response =
      checked.ok() ? (store_.*method)(normalized, rpc::DeadlineOf(context)) : checked;
  metrics_.CountCall(name, response.status(), absl::Now() - start);
  // A store that does not answer is counted, and logged once by the readiness check.
  if (absl::IsInternal(response.status()) || absl::IsDataLoss(response.status())) {
    log::Error("call failed", {{"method", name},
                               {"request", rpc::ContextOf(context).request_id},
                               {"error", std::string(response.status().message())}});
  }
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

}  // namespace mneme::memory
