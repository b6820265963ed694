// Refuses bad requests and fills in defaults, before any store sees them.
#pragma once

#include "absl/status/status.h"
#include "mneme/memory/v1/memory.pb.h"

namespace mneme::memory {

// INVALID_ARGUMENT names the field. CreateSession without an id gets one: of the request_id, so
// that a retry finds the session it made, or a random one.
absl::Status Normalize(v1::CreateSessionRequest* request);
absl::Status Normalize(v1::GetSessionRequest* request);
absl::Status Normalize(v1::ListSessionsRequest* request);
absl::Status Normalize(v1::DeleteSessionRequest* request);
absl::Status Normalize(v1::AcquireLeaseRequest* request);
absl::Status Normalize(v1::RenewLeaseRequest* request);
absl::Status Normalize(v1::ReleaseLeaseRequest* request);
absl::Status Normalize(v1::CommitTurnRequest* request);
absl::Status Normalize(v1::StageSnapshotRequest::Header* header);
absl::Status Normalize(v1::FetchSnapshotRequest* request);
// A fork without an id gets one, like a session that is created.
absl::Status Normalize(v1::ForkSessionRequest* request);
absl::Status Normalize(v1::RewindSessionRequest* request);
absl::Status Normalize(v1::CompactSessionRequest* request);
absl::Status Normalize(v1::DescribeSessionRequest* request);
absl::Status Normalize(v1::UpdateSessionRequest* request);
absl::Status Normalize(v1::ExportSessionRequest* request);
absl::Status Normalize(v1::ImportSessionRequest::Header* header);
absl::Status Normalize(v1::ForgetTenantRequest* request);

}  // namespace mneme::memory
