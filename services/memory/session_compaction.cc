#include "services/memory/session_compaction.h"

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/status/status_macros.h"
#include "common/stored/chunk_layout.h"
#include "common/stored/recode.h"
#include "common/stored/runs.h"
#include "common/stored/window.h"
#include "services/memory/session_errors.h"
#include "services/memory/snapshot_check.h"

namespace mneme::memory {
namespace {

namespace sv1 = ::mneme::snapshot::v1;

constexpr char kHolder[] = "compaction";
constexpr absl::Duration kLease = absl::Seconds(30);
constexpr absl::Duration kRenewAfter = absl::Seconds(10);
// For giving the lease back where the call's own time is over.
constexpr absl::Duration kReleaseTimeout = absl::Seconds(2);

// What is stored was not written by this version, or not by an executor at all.
absl::Status Unsound(const absl::Status& status) {
  if (!absl::IsInvalidArgument(status)) return status;
  return absl::FailedPreconditionError(
      absl::StrCat("the stored memory is not one that this version can make smaller: ",
                   std::string(status.message())));
}

absl::Status NotFrom(absl::string_view stored, absl::string_view why) {
  return absl::FailedPreconditionError(absl::StrCat(
      "a memory stored under \"", stored, "\" cannot be brought to this policy without the model, ",
      why,
      "; change the session's memory_policy instead: the next turn then rebuilds the memory "
      "from the text"));
}

// Returns the memory under a policy that was asked for.
absl::StatusOr<sv1::Manifest> Under(const inference::v1::MemoryPolicy& policy,
                                    const sv1::Manifest& manifest) {
  const std::string& stored = manifest.lineage().policy();
  if (!policy.has_full() && !policy.has_window()) {
    return NotFrom(stored, "which chooses entries by more than their place");
  }
  stored::Window wanted;
  if (policy.has_window()) {
    wanted = {.sinks = policy.window().sinks(), .recent = policy.window().recent()};
  }
  const std::optional<stored::Window> had = stored::ParseWindow(stored);
  if (!had.has_value()) return NotFrom(stored, "which only full and window can");
  if (!stored::IsWithin(wanted, *had)) return NotFrom(stored, "which has dropped what it needs");
  absl::StatusOr<sv1::Manifest> shrunk = stored::Shrink(manifest, wanted);
  if (absl::IsFailedPrecondition(shrunk.status())) {
    return NotFrom(stored, shrunk.status().message());
  }
  return shrunk;
}

bool IsSame(const sv1::Manifest& a, const sv1::Manifest& b) {
  return a.SerializeAsString() == b.SerializeAsString();
}

bool IsSamePlace(const sv1::Chunk& a, const sv1::Chunk& b) {
  return a.first_layer() == b.first_layer() && a.first_serial() == b.first_serial();
}

// The session's lease, given back at the end if nobody else did.
class HeldLease {
 public:
  HeldLease(SessionStore& store, const v1::CompactSessionRequest& request, uint64_t token)
      : store_(store), renewed_(absl::Now()) {
    release_.set_tenant(request.tenant());
    release_.set_session_id(request.session_id());
    release_.set_lease_token(token);
  }
  HeldLease(const HeldLease&) = delete;
  HeldLease& operator=(const HeldLease&) = delete;
  ~HeldLease() {
    if (token() == 0) return;
    store_.ReleaseLease(release_, absl::Now() + kReleaseTimeout).status().IgnoreError();
  }

  uint64_t token() const { return release_.lease_token(); }
  void SetGone() { release_.clear_lease_token(); }

  // Prolongs it where that is due.
  absl::Status Keep(absl::Time deadline) {
    if (absl::Now() - renewed_ < kRenewAfter) return absl::OkStatus();
    renewed_ = absl::Now();
    v1::RenewLeaseRequest renew;
    renew.set_tenant(release_.tenant());
    renew.set_session_id(release_.session_id());
    renew.set_lease_token(token());
    renew.set_ttl_ms(absl::ToInt64Milliseconds(kLease));
    return store_.RenewLease(renew, deadline).status();
  }

 private:
  SessionStore& store_;
  v1::ReleaseLeaseRequest release_;
  absl::Time renewed_;
};

// One compaction, under the session's lease.
class Compaction {
 public:
  Compaction(SessionStore& store, const v1::CompactSessionRequest& request, uint64_t version,
             HeldLease& lease, absl::Time deadline)
      : store_(store), request_(request), version_(version), lease_(lease), deadline_(deadline) {}

  absl::StatusOr<v1::CompactSessionResponse> Run() {
    RETURN_IF_ERROR(ReadManifest());
    v1::CompactSessionResponse response;
    response.set_kv_bytes_before(PayloadBytes(manifest_));
    ASSIGN_OR_RETURN(const int64_t before, Mean());
    response.set_entries_before(before);
    if (request_.has_memory_policy()) {
      absl::StatusOr<sv1::Manifest> shrunk = Under(request_.memory_policy(), manifest_);
      if (!shrunk.ok()) return Unsound(shrunk.status());
      manifest_ = *std::move(shrunk);
    }
    SnapshotReplacement replacement{.tenant = request_.tenant(),
                                    .session_id = request_.session_id(),
                                    .lease_token = lease_.token(),
                                    .version = version_,
                                    .snapshot_version = snapshot_version_,
                                    .drop_older_snapshots = request_.drop_older_snapshots()};
    if (request_.has_memory_policy()) replacement.memory_policy = request_.memory_policy();
    const absl::StatusOr<std::vector<int>> positions = ToRecode();
    if (!positions.ok()) return Unsound(positions.status());
    if (!positions->empty() || !IsSame(manifest_, stored_)) {
      ASSIGN_OR_RETURN(replacement.snapshot_id, StageAnew(*positions));
    }
    response.set_kv_bytes_after(PayloadBytes(manifest_));
    ASSIGN_OR_RETURN(const int64_t after, Mean());
    response.set_entries_after(after);
    ASSIGN_OR_RETURN(ReplacedSnapshot replaced, store_.ReplaceSnapshot(replacement, deadline_));
    lease_.SetGone();
    *response.mutable_session() = std::move(replaced.session);
    response.set_snapshots_dropped(replaced.num_dropped);
    return response;
  }

 private:
  v1::FetchSnapshotRequest FetchOf() const {
    v1::FetchSnapshotRequest fetch;
    fetch.set_tenant(request_.tenant());
    fetch.set_session_id(request_.session_id());
    fetch.set_version(version_);
    return fetch;
  }

  absl::Status ReadManifest() {
    v1::FetchSnapshotRequest fetch = FetchOf();
    fetch.set_manifest_only(true);
    const auto take = [this](v1::FetchSnapshotResponse part) {
      snapshot_version_ = part.found().version();
      stored_ = std::move(*part.mutable_found()->mutable_manifest());
      manifest_ = stored_;
      return absl::OkStatus();
    };
    const absl::Status found = store_.FetchSnapshot(fetch, take, deadline_);
    return absl::IsNotFound(found) ? NothingToCompact(request_.session_id()) : found;
  }

  absl::StatusOr<int64_t> Mean() const {
    absl::StatusOr<int64_t> mean = stored::MeanHeld(manifest_);
    if (!mean.ok()) return Unsound(mean.status());
    return mean;
  }

  // Returns the chunks that have to be written anew. Those of which nothing is left go.
  absl::StatusOr<std::vector<int>> ToRecode() {
    std::vector<int> positions;
    if (request_.encoding() == sv1::ENCODING_UNSPECIFIED) return positions;
    const sv1::Shape& shape = manifest_.shape();
    ASSIGN_OR_RETURN(held_, stored::HeldOf(manifest_));
    google::protobuf::RepeatedPtrField<sv1::Chunk> chunks;
    chunks.Swap(manifest_.mutable_chunks());
    for (sv1::Chunk& chunk : chunks) {
      RETURN_IF_ERROR(stored::CheckChunk(chunk, shape));
      ASSIGN_OR_RETURN(const stored::HeadRuns kept, stored::HeldRunsOf(chunk, shape, held_));
      const sv1::Encoding encoding = stored::Narrower(chunk.encoding(), request_.encoding());
      const int64_t bytes = stored::PayloadBytes(kept, encoding, shape.head_size());
      if (bytes == 0) continue;
      // Entries that have died since it was written go as well.
      if (bytes < chunk.num_bytes()) positions.push_back(manifest_.chunks_size());
      *manifest_.add_chunks() = std::move(chunk);
    }
    return positions;
  }

  // Stores the manifest, with chunks of these positions written anew; returns its snapshot's id.
  absl::StatusOr<std::string> StageAnew(const std::vector<int>& positions) {
    v1::StageSnapshotRequest::Header header;
    header.set_tenant(request_.tenant());
    header.set_session_id(request_.session_id());
    header.set_lease_token(lease_.token());
    header.set_parent_version(version_);
    ASSIGN_OR_RETURN(const std::unique_ptr<SnapshotStaging> staging,
                     store_.StageSnapshot(header, deadline_));
    if (!positions.empty()) RETURN_IF_ERROR(RecodeInto(*staging, positions));
    ASSIGN_OR_RETURN(v1::StageSnapshotResponse staged, staging->Finish(manifest_));
    manifest_ = std::move(*staged.mutable_manifest());
    return staged.snapshot_id();
  }

  absl::Status RecodeInto(SnapshotStaging& staging, const std::vector<int>& positions) {
    v1::FetchSnapshotRequest fetch = FetchOf();
    // Chunks are told by their place in what is stored, which may have more, in the same order.
    int at = 0;
    for (const int position : positions) {
      while (!IsSamePlace(stored_.chunks(at), manifest_.chunks(position))) ++at;
      fetch.add_chunks(at);
    }
    size_t next = 0;
    const auto recode = [&](v1::FetchSnapshotResponse part) -> absl::Status {
      if (!part.has_chunk()) return absl::OkStatus();
      RETURN_IF_ERROR(lease_.Keep(deadline_));
      sv1::Chunk& chunk = *manifest_.mutable_chunks(positions[next++]);
      ASSIGN_OR_RETURN(const stored::HeadRuns kept,
                       stored::HeldRunsOf(chunk, manifest_.shape(), held_));
      ASSIGN_OR_RETURN(std::optional<stored::EncodedChunk> recoded,
                       stored::Recode(chunk, part.chunk().payload(), manifest_.shape(), kept,
                                      request_.encoding()));
      if (!recoded.has_value()) return absl::InternalError("a chunk without entries was read");
      chunk = recoded->chunk;
      v1::ChunkPayload sent;
      *sent.mutable_chunk() = std::move(recoded->chunk);
      sent.set_payload(std::move(recoded->payload));
      return staging.Add(std::move(sent));
    };
    return store_.FetchSnapshot(fetch, recode, deadline_);
  }

  SessionStore& store_;
  const v1::CompactSessionRequest& request_;
  const uint64_t version_;
  HeldLease& lease_;
  const absl::Time deadline_;
  uint64_t snapshot_version_ = 0;
  sv1::Manifest stored_;
  sv1::Manifest manifest_;               // what it becomes
  std::vector<stored::EntryRuns> held_;  // of manifest_, once chunks are to be written anew
};

absl::StatusOr<v1::CompactSessionResponse> Compact(SessionStore& store,
                                                   const v1::CompactSessionRequest& request,
                                                   bool is_idle, absl::Time deadline) {
  v1::AcquireLeaseRequest acquire;
  acquire.set_idle(is_idle);
  acquire.set_tenant(request.tenant());
  acquire.set_session_id(request.session_id());
  acquire.set_holder(kHolder);
  acquire.set_ttl_ms(absl::ToInt64Milliseconds(kLease));
  if (request.has_parent_version()) acquire.set_parent_version(request.parent_version());
  ASSIGN_OR_RETURN(const v1::AcquireLeaseResponse acquired, store.AcquireLease(acquire, deadline));
  HeldLease lease(store, request, acquired.lease_token());
  if (acquired.snapshot_version() == 0) return NothingToCompact(request.session_id());
  return Compaction(store, request, acquired.session().version(), lease, deadline).Run();
}

}  // namespace

absl::StatusOr<v1::CompactSessionResponse> CompactSession(SessionStore& store,
                                                          const v1::CompactSessionRequest& request,
                                                          absl::Time deadline) {
  return Compact(store, request, /*is_idle=*/false, deadline);
}

absl::Status RoundIdleSession(SessionStore& store, const std::string& tenant,
                              const std::string& session_id, absl::Time deadline) {
  v1::FetchSnapshotRequest fetch;
  fetch.set_tenant(tenant);
  fetch.set_session_id(session_id);
  fetch.set_manifest_only(true);
  bool is_wide = false;
  const auto look = [&is_wide](const v1::FetchSnapshotResponse& part) {
    for (const sv1::Chunk& chunk : part.found().manifest().chunks()) {
      is_wide =
          is_wide || stored::Narrower(chunk.encoding(), sv1::ENCODING_INT8) != chunk.encoding();
    }
    return absl::OkStatus();
  };
  RETURN_IF_ERROR(store.FetchSnapshot(fetch, look, deadline));
  if (!is_wide) return absl::OkStatus();
  v1::CompactSessionRequest request;
  request.set_tenant(tenant);
  request.set_session_id(session_id);
  request.set_encoding(sv1::ENCODING_INT8);
  request.set_drop_older_snapshots(true);
  return Compact(store, request, /*is_idle=*/true, deadline).status();
}

}  // namespace mneme::memory
