// The errors that both stores answer, so that callers cannot tell the stores apart.
#pragma once

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace mneme::memory {

// Reasons that clients act on (status::kReasonPayload).
inline constexpr absl::string_view kSessionBusy = "SESSION_BUSY";
inline constexpr absl::string_view kStaleVersion = "STALE_VERSION";
inline constexpr absl::string_view kLeaseLost = "LEASE_LOST";

absl::Status NoSuchSession(absl::string_view session_id);
absl::Status SessionExists(absl::string_view session_id);
// Another holder has the session for `remaining` yet.
absl::Status SessionBusy(absl::string_view session_id, absl::string_view holder,
                         absl::Duration remaining);
// The caller's parent version is not the head.
absl::Status StaleVersion(absl::string_view session_id, uint64_t parent, uint64_t head);
// The lease ran out, or another holder took the session.
absl::Status LeaseLost(absl::string_view session_id, uint64_t lease_token);

}  // namespace mneme::memory
