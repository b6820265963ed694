#include "services/memory/redis_staging.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "common/status/status_macros.h"
#include "services/memory/session_errors.h"

namespace mneme::memory {

using redis::Reply;

RedisStaging::RedisStaging(FamilyDirectory& directory, const StoreOptions& options,
                           v1::StageSnapshotRequest::Header header, Family family, int64_t kv_bytes,
                           absl::Time deadline)
    : directory_(directory),
      options_(options),
      header_(std::move(header)),
      family_(std::move(family)),
      deadline_(deadline),
      writer_(
          directory, options, header_.tenant(), family_, kv_bytes,
          [this](const std::vector<std::string>& names) { return Ask(names); }, deadline) {}

absl::StatusOr<std::vector<ChunkWriter::Presence>> RedisStaging::Ask(
    const std::vector<std::string>& names) {
  ASSIGN_OR_RETURN(
      const Reply reply,
      directory_.RunIn(family_, directory_.scripts().may_stage, header_.session_id(), 0,
                       {absl::StrCat(header_.lease_token()), absl::StrJoin(names, ""),
                        absl::StrCat(absl::ToInt64Milliseconds(options_.orphan_age))},
                       deadline_));
  if (Word(reply) == "lost") return LeaseLost(header_.session_id(), header_.lease_token());
  if (Word(reply) != "yes") return NoSuchSession(header_.session_id());
  std::vector<ChunkWriter::Presence> presence;
  if (reply.elements().size() == 2) {
    for (const char state : reply.elements()[1].text()) {
      presence.push_back(state == 's'   ? ChunkWriter::Presence::kStored
                         : state == 'l' ? ChunkWriter::Presence::kListed
                                        : ChunkWriter::Presence::kNone);
    }
  }
  if (presence.size() != names.size()) {
    return absl::InternalError("a script's answer is too short");
  }
  return presence;
}

absl::Status RedisStaging::Add(v1::ChunkPayload chunk) { return writer_.Add(std::move(chunk)); }

absl::StatusOr<v1::StageSnapshotResponse> RedisStaging::Finish(snapshot::v1::Manifest manifest) {
  RETURN_IF_ERROR(writer_.Flush());
  RETURN_IF_ERROR(writer_.sent().Complete(absl::ToUnixMillis(absl::Now()), &manifest));
  v1::StageSnapshotResponse response;
  response.set_snapshot_id(NewTurnId());
  ASSIGN_OR_RETURN(
      const Reply reply,
      directory_.RunIn(family_, directory_.scripts().stage, header_.session_id(), 0,
                       {absl::StrCat(header_.lease_token()), response.snapshot_id(),
                        family_.SealManifest(manifest.SerializeAsString(), response.snapshot_id()),
                        ChunkList(family_, manifest), absl::StrCat(manifest.num_tokens()),
                        absl::StrCat(PayloadBytes(manifest)),
                        absl::StrCat(absl::ToInt64Milliseconds(options_.orphan_age))},
                       deadline_));
  if (Word(reply) == "lost") return LeaseLost(header_.session_id(), header_.lease_token());
  if (Word(reply) == "unknown") {
    ASSIGN_OR_RETURN(const int64_t position, Number(reply, 1));
    if (writer_.sent().Has(manifest.chunks(static_cast<int>(position)))) {
      // It was stored already, by a snapshot that was given up since.
      return absl::UnavailableError(
          "a chunk that was just stored is gone, send the snapshot again");
    }
    return UnknownChunk(static_cast<size_t>(position));
  }
  if (Word(reply) != "staged") return NoSuchSession(header_.session_id());
  *response.mutable_manifest() = std::move(manifest);
  response.set_bytes_stored(writer_.new_bytes());
  return response;
}

}  // namespace mneme::memory
