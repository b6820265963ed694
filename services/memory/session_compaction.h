// Shrinking a session's stored memory without a model, for any store.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "services/memory/session_store.h"

namespace mneme::memory {

// What CompactSession of the contract does. Holds the session's lease meanwhile; what a process
// that dies leaves is a lease that runs out and a staged snapshot that expires. Chunks go through
// one at a time as they are read: memory stays bounded.
absl::StatusOr<v1::CompactSessionResponse> CompactSession(SessionStore& store,
                                                          const v1::CompactSessionRequest& request,
                                                          absl::Time deadline);

// Rounds what an idle session has stored to int8 and drops snapshots of its earlier versions, for a
// sweep that would have to drop it otherwise. No use of the session; what is rounded already is
// left alone.
absl::Status RoundIdleSession(SessionStore& store, const std::string& tenant,
                              const std::string& session_id, absl::Time deadline);

}  // namespace mneme::memory
