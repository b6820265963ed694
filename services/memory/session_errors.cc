#include "services/memory/session_errors.h"

#include "absl/strings/str_cat.h"
#include "common/status/annotate.h"

namespace mneme::memory {

absl::Status NoSuchSession(absl::string_view session_id) {
  return absl::NotFoundError(absl::StrCat("no such session: ", session_id));
}

absl::Status SessionExists(absl::string_view session_id) {
  return absl::AlreadyExistsError(absl::StrCat("the session id is taken: ", session_id));
}

absl::Status SessionBusy(absl::string_view session_id, absl::string_view holder,
                         absl::Duration remaining) {
  const absl::Status status = absl::FailedPreconditionError(
      absl::StrCat("another turn of the session is running, try again: ", session_id, ", held by ",
                   holder, " for ", absl::ToInt64Milliseconds(remaining), " ms at most"));
  return status::WithRetryAfter(status::WithPayload(status, status::kReasonPayload, kSessionBusy),
                                remaining);
}

absl::Status StaleVersion(absl::string_view session_id, uint64_t parent, uint64_t head) {
  const absl::Status status = status::WithPayload(
      absl::AbortedError(absl::StrCat("the session has moved on, read it again: ", session_id,
                                      ", parent version ", parent, ", current version ", head)),
      status::kReasonPayload, kStaleVersion);
  return status::WithPayload(status, status::kVersionPayload, absl::StrCat(head));
}

absl::Status LeaseLost(absl::string_view session_id, uint64_t lease_token) {
  return status::WithPayload(
      absl::AbortedError(absl::StrCat("the lease ran out or another holder took the session: ",
                                      session_id, ", lease ", lease_token)),
      status::kReasonPayload, kLeaseLost);
}

absl::Status NoSuchVersion(absl::string_view session_id, uint64_t version) {
  return absl::OutOfRangeError(
      absl::StrCat("the session has no such version: ", session_id, ", version ", version));
}

absl::Status NoSnapshot(absl::string_view session_id) {
  return absl::NotFoundError(
      absl::StrCat("no version of the session up to that one has a snapshot: ", session_id));
}

absl::Status NothingToCompact(absl::string_view session_id) {
  return absl::FailedPreconditionError(
      absl::StrCat("the session has no stored memory that could be made smaller: ", session_id));
}

absl::Status ReplacementIsGone(absl::string_view session_id, absl::string_view why) {
  return absl::UnavailableError(
      absl::StrCat("the session's memory changed meanwhile, try again: ", session_id, ": ", why));
}

absl::Status UnknownChunk(size_t position) {
  return status::InvalidField(
      "manifest.chunks",
      absl::StrCat("lists a chunk that was neither sent nor stored before, at position ",
                   position));
}

absl::Status LostChunk(absl::string_view session_id, size_t position, absl::string_view why) {
  return absl::DataLossError(
      absl::StrCat("a chunk of the snapshot is lost, rebuild it from the token log: ", session_id,
                   ", chunk ", position, ": ", why));
}

absl::Status ChunkElsewhere(absl::string_view session_id, size_t position,
                            absl::string_view place) {
  return status::WithPayload(
      absl::FailedPreconditionError(absl::StrCat(
          "a chunk of the snapshot is in a disk tier that this service has not got, ask the "
          "replica that has, or rebuild it from the token log: ",
          session_id, ", chunk ", position, ", folder ", place.substr(0, 16))),
      status::kReasonPayload, kChunkElsewhere);
}

absl::Status QuotaUsedUp(absl::string_view quota, int64_t limit) {
  return status::WithPayload(
      absl::ResourceExhaustedError(absl::StrCat(
          "the tenant's quota is used up, delete sessions or raise it: ", quota, " ", limit)),
      status::kQuotaPayload, quota);
}

}  // namespace mneme::memory
