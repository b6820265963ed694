// Sessions of one tenant, as both fronts show them.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "mneme/gateway/v1/admin.pb.h"
#include "mneme/gateway/v1/session.pb.h"
#include "mneme/memory/v1/memory.pb.h"
#include "services/gateway/caller.h"
#include "services/gateway/chat_core.h"

namespace mneme::gateway {

// Thread-safe. Every method: FAILED_PRECONDITION where the server keeps no sessions.
class SessionDirectory {
 public:
  // `core` must outlive the directory.
  explicit SessionDirectory(ChatCore& core) : core_(core) {}

  absl::StatusOr<v1::CreateSessionResponse> Create(const v1::CreateSessionRequest& request,
                                                   const Caller& caller) const;
  absl::StatusOr<v1::GetSessionResponse> Get(const v1::GetSessionRequest& request,
                                             const Caller& caller) const;
  absl::StatusOr<v1::ListSessionsResponse> List(const v1::ListSessionsRequest& request,
                                                const Caller& caller) const;
  absl::StatusOr<v1::DeleteSessionResponse> Delete(const v1::DeleteSessionRequest& request,
                                                   const Caller& caller) const;
  absl::StatusOr<v1::ForkSessionResponse> Fork(const v1::ForkSessionRequest& request,
                                               const Caller& caller) const;
  absl::StatusOr<v1::RewindSessionResponse> Rewind(const v1::RewindSessionRequest& request,
                                                   const Caller& caller) const;
  absl::StatusOr<v1::CompactSessionResponse> Compact(const v1::CompactSessionRequest& request,
                                                     const Caller& caller) const;
  absl::StatusOr<v1::DescribeSessionResponse> Describe(const v1::DescribeSessionRequest& request,
                                                       const Caller& caller) const;
  absl::StatusOr<v1::UpdateSessionResponse> Update(const v1::UpdateSessionRequest& request,
                                                   const Caller& caller) const;
  // A turn of a session.
  struct CommittedTurn {
    v1::Session session;
    memory::v1::Turn turn;
  };
  // NOT_FOUND: no such session, or no such version.
  absl::StatusOr<CommittedTurn> FindTurn(const std::string& session_id, uint64_t version,
                                         const Caller& caller) const;
  // PERMISSION_DENIED: the caller is no administrator.
  absl::StatusOr<v1::ForgetTenantResponse> ForgetTenant(const v1::ForgetTenantRequest& request,
                                                        const Caller& caller) const;

  // Begin to write or read a session's file; what is wrong with the session or the file is said by
  // the transfer.
  absl::StatusOr<std::unique_ptr<SessionExport>> Export(const v1::ExportSessionRequest& request,
                                                        const Caller& caller) const;
  absl::StatusOr<std::unique_ptr<SessionImport>> Import(
      const v1::ImportSessionRequest::Header& header, const Caller& caller) const;
  // Returns the session that a transfer has made.
  static absl::StatusOr<v1::ImportSessionResponse> Finish(SessionImport& transfer);

 private:
  void ForgetMemory(const std::string& tenant, const std::string& session_id,
                    const Caller& caller) const;

  ChatCore& core_;
};

}  // namespace mneme::gateway
