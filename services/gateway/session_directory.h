// Sessions of one tenant, as both fronts show them.
#pragma once

#include "absl/status/statusor.h"
#include "mneme/gateway/v1/session.pb.h"
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

 private:
  ChatCore& core_;
};

}  // namespace mneme::gateway
