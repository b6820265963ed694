// Adds context to an error on its way up, and carries the details that clients act on.
//
// Details ride on the Status as payloads (type URL -> bytes of a google.rpc message); common/rpc
// puts them into the gRPC trailer, the gateway's HTTP front reads them for its error body.
#pragma once

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace mneme::status {

// Returns `status` with "context: " put before its message; OK stays OK. Payloads are kept.
absl::Status Annotate(const absl::Status& status, absl::string_view context);

// The details below are kept as plain text payloads, one per kind.
inline constexpr absl::string_view kFieldPayload = "mneme/field";  // which request field is wrong
inline constexpr absl::string_view kRetryAfterPayload = "mneme/retry_after_ms";
inline constexpr absl::string_view kQuotaPayload = "mneme/quota";    // which quota is used up
inline constexpr absl::string_view kReasonPayload = "mneme/reason";  // a stable SNAKE_CASE word
// With reason STALE_VERSION: the session's current version, in decimal digits.
inline constexpr absl::string_view kVersionPayload = "mneme/version";

// INVALID_ARGUMENT that names the request field it is about ("sampling.temperature").
absl::Status InvalidField(absl::string_view field, absl::string_view message);

// Returns `status` with the delay after which a retry makes sense.
absl::Status WithRetryAfter(absl::Status status, absl::Duration delay);

// Returns `status` with one payload set; OK stays OK.
absl::Status WithPayload(absl::Status status, absl::string_view kind, absl::string_view value);

// Returns the payload of that kind, or "" where there is none.
std::string PayloadOf(const absl::Status& status, absl::string_view kind);

}  // namespace mneme::status
