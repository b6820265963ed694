#include "services/memory/redis_chunks.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "common/status/status_macros.h"
#include "services/memory/session_errors.h"

namespace mneme::memory {
namespace {

using redis::Reply;

// Of payload in one pipeline: large enough that round trips do not show, small enough that a few of
// them fit anywhere.
constexpr size_t kBatchBytes = 4 << 20;
constexpr size_t kBatchChunks = 64;
// Pipelines at a time, of one snapshot.
constexpr size_t kMaxRunning = 2;
// Staged chunks that have lived so much of their time get it anew while the snapshot is still
// coming.
constexpr int kRefreshShare = 4;

}  // namespace

ChunkWriter::ChunkWriter(FamilyDirectory& directory, const StoreOptions& options,
                         std::string tenant, Family family, int64_t kv_bytes, Ask ask,
                         absl::Time deadline)
    : directory_(directory),
      options_(options),
      tenant_(std::move(tenant)),
      family_(std::move(family)),
      kv_bytes_(kv_bytes),
      ask_(std::move(ask)),
      deadline_(deadline),
      refreshed_(absl::Now()) {}

// The futures' destructors wait.
ChunkWriter::~ChunkWriter() = default;

absl::Status ChunkWriter::Add(v1::ChunkPayload chunk) {
  batch_bytes_ += chunk.payload().size();
  batch_.push_back(std::move(chunk));
  if (batch_bytes_ < kBatchBytes && batch_.size() < kBatchChunks) return absl::OkStatus();
  return Send();
}

absl::Status ChunkWriter::Send() {
  if (running_.size() == kMaxRunning) RETURN_IF_ERROR(TakeOldest());
  running_.push_back(std::async(std::launch::async, [this, batch = std::move(batch_)]() mutable {
    return Store(std::move(batch));
  }));
  batch_.clear();
  batch_bytes_ = 0;
  return absl::OkStatus();
}

absl::Status ChunkWriter::Flush() {
  if (!batch_.empty()) {
    // A turn's own chunks are one batch as a rule: no thread is needed for it.
    absl::StatusOr<Stored> last = Store(std::move(batch_));
    batch_.clear();
    batch_bytes_ = 0;
    RETURN_IF_ERROR(Take(std::move(last)));
  }
  while (!running_.empty()) RETURN_IF_ERROR(TakeOldest());
  return absl::OkStatus();
}

absl::Status ChunkWriter::TakeOldest() {
  absl::StatusOr<Stored> oldest = running_.front().get();
  running_.pop_front();
  return Take(std::move(oldest));
}

absl::Status ChunkWriter::Take(absl::StatusOr<Stored> stored) {
  if (!stored.ok()) {
    if (absl::IsResourceExhausted(stored.status())) Discard();
    return stored.status();
  }
  for (const snapshot::v1::Chunk& chunk : stored->chunks) sent_.Add(chunk);
  for (std::string& name : stored->new_names) new_names_.push_back(std::move(name));
  new_bytes_ += stored->new_bytes;
  kv_bytes_ += stored->uncounted_bytes;
  const int64_t limit = options_.QuotaOf(tenant_).max_kv_bytes();
  if (limit > 0 && kv_bytes_ > limit) {
    Discard();
    return QuotaUsedUp("max_kv_bytes", limit);
  }
  return Refresh();
}

// A long answer's first chunks must not expire before its last have come.
absl::Status ChunkWriter::Refresh() {
  if (absl::Now() - refreshed_ < options_.orphan_age / kRefreshShare) return absl::OkStatus();
  refreshed_ = absl::Now();
  std::vector<redis::Command> commands;
  commands.reserve(new_names_.size());
  for (const std::string& name : new_names_) {
    commands.push_back({"PEXPIRE", family_.ChunkKey(name),
                        absl::StrCat(absl::ToInt64Milliseconds(options_.orphan_age)), "GT"});
  }
  return directory_.RunPipeline(commands, deadline_).status();
}

void ChunkWriter::Discard() {
  while (!running_.empty()) {
    const absl::StatusOr<Stored> stored = running_.front().get();
    running_.pop_front();
    if (!stored.ok()) continue;
    new_names_.insert(new_names_.end(), stored->new_names.begin(), stored->new_names.end());
  }
  Discard(new_names_);
  new_names_.clear();
}

void ChunkWriter::Discard(const std::vector<std::string>& names) {
  if (names.empty()) return;
  directory_
      .RunOnFamily(family_, directory_.scripts().discard, {absl::StrJoin(names, "")}, deadline_)
      .status()
      .IgnoreError();
}

absl::StatusOr<ChunkWriter::Stored> ChunkWriter::Store(Batch batch) {
  const std::string life_ms = absl::StrCat(absl::ToInt64Milliseconds(options_.orphan_age));
  Stored stored;
  std::vector<std::string> names;
  for (const v1::ChunkPayload& chunk : batch) {
    ASSIGN_OR_RETURN(std::string digest, DigestOf(chunk));
    names.push_back(family_.ChunkName(digest));
    stored.chunks.push_back(chunk.chunk());
    stored.chunks.back().set_digest(std::move(digest));
  }
  ASSIGN_OR_RETURN(const std::vector<Presence> presence, ask_(names));
  std::vector<redis::Command> write;
  struct Written {
    size_t bytes;
    bool is_counted;
  };
  std::vector<Written> written;
  std::vector<std::string> written_names;
  for (size_t i = 0; i < batch.size(); ++i) {
    if (presence[i] == Presence::kStored) continue;
    std::string* payload = batch[i].mutable_payload();
    const size_t num_bytes = payload->size();
    // A chunk that somebody else stores at this moment stays as it is, listed by a turn or not.
    redis::Command& set = write.emplace_back();
    set.reserve(6);
    set.push_back("SET");
    set.push_back(family_.ChunkKey(names[i]));
    set.push_back(family_.SealChunk(std::move(*payload), names[i]));
    set.push_back("PX");
    set.push_back(life_ms);
    set.push_back("NX");
    written.push_back({.bytes = num_bytes, .is_counted = presence[i] == Presence::kListed});
    payload->clear();
    written_names.push_back(std::move(names[i]));
  }
  if (write.empty()) return stored;
  const absl::StatusOr<std::vector<Reply>> replies = directory_.RunPipeline(write, deadline_);
  if (!replies.ok()) {
    if (absl::IsResourceExhausted(replies.status())) Discard(written_names);
    return replies.status();
  }
  for (size_t i = 0; i < written.size(); ++i) {
    if ((*replies)[i].is_nil()) continue;
    stored.new_names.push_back(std::move(written_names[i]));
    stored.new_bytes += static_cast<int64_t>(written[i].bytes);
    if (!written[i].is_counted) stored.uncounted_bytes += static_cast<int64_t>(written[i].bytes);
  }
  return stored;
}

std::string ChunkList(const Family& family, const snapshot::v1::Manifest& manifest) {
  std::string list;
  for (const snapshot::v1::Chunk& chunk : manifest.chunks()) {
    absl::StrAppend(&list, family.ChunkName(chunk.digest()));
    absl::StrAppendFormat(&list, "%08x", chunk.num_bytes());
  }
  return list;
}

absl::Status FetchChunks(ChunkSource& source, const Family& family, const std::string& session_id,
                         const snapshot::v1::Manifest& manifest, const std::vector<int>& positions,
                         const FetchSink& sink, absl::Time deadline) {
  struct Range {
    size_t begin;
    size_t end;
  };
  using Chunks = absl::StatusOr<std::vector<ChunkSource::Found>>;
  const auto fetch = [&](Range range) -> Chunks {
    const auto begin = positions.begin();
    return source.Read(
        family, session_id, manifest,
        {begin + static_cast<int64_t>(range.begin), begin + static_cast<int64_t>(range.end)},
        deadline);
  };

  std::deque<std::pair<Range, std::future<Chunks>>> ahead;
  size_t next = 0;
  const auto read_ahead = [&] {
    Range range{next, next};
    for (size_t bytes = 0; range.end < positions.size() && bytes < kBatchBytes &&
                           range.end - range.begin < kBatchChunks;
         ++range.end) {
      bytes += manifest.chunks(positions[range.end]).num_bytes();
    }
    next = range.end;
    // What is all there is needs no thread.
    const bool is_alone = range.begin == 0 && range.end == positions.size();
    ahead.emplace_back(range, std::async(is_alone ? std::launch::deferred : std::launch::async,
                                         [&fetch, range] { return fetch(range); }));
  };
  while (true) {
    while (next < positions.size() && ahead.size() < kMaxRunning) read_ahead();
    if (ahead.empty()) return absl::OkStatus();
    const Range range = ahead.front().first;
    Chunks chunks = ahead.front().second.get();
    ahead.pop_front();
    if (next < positions.size()) read_ahead();
    RETURN_IF_ERROR(chunks.status());
    for (size_t i = 0; i < chunks->size(); ++i) {
      v1::FetchSnapshotResponse part;
      part.mutable_chunk()->set_index(positions[range.begin + i]);
      part.mutable_chunk()->set_payload(std::move((*chunks)[i].payload));
      part.mutable_chunk()->set_tier((*chunks)[i].is_from_disk ? "disk" : "redis");
      RETURN_IF_ERROR(sink(std::move(part)));
    }
  }
}

}  // namespace mneme::memory
