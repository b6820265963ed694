#include "services/memory/chunk_source.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status/status_macros.h"
#include "services/memory/session_errors.h"

namespace mneme::memory {
namespace {

using redis::Reply;

// A chunk may move from tier to tier while it is looked for.
constexpr int kAttempts = 4;

redis::Command RecordOf(const Family& family, const std::string& name) {
  return {"HGET", family.Keys()[0], absl::StrCat("c:", name)};
}

// Returns the place in a chunk's record (redis_scripts.h); "": it is not on disk.
std::string PlaceIn(const std::string& record) {
  const size_t space = record.find(' ');
  return space == std::string::npos ? "" : record.substr(space + 1);
}

}  // namespace

absl::StatusOr<std::vector<ChunkSource::Found>> ChunkSource::Read(
    const Family& family, const std::string& session_id, const snapshot::v1::Manifest& manifest,
    const std::vector<int>& positions, absl::Time deadline) {
  std::vector<Wanted> wanted;
  std::vector<redis::Command> commands;
  for (const int position : positions) {
    const snapshot::v1::Chunk& chunk = manifest.chunks(position);
    wanted.push_back({.position = position,
                      .name = family.ChunkName(chunk.digest()),
                      .num_bytes = chunk.num_bytes()});
    commands.push_back({"GET", family.ChunkKey(wanted.back().name)});
  }
  ASSIGN_OR_RETURN(std::vector<Reply> replies, directory_.RunPipeline(commands, deadline));
  // Where those are that Redis has not got.
  std::vector<redis::Command> ask;
  for (size_t i = 0; i < wanted.size(); ++i) {
    if (replies[i].is_nil()) ask.push_back(RecordOf(family, wanted[i].name));
  }
  std::vector<Reply> records;
  if (!ask.empty()) {
    ASSIGN_OR_RETURN(records, directory_.RunPipeline(ask, deadline));
  }
  size_t next_record = 0;
  std::vector<Found> all;
  for (size_t i = 0; i < wanted.size(); ++i) {
    Found& found = all.emplace_back();
    if (replies[i].is_nil()) {
      ASSIGN_OR_RETURN(found, ReadBelow(family, session_id, wanted[i],
                                        PlaceIn(records[next_record++].text()), deadline));
    } else {
      ASSIGN_OR_RETURN(found,
                       OpenSealed(family, session_id, wanted[i], replies[i].TakeText(), deadline));
    }
    if (found.payload.size() != wanted[i].num_bytes) {
      return LostChunk(session_id, wanted[i].position,
                       "it has another size than its manifest says");
    }
  }
  return all;
}

absl::StatusOr<ChunkSource::Found> ChunkSource::OpenSealed(const Family& family,
                                                           const std::string& session_id,
                                                           const Wanted& wanted, std::string sealed,
                                                           absl::Time deadline) {
  absl::StatusOr<std::string> payload = family.OpenChunk(std::move(sealed), wanted.name);
  if (payload.ok()) return Found{.payload = *std::move(payload)};
  directory_.RunPipeline({{"UNLINK", family.ChunkKey(wanted.name)}}, deadline)
      .status()
      .IgnoreError();
  return LostChunk(session_id, wanted.position, payload.status().message());
}

absl::StatusOr<ChunkSource::Found> ChunkSource::ReadBelow(const Family& family,
                                                          const std::string& session_id,
                                                          const Wanted& wanted, std::string place,
                                                          absl::Time deadline) {
  std::string missing_from;
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    if (attempt > 0 || place.empty()) {
      ASSIGN_OR_RETURN(
          std::vector<Reply> replies,
          directory_.RunPipeline(
              {RecordOf(family, wanted.name), {"GET", family.ChunkKey(wanted.name)}}, deadline));
      if (!replies[1].is_nil()) {
        return OpenSealed(family, session_id, wanted, replies[1].TakeText(), deadline);
      }
      place = PlaceIn(replies[0].text());
      if (place.empty()) return LostChunk(session_id, wanted.position, "Redis has not got it");
    }
    if (disk_ != nullptr && disk_->folder_id().empty()) RETURN_IF_ERROR(disk_->Open());
    if (disk_ == nullptr || !disk_->Has(place)) {
      metrics_.CountDiskError("elsewhere");
      return ChunkElsewhere(session_id, wanted.position, place);
    }
    absl::StatusOr<std::string> payload = disk_->Read(family, wanted.name, place, deadline);
    if (payload.ok()) {
      promoter_->Offer(family, wanted.name, place, *payload);
      return Found{.payload = *std::move(payload), .is_from_disk = true};
    }
    if (absl::IsDataLoss(payload.status())) {
      Lose(family, wanted.name, place, deadline);
      return LostChunk(session_id, wanted.position, payload.status().message());
    }
    if (!absl::IsNotFound(payload.status())) return payload.status();
    if (missing_from == place) {
      metrics_.CountDiskError("missing");
      Lose(family, wanted.name, place, deadline);
      return LostChunk(session_id, wanted.position, "its file in the disk tier is gone");
    }
    // It may have gone back to Redis since the record was read.
    missing_from = place;
  }
  return absl::UnavailableError(
      absl::StrCat("a chunk goes from tier to tier faster than it is read, try again: session ",
                   session_id, ", chunk ", wanted.position));
}

void ChunkSource::Lose(const Family& family, const std::string& name, const std::string& place,
                       absl::Time deadline) {
  directory_
      .Eval(directory_.scripts().lose, family.Keys(), {family.key_id(), name, place}, deadline)
      .status()
      .IgnoreError();
  disk_->Remove(family.tenant(), family.name(), name, place);
}

}  // namespace mneme::memory
