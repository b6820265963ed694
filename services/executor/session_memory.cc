#include "services/executor/session_memory.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/log/log.h"
#include "common/snapshot/chunk.h"
#include "common/snapshot/encoding.h"
#include "common/snapshot/manifest.h"
#include "common/status/status_macros.h"

namespace mneme::executor {
namespace {

// It travels in the manifest, which is one message.
constexpr int64_t kMaxPolicyStateBytes = int64_t{16} << 20;

// Between a broken stream to the memory service and the next one.
constexpr std::chrono::milliseconds kRestageDelay{100};

using Milliseconds = std::chrono::duration<double, std::milli>;

TurnIdentity IdentityOf(const WorkSpec& spec) {
  return {.tenant = spec.tenant,
          .session_id = spec.session_id,
          .lease_token = spec.lease_token,
          .parent_version = spec.parent_version,
          .trace = spec.trace};
}

// Gives the pages of what is there back.
void Empty(Sequence* sequence, std::shared_ptr<const memory::MemoryPolicy> policy) {
  memory::KvPool* const pool = &sequence->memory->pool();
  const memory::KvShape shape = sequence->memory->shape();
  sequence->memory.emplace(pool, shape, std::move(policy));
  sequence->reused_tokens = 0;
}

// Entries per head that a snapshot of the memory has, and those of them that never change again.
memory::PolicyState::Extent ExtentOf(const Sequence& sequence) {
  if (!sequence.memory.has_value()) return {};
  return sequence.memory->extent();
}

StoredSnapshot StoredOf(const snapshot::v1::Manifest& manifest, const Sequence& sequence,
                        uint64_t version) {
  StoredSnapshot stored{.version = version,
                        .num_settled = static_cast<int64_t>(manifest.num_tokens()),
                        .chunks = {manifest.chunks().begin(), manifest.chunks().end()}};
  const memory::KvSequence& memory = *sequence.memory;
  if (memory.state() == nullptr || !memory.state()->extent().has_value()) return stored;
  const auto state = memory.policy().RestoreState(memory.shape(), manifest.policy_state());
  stored.num_settled = state.ok() ? (*state)->extent()->num_settled : 0;
  return stored;
}

}  // namespace

SessionMemory::SessionMemory(const SessionMemoryOptions& options,
                             std::shared_ptr<memory::v1::MemoryService::StubInterface> stub,
                             std::shared_ptr<EngineSignal> signal, ExecutorMetrics* metrics)
    : options_(options), metrics_(metrics) {
  if (stub == nullptr) return;
  link_ = std::make_unique<MemoryLink>(std::move(stub), options.link, std::move(signal));
}

snapshot::v1::Lineage SessionMemory::LineageOf(const memory::MemoryPolicy& policy) const {
  snapshot::v1::Lineage lineage;
  lineage.set_model_fingerprint(options_.model_fingerprint);
  lineage.set_policy(policy.Describe());
  return lineage;
}

void SessionMemory::Begin(Sequence* sequence, std::optional<StoredSnapshot> snapshot) {
  const WorkSpec& spec = sequence->request->spec;
  sequence->turn = std::make_unique<SessionTurn>();
  SessionTurn& turn = *sequence->turn;
  if (link_ == nullptr) {
    turn.not_stored_reason =
        "this executor stores no key/value snapshots; the session is rebuilt from its token log";
    return;
  }
  if (spec.lease_token == 0) {
    turn.not_stored_reason = "the request names no lease of its session";
  } else {
    turn.staging = link_->Stage(IdentityOf(spec));
  }
  if (spec.snapshot_version == 0) return;
  if (snapshot.has_value() && snapshot->version == spec.snapshot_version) {
    UseSnapshot(sequence, *std::move(snapshot));
  } else if (sequence->most_reusable() > 0) {
    StartFetch(sequence);
  }
}

void SessionMemory::StartFetch(Sequence* sequence) {
  const WorkSpec& spec = sequence->request->spec;
  SessionTurn& turn = *sequence->turn;
  turn.fetch_started = std::chrono::steady_clock::now();
  turn.fetch = link_->StartFetch({.turn = IdentityOf(spec),
                                  .version = spec.snapshot_version,
                                  .lineage = LineageOf(*spec.policy),
                                  .shape = sequence->memory->shape(),
                                  .choice = spec.choice(),
                                  .tokens = sequence->tokens,
                                  .num_present = sequence->num_computed(),
                                  .present_policy = sequence->memory->shared_policy()});
  if (turn.fetch == nullptr) {
    FailRestore(sequence, absl::ResourceExhaustedError("too many sessions are being restored"));
  }
}

void SessionMemory::EndFetch(Sequence* sequence) {
  SessionTurn& turn = *sequence->turn;
  turn.restore_ms = Milliseconds(std::chrono::steady_clock::now() - turn.fetch_started).count();
  turn.is_importing = false;
  if (turn.fetch == nullptr) return;
  turn.fetched_bytes = turn.fetch->fetched_bytes();
  metrics_->snapshot_bytes_fetched.Increment(static_cast<double>(turn.fetched_bytes));
  turn.fetch->Cancel();
  turn.fetch.reset();
}

void SessionMemory::FailRestore(Sequence* sequence, const absl::Status& status) {
  const WorkSpec& spec = sequence->request->spec;
  log::Warning("stored memory is not used, the rest is computed from the tokens",
               {{"request", spec.request_id},
                {"session", spec.session_id},
                {"tokens", static_cast<int64_t>(sequence->tokens.size())},
                {"error", status.ToString()}});
  metrics_->restores_failed.Increment();
  if (sequence->turn->is_importing) {
    Empty(sequence, spec.policy);
  }
  EndFetch(sequence);
}

void SessionMemory::UseSnapshot(Sequence* sequence, StoredSnapshot snapshot) {
  sequence->turn->base = std::move(snapshot);
  ListStored(sequence);
}

void SessionMemory::ListStored(Sequence* sequence) {
  SessionTurn& turn = *sequence->turn;
  turn.chunks.clear();
  turn.exported_entries = 0;
  if (!turn.base.has_value()) return;
  turn.chunks = turn.base->chunks;
  turn.exported_entries = snapshot::KeepChunksUpTo(
      std::min(ExtentOf(*sequence).num_settled, turn.base->num_settled), &turn.chunks);
}

bool SessionMemory::MayRestage(Sequence* sequence, std::chrono::steady_clock::time_point now) {
  SessionTurn& turn = *sequence->turn;
  if (!absl::IsUnavailable(turn.staging->result().status()) || !sequence->memory.has_value()) {
    return false;
  }
  if (!turn.restage_at.has_value()) turn.restage_at = now + kRestageDelay;
  if (*turn.restage_at > turn.close_deadline) return false;
  if (now < *turn.restage_at) return true;
  turn.restage_at.reset();
  turn.lost_bytes += turn.staging->sent_bytes();
  turn.broken_off_for = std::string(turn.staging->result().status().message());
  turn.staging = link_->Stage(IdentityOf(sequence->request->spec));
  turn.is_manifest_sent = false;
  ListStored(sequence);
  turn.close_deadline = CloseDeadline(*sequence);
  return true;
}

absl::Status SessionMemory::Restore(Sequence* sequence,
                                    std::chrono::steady_clock::time_point deadline) {
  SessionTurn& turn = *sequence->turn;
  Fetch& fetch = *turn.fetch;
  switch (fetch.state()) {
    case Fetch::State::kLooking:
      return absl::OkStatus();
    case Fetch::State::kFailed:
      FailRestore(sequence, fetch.status());
      return absl::OkStatus();
    case Fetch::State::kEnough:
      UseSnapshot(sequence, StoredOf(fetch.manifest(), *sequence, fetch.version()));
      EndFetch(sequence);
      return absl::OkStatus();
    case Fetch::State::kArriving:
      break;
  }
  const snapshot::v1::Manifest& manifest = fetch.manifest();
  const WorkSpec& spec = sequence->request->spec;
  if (!turn.is_importing) {
    // What is there covers less.
    Empty(sequence, fetch.policy());
    absl::StatusOr<std::vector<snapshot::EntryRuns>> held =
        snapshot::HeldOf(manifest, sequence->memory->shape());
    absl::Status status = held.status();
    if (status.ok()) {
      status = sequence->memory->Restore(static_cast<int64_t>(manifest.num_tokens()), *held,
                                         snapshot::NumEntries(manifest));
    }
    if (absl::IsResourceExhausted(status)) return status;
    if (!status.ok()) {
      FailRestore(sequence, status);
      return absl::OkStatus();
    }
    turn.is_importing = true;
  }
  while (std::chrono::steady_clock::now() < deadline) {
    const std::optional<Fetch::Arrived> arrived = fetch.TryPop();
    if (!arrived.has_value()) break;
    const snapshot::v1::Chunk& chunk = manifest.chunks(arrived->index);
    const absl::Status status = snapshot::ImportChunk(chunk, *arrived->payload, &*sequence->memory);
    if (!status.ok()) {
      FailRestore(sequence, status);
      return absl::OkStatus();
    }
    if (!sequence->is_forgotten) {
      link_->host_cache().Put(spec.tenant, spec.session_id, chunk.digest(), arrived->payload);
    }
    ++turn.num_imported;
  }
  if (turn.num_imported < manifest.chunks_size()) return absl::OkStatus();
  if (const absl::Status status = sequence->memory->RestoreState(manifest.policy_state());
      !status.ok()) {
    FailRestore(sequence, status);
    return absl::OkStatus();
  }

  const int64_t most = sequence->most_reusable();
  if (sequence->num_computed() > most) {
    const absl::Status status = sequence->memory->Truncate(most);
    if (!status.ok()) {
      FailRestore(sequence, status);
      return absl::OkStatus();
    }
  }
  if (const absl::Status status = spec.choice().TakeUp(&*sequence->memory); !status.ok()) {
    FailRestore(sequence, status);
    return absl::OkStatus();
  }
  turn.tier = fetch.tier();
  turn.restored_tokens = sequence->num_computed();
  metrics_->restored_tokens.Increment(static_cast<double>(turn.restored_tokens));
  UseSnapshot(sequence, StoredOf(manifest, *sequence, fetch.version()));
  EndFetch(sequence);
  metrics_->restore_seconds.Observe(turn.restore_ms / 1000);
  return absl::OkStatus();
}

snapshot::v1::Encoding SessionMemory::EncodingOf(const Sequence& sequence) const {
  const snapshot::v1::Encoding wanted = sequence.request->spec.snapshot_encoding;
  if (wanted != snapshot::v1::ENCODING_UNSPECIFIED) return wanted;
  return snapshot::ExactEncoding(sequence.memory->pool().dtype());
}

std::chrono::steady_clock::time_point SessionMemory::CloseDeadline(const Sequence& sequence) const {
  const SessionTurn& turn = *sequence.turn;
  int64_t bytes = turn.staging->pending_bytes();
  if (sequence.memory.has_value()) {
    const memory::KvShape& shape = sequence.memory->shape();
    bytes += shape.num_heads() *
             snapshot::HeadBytes(
                 EncodingOf(sequence),
                 std::max<int64_t>(ExtentOf(sequence).num_entries - turn.exported_entries, 0),
                 shape.head_size);
  }
  return *turn.ended + options_.close_timeout +
         std::chrono::milliseconds(1000 * bytes / options_.min_bytes_per_second);
}

void SessionMemory::ExportUpTo(Sequence* sequence, int64_t end, int64_t max_bytes,
                               int64_t* exported_bytes) {
  SessionTurn& turn = *sequence->turn;
  const memory::KvSequence& memory = *sequence->memory;
  const snapshot::v1::Encoding encoding = EncodingOf(*sequence);
  const snapshot::ChunkPlan plan(memory.shape(), encoding);
  while (turn.exported_entries < end && *exported_bytes < max_bytes &&
         turn.staging->pending_bytes() < options_.max_pending_bytes) {
    const int64_t next = plan.FullEnd(turn.exported_entries);
    // A chunk that is not full waits for the end of the turn.
    if (next > end && !turn.ended.has_value()) return;
    const int64_t chunk_end = std::min(next, end);
    for (const snapshot::ChunkRange& range : plan.Ranges(turn.exported_entries, chunk_end)) {
      absl::StatusOr<std::optional<snapshot::EncodedChunk>> chunk =
          snapshot::ExportChunk(memory, range, encoding);
      if (!chunk.ok()) {
        turn.staging->Cancel(chunk.status());
        return;
      }
      std::optional<snapshot::EncodedChunk>& encoded = *chunk;
      if (!encoded.has_value()) continue;  // forgotten already
      *exported_bytes += static_cast<int64_t>(encoded->payload.size());
      turn.chunks.push_back(encoded->chunk);
      turn.staging->Add(*std::move(encoded));
    }
    turn.exported_entries = chunk_end;
  }
}

int64_t SessionMemory::Export(Sequence* sequence, int64_t max_bytes) {
  if (!sequence->is_stored() || sequence->is_restoring() || !sequence->memory.has_value()) return 0;
  SessionTurn& turn = *sequence->turn;
  if (turn.staging->is_done()) return 0;
  if (turn.staging->stalled_for() > options_.stall_timeout) {
    turn.staging->Cancel(absl::DeadlineExceededError("the memory service does not take snapshots"));
    return 0;
  }
  // Most of what passes through a window, or is dropped later, would be stored in vain.
  const memory::MemoryPolicy& policy = sequence->memory->policy();
  if (policy.mask().window > 0 || policy.moves_entries()) return 0;
  int64_t bytes = 0;
  ExportUpTo(sequence, ExtentOf(*sequence).num_settled, max_bytes, &bytes);
  return bytes;
}

bool SessionMemory::Close(Sequence* sequence, int64_t max_bytes) {
  SessionTurn& turn = *sequence->turn;
  const WorkSpec& spec = sequence->request->spec;
  const auto now = std::chrono::steady_clock::now();
  if (!turn.ended.has_value()) {
    turn.ended = now;
    turn.close_deadline = CloseDeadline(*sequence);
    // What was settled once may have moved since: beacons do when the oldest go.
    CutBack(sequence);
  }
  if (!turn.staging->is_done() && !turn.is_manifest_sent) {
    if (!sequence->memory.has_value() || sequence->num_computed() == 0) {
      turn.staging->Cancel(absl::FailedPreconditionError("its pages had to be given back"));
    } else {
      int64_t bytes = 0;
      const int64_t num_entries = ExtentOf(*sequence).num_entries;
      ExportUpTo(sequence, num_entries, max_bytes, &bytes);
      const memory::PolicyState* const state = sequence->memory->state();
      if (state != nullptr && state->num_bytes() > kMaxPolicyStateBytes) {
        turn.staging->Cancel(absl::FailedPreconditionError(absl::StrCat(
            "what its memory policy remembers is too large to be stored: ", state->num_bytes(),
            " bytes")));
      }
      if (turn.exported_entries == num_entries && !turn.staging->is_done()) {
        turn.is_manifest_sent = true;
        turn.staging->Finish(
            snapshot::MakeManifest(*sequence->memory, LineageOf(sequence->memory->policy()),
                                   sequence->tokens, turn.chunks, absl::ToUnixMillis(absl::Now())));
      }
    }
  }
  if (!turn.staging->is_done() && now > turn.close_deadline) {
    turn.staging->Cancel(absl::DeadlineExceededError(
        absl::StrCat("the memory service took too long",
                     turn.broken_off_for.empty() ? "" : ", after: ", turn.broken_off_for)));
  }
  if (!turn.staging->is_done()) return false;
  // The memory service or its store broke off. The pages are still there, what arrived is not
  // stored twice, and a service that restarts is soon back.
  if (MayRestage(sequence, now)) return false;

  absl::StatusOr<memory::v1::StageSnapshotResponse> stored = turn.staging->result();
  if (stored.ok()) {
    sequence->end.snapshot_id = stored->snapshot_id();
    turn.base = StoredOf(stored->manifest(), *sequence, spec.parent_version + 1);
    metrics_->snapshots_stored.Increment();
  } else {
    // What is stored may be another by now (it was made smaller): the next turn looks.
    turn.base.reset();
    turn.not_stored_reason = absl::StrCat("the turn's key/value memory could not be stored: ",
                                          stored.status().message());
    log::Warning("snapshot not stored", {{"request", spec.request_id},
                                         {"session", spec.session_id},
                                         {"error", stored.status().ToString()}});
    metrics_->snapshots_failed.Increment();
  }
  const int64_t sent_bytes = turn.lost_bytes + turn.staging->sent_bytes();
  metrics_->snapshot_bytes_sent.Increment(static_cast<double>(sent_bytes));
  inference::v1::MemoryReceipt& receipt = sequence->end.receipt;
  receipt.set_bytes_moved(turn.fetched_bytes + sent_bytes);
  receipt.set_not_persisted_reason(turn.not_stored_reason);
  const double stage_ms = Milliseconds(now - *turn.ended).count();
  (*receipt.mutable_ms())["stage"] = stage_ms;
  (*receipt.mutable_ms())["total"] += stage_ms;
  metrics_->stage_seconds.Observe(stage_ms / 1000);
  return true;
}

void SessionMemory::Abandon(Sequence* sequence, const absl::Status& why) {
  sequence->turn->staging->Cancel(why);
  sequence->turn->close_deadline = std::chrono::steady_clock::time_point::min();
}

void SessionMemory::CutBack(Sequence* sequence) {
  SessionTurn& turn = *sequence->turn;
  turn.exported_entries = snapshot::KeepChunksUpTo(
      std::min(ExtentOf(*sequence).num_settled, turn.exported_entries), &turn.chunks);
}

std::optional<StoredSnapshot> SessionMemory::SnapshotOf(const Sequence& sequence) {
  return sequence.turn == nullptr ? std::nullopt : sequence.turn->base;
}

void SessionMemory::Forget(const std::string& tenant, const std::string& session_id) {
  if (link_ != nullptr) link_->host_cache().Forget(tenant, session_id);
}

}  // namespace mneme::executor
