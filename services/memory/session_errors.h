// The errors that both stores answer, so that callers cannot tell the stores apart.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace mneme::memory {

// Reasons that clients act on (status::kReasonPayload).
inline constexpr absl::string_view kSessionBusy = "SESSION_BUSY";
inline constexpr absl::string_view kStaleVersion = "STALE_VERSION";
inline constexpr absl::string_view kLeaseLost = "LEASE_LOST";
inline constexpr absl::string_view kChunkElsewhere = "CHUNK_ELSEWHERE";
inline constexpr absl::string_view kWrongMasterKey = "WRONG_MASTER_KEY";

// Why a turn was committed without its snapshot.
inline constexpr absl::string_view kStagedIsGone =
    "the staged snapshot is gone: it was not committed in time, or the store lost it";
inline constexpr absl::string_view kStagedUnderOtherLease =
    "the snapshot was staged under another lease";
inline constexpr absl::string_view kStagedChunksAreGone =
    "chunks of the staged snapshot are gone: they were not committed in time, or the store lost "
    "them";

absl::Status NoSuchSession(absl::string_view session_id);
absl::Status SessionExists(absl::string_view session_id);
// Another holder has the session for `remaining` yet.
absl::Status SessionBusy(absl::string_view session_id, absl::string_view holder,
                         absl::Duration remaining);
// The caller's parent version is not the head.
absl::Status StaleVersion(absl::string_view session_id, uint64_t parent, uint64_t head);
// The lease ran out, or another holder took the session.
absl::Status LeaseLost(absl::string_view session_id, uint64_t lease_token);
// The session has not got that far.
absl::Status NoSuchVersion(absl::string_view session_id, uint64_t version);
// No version up to the one asked for has a snapshot.
absl::Status NoSnapshot(absl::string_view session_id);
// No version of the session has a snapshot that could be made smaller.
absl::Status NothingToCompact(absl::string_view session_id);
// What was staged to replace a snapshot, or the snapshot itself, is gone.
absl::Status ReplacementIsGone(absl::string_view session_id, absl::string_view why);
// A manifest lists a chunk that the store has not got.
absl::Status UnknownChunk(size_t position);
// A chunk that a committed snapshot lists is not there, or not what it was.
absl::Status LostChunk(absl::string_view session_id, size_t position, absl::string_view why);
// A chunk is in the disk tier of another replica of the service.
absl::Status ChunkElsewhere(absl::string_view session_id, size_t position, absl::string_view place);
// The tenant's quota of that name is used up.
absl::Status QuotaUsedUp(absl::string_view quota, int64_t limit);

}  // namespace mneme::memory
