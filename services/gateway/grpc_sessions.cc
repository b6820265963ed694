#include "services/gateway/grpc_sessions.h"

#include <string>
#include <utility>

#include "common/status/annotate.h"
#include "common/status/status_macros.h"

namespace mneme::gateway {

grpc::Status SessionServiceImpl::CreateSession(grpc::ServerContext* context,
                                               const v1::CreateSessionRequest* request,
                                               v1::CreateSessionResponse* response) {
  return Run(edge_, context, "CreateSession", [&](const Caller& caller) {
    return Take(sessions_.Create(*request, caller), response);
  });
}

grpc::Status SessionServiceImpl::GetSession(grpc::ServerContext* context,
                                            const v1::GetSessionRequest* request,
                                            v1::GetSessionResponse* response) {
  return Run(edge_, context, "GetSession",
             [&](const Caller& caller) { return Take(sessions_.Get(*request, caller), response); });
}

grpc::Status SessionServiceImpl::ListSessions(grpc::ServerContext* context,
                                              const v1::ListSessionsRequest* request,
                                              v1::ListSessionsResponse* response) {
  return Run(edge_, context, "ListSessions", [&](const Caller& caller) {
    return Take(sessions_.List(*request, caller), response);
  });
}

grpc::Status SessionServiceImpl::DeleteSession(grpc::ServerContext* context,
                                               const v1::DeleteSessionRequest* request,
                                               v1::DeleteSessionResponse* response) {
  return Run(edge_, context, "DeleteSession", [&](const Caller& caller) {
    return Take(sessions_.Delete(*request, caller), response);
  });
}

grpc::Status SessionServiceImpl::ForkSession(grpc::ServerContext* context,
                                             const v1::ForkSessionRequest* request,
                                             v1::ForkSessionResponse* response) {
  return Run(edge_, context, "ForkSession", [&](const Caller& caller) {
    return Take(sessions_.Fork(*request, caller), response);
  });
}

grpc::Status SessionServiceImpl::RewindSession(grpc::ServerContext* context,
                                               const v1::RewindSessionRequest* request,
                                               v1::RewindSessionResponse* response) {
  return Run(edge_, context, "RewindSession", [&](const Caller& caller) {
    return Take(sessions_.Rewind(*request, caller), response);
  });
}

grpc::Status SessionServiceImpl::CompactSession(grpc::ServerContext* context,
                                                const v1::CompactSessionRequest* request,
                                                v1::CompactSessionResponse* response) {
  return Run(edge_, context, "CompactSession", [&](const Caller& caller) {
    return Take(sessions_.Compact(*request, caller), response);
  });
}

grpc::Status SessionServiceImpl::DescribeSession(grpc::ServerContext* context,
                                                 const v1::DescribeSessionRequest* request,
                                                 v1::DescribeSessionResponse* response) {
  return Run(edge_, context, "DescribeSession", [&](const Caller& caller) {
    return Take(sessions_.Describe(*request, caller), response);
  });
}

grpc::Status SessionServiceImpl::UpdateSession(grpc::ServerContext* context,
                                               const v1::UpdateSessionRequest* request,
                                               v1::UpdateSessionResponse* response) {
  return Run(edge_, context, "UpdateSession", [&](const Caller& caller) {
    return Take(sessions_.Update(*request, caller), response);
  });
}

grpc::Status SessionServiceImpl::ExportSession(
    grpc::ServerContext* context, const v1::ExportSessionRequest* request,
    grpc::ServerWriter<v1::ExportSessionResponse>* writer) {
  return Run(edge_, context, "ExportSession", [&](const Caller& caller) -> absl::Status {
    ASSIGN_OR_RETURN(const std::unique_ptr<SessionExport> transfer,
                     sessions_.Export(*request, caller));
    v1::ExportSessionResponse response;
    while (true) {
      ASSIGN_OR_RETURN(const bool more, transfer->Next(response.mutable_piece()));
      if (!more) return absl::OkStatus();
      if (!writer->Write(response)) return absl::CancelledError("the client went away");
    }
  });
}

grpc::Status SessionServiceImpl::ImportSession(grpc::ServerContext* context,
                                               grpc::ServerReader<v1::ImportSessionRequest>* reader,
                                               v1::ImportSessionResponse* response) {
  return Run(edge_, context, "ImportSession", [&](const Caller& caller) -> absl::Status {
    v1::ImportSessionRequest part;
    if (!reader->Read(&part) || !part.has_header()) {
      return status::InvalidField("header", "must come first");
    }
    ASSIGN_OR_RETURN(const std::unique_ptr<SessionImport> transfer,
                     sessions_.Import(part.header(), caller));
    int64_t num_bytes = 0;
    while (reader->Read(&part)) {
      if (part.has_header()) return status::InvalidField("header", "must come once");
      num_bytes += static_cast<int64_t>(part.piece().size());
      if (num_bytes > max_import_bytes_) {
        return status::InvalidField("piece",
                                    "must not make the file larger than this server takes");
      }
      if (!transfer->Write(part.piece())) break;
    }
    // A client that went away has not said that the file is complete.
    if (context->IsCancelled()) return absl::CancelledError("the client went away");
    return Take(SessionDirectory::Finish(*transfer), response);
  });
}

grpc::Status AdminServiceImpl::ForgetTenant(grpc::ServerContext* context,
                                            const v1::ForgetTenantRequest* request,
                                            v1::ForgetTenantResponse* response) {
  return Run(edge_, context, "ForgetTenant", [&](const Caller& caller) {
    return Take(sessions_.ForgetTenant(*request, caller), response);
  });
}

}  // namespace mneme::gateway
