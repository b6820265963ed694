#include "services/memory/in_memory_session_store.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/status/annotate.h"
#include "common/status/status_macros.h"
#include "services/memory/session_compaction.h"
#include "services/memory/session_errors.h"
#include "services/memory/session_history.h"
#include "services/memory/snapshot_check.h"

namespace mneme::memory {
namespace {

constexpr int kMaxSharers = 100;

bool IsOver(int64_t expires_at_ms, int64_t now_ms) {
  return expires_at_ms != 0 && expires_at_ms <= now_ms;
}

}  // namespace

InMemorySessionStore::Entry* InMemorySessionStore::Find(const Key& key, int64_t now_ms) {
  const auto found = entries_.find(key);
  if (found == entries_.end()) return nullptr;
  if (IsOver(found->second.expires_at_ms, now_ms)) {
    entries_.erase(found);
    return nullptr;
  }
  return &found->second;
}

absl::StatusOr<InMemorySessionStore::Entry*> InMemorySessionStore::Make(const Key& key,
                                                                        int64_t now_ms) {
  const int64_t limit = options_.QuotaOf(key.first).max_sessions();
  int64_t count = 0;
  for (const auto& [other, entry] : entries_) {
    if (other.first == key.first && !IsOver(entry.expires_at_ms, now_ms)) ++count;
  }
  if (limit > 0 && count >= limit) return QuotaUsedUp("max_sessions", limit);
  Entry& entry = entries_[key];
  entry.session.set_session_id(key.second);
  entry.session.set_created_unix_ms(now_ms);
  entry.family = std::make_shared<Family>();
  return &entry;
}

void InMemorySessionStore::Use(const std::string& tenant, Entry& entry, int64_t now_ms) {
  entry.session.set_used_unix_ms(now_ms);
  entry.order = last_order_ = std::max(last_order_ + 1, now_ms * 1000);
  Prolong(tenant, entry);
}

void InMemorySessionStore::Prolong(const std::string& tenant, Entry& entry) const {
  const int64_t ttl_seconds = entry.session.ttl_seconds() != 0 ? entry.session.ttl_seconds()
                                                               : options_.TtlSecondsOf(tenant);
  const bool stays = ttl_seconds == 0 || entry.session.pinned();
  entry.expires_at_ms =
      stays ? 0 : std::max(entry.session.used_unix_ms() + ttl_seconds * 1000, entry.lease.until_ms);
}

uint64_t InMemorySessionStore::SnapshotVersion(const Entry& entry, uint64_t version) {
  while (version > 0 && entry.turns[version - 1]->manifest == nullptr) --version;
  return version;
}

void InMemorySessionStore::SetVersion(Entry& entry) {
  v1::Session& session = entry.session;
  const uint64_t version = entry.turns.size();
  session.set_version(version);
  session.set_num_messages(version == 0 ? 0 : entry.turns.back()->num_messages);
  session.set_num_tokens(version == 0 ? 0 : entry.turns.back()->num_tokens);
  const uint64_t at = SnapshotVersion(entry, version);
  session.set_kv_bytes(at == 0 ? 0 : PayloadBytes(*entry.turns[at - 1]->manifest));
}

int64_t InMemorySessionStore::KvBytes(const std::string& tenant) {
  std::set<const Family*> seen;
  int64_t bytes = 0;
  for (const auto& [key, entry] : entries_) {
    if (key.first != tenant || !seen.insert(entry.family.get()).second) continue;
    for (const auto& [digest, chunk] : entry.family->chunks) {
      if (chunk.expires_at_ms == 0) bytes += static_cast<int64_t>(chunk.payload.size());
    }
  }
  return bytes;
}

absl::StatusOr<InMemorySessionStore::Entry*> InMemorySessionStore::Leased(const Key& key,
                                                                          uint64_t lease_token,
                                                                          int64_t now_ms) {
  Entry* entry = Find(key, now_ms);
  if (entry == nullptr) return NoSuchSession(key.second);
  if (entry->lease.token != lease_token || entry->lease.until_ms <= now_ms) {
    return LeaseLost(key.second, lease_token);
  }
  return entry;
}

absl::StatusOr<v1::CreateSessionResponse> InMemorySessionStore::CreateSession(
    const v1::CreateSessionRequest& request, absl::Time) {
  const int64_t now_ms = absl::ToUnixMillis(clock_.Now());
  v1::CreateSessionResponse response;
  sync::MutexLock lock(mutex_);
  Entry* entry = Find(request, now_ms);
  if (entry != nullptr) {
    if (request.request_id().empty() || entry->create_request_id != request.request_id()) {
      return SessionExists(request.session_id());
    }
  } else {
    ASSIGN_OR_RETURN(entry, Make({request.tenant(), request.session_id()}, now_ms));
    entry->create_request_id = request.request_id();
    entry->session.set_model(request.model());
    entry->session.set_title(request.title());
    entry->session.set_ttl_seconds(request.ttl_seconds());
    if (request.has_memory_policy()) {
      *entry->session.mutable_memory_policy() = request.memory_policy();
    }
    Use(request.tenant(), *entry, now_ms);
  }
  *response.mutable_session() = entry->session;
  return response;
}

absl::StatusOr<v1::GetSessionResponse> InMemorySessionStore::GetSession(
    const v1::GetSessionRequest& request, absl::Time) {
  v1::GetSessionResponse response;
  sync::MutexLock lock(mutex_);
  const Entry* entry = Find(request, absl::ToUnixMillis(clock_.Now()));
  if (entry == nullptr) return NoSuchSession(request.session_id());
  *response.mutable_session() = entry->session;
  for (const auto& stored : entry->turns) {
    AppendTurn(v1::Turn(stored->turn),
               {.messages = request.with_messages(), .tokens = request.with_tokens()}, &response);
  }
  return response;
}

absl::StatusOr<v1::ListSessionsResponse> InMemorySessionStore::ListSessions(
    const v1::ListSessionsRequest& request, absl::Time) {
  int64_t before = std::numeric_limits<int64_t>::max();
  if (!request.page_token().empty()) {
    ASSIGN_OR_RETURN(before, DecodePageToken(request.page_token()));
  }
  const int64_t now_ms = absl::ToUnixMillis(clock_.Now());
  v1::ListSessionsResponse response;
  sync::MutexLock lock(mutex_);
  std::map<int64_t, const Entry*, std::greater<>> by_order;
  for (const auto& [key, entry] : entries_) {
    if (key.first != request.tenant() || entry.order >= before) continue;
    if (IsOver(entry.expires_at_ms, now_ms)) continue;
    if (!request.model().empty() && entry.session.model() != request.model()) continue;
    by_order[entry.order] = &entry;
  }
  int64_t last = 0;
  for (const auto& [order, entry] : by_order) {
    if (response.sessions_size() == request.page_size()) {
      response.set_next_page_token(EncodePageToken(last));
      break;
    }
    *response.add_sessions() = entry->session;
    last = order;
  }
  return response;
}

absl::StatusOr<v1::DeleteSessionResponse> InMemorySessionStore::DeleteSession(
    const v1::DeleteSessionRequest& request, absl::Time) {
  sync::MutexLock lock(mutex_);
  if (Find(request, absl::ToUnixMillis(clock_.Now())) == nullptr) {
    return NoSuchSession(request.session_id());
  }
  entries_.erase({request.tenant(), request.session_id()});
  return v1::DeleteSessionResponse();
}

absl::StatusOr<v1::AcquireLeaseResponse> InMemorySessionStore::AcquireLease(
    const v1::AcquireLeaseRequest& request, absl::Time) {
  const absl::Time now = clock_.Now();
  const int64_t now_ms = absl::ToUnixMillis(now);
  v1::AcquireLeaseResponse response;
  sync::MutexLock lock(mutex_);
  Entry* entry = Find(request, now_ms);
  if (entry == nullptr && !request.create()) return NoSuchSession(request.session_id());
  if (entry != nullptr && !request.request_id().empty()) {
    const auto version = entry->versions_by_request_id.find(request.request_id());
    if (version != entry->versions_by_request_id.end()) {
      *response.mutable_session() = entry->session;
      *response.mutable_committed() = entry->turns[version->second - 1]->turn;
      return response;
    }
  }
  const uint64_t head = entry == nullptr ? 0 : entry->session.version();
  if (request.has_parent_version() && request.parent_version() != head) {
    return StaleVersion(request.session_id(), request.parent_version(), head);
  }
  if (entry != nullptr && entry->lease.token != 0 && entry->lease.until_ms > now_ms) {
    // The same holder asking for the same turn again has not heard the first answer.
    const bool asks_again = !request.request_id().empty() &&
                            entry->lease.holder == request.holder() &&
                            entry->lease.request_id == request.request_id();
    if (!asks_again) {
      return SessionBusy(request.session_id(), entry->lease.holder,
                         absl::Milliseconds(entry->lease.until_ms - now_ms));
    }
  }
  if (entry == nullptr) {
    ASSIGN_OR_RETURN(entry, Make({request.tenant(), request.session_id()}, now_ms));
    entry->session.set_model(request.model());
  }
  last_lease_token_ =
      std::max(last_lease_token_ + 1, static_cast<uint64_t>(absl::ToUnixMicros(now)));
  entry->lease = {.token = last_lease_token_,
                  .holder = request.holder(),
                  .request_id = request.request_id(),
                  .until_ms = now_ms + request.ttl_ms()};
  if (request.idle()) {
    Prolong(request.tenant(), *entry);
  } else {
    Use(request.tenant(), *entry, now_ms);
  }
  response.set_lease_token(last_lease_token_);
  response.set_executor(entry->executor);
  response.set_snapshot_version(SnapshotVersion(*entry, entry->turns.size()));
  *response.mutable_session() = entry->session;
  if (request.with_history()) {
    for (const auto& stored : entry->turns) {
      AppendTurn(v1::Turn(stored->turn), {.messages = true, .tokens = true}, &response);
    }
  }
  return response;
}

absl::StatusOr<v1::RenewLeaseResponse> InMemorySessionStore::RenewLease(
    const v1::RenewLeaseRequest& request, absl::Time) {
  const int64_t now_ms = absl::ToUnixMillis(clock_.Now());
  sync::MutexLock lock(mutex_);
  Entry* entry = Find(request, now_ms);
  if (entry == nullptr) return NoSuchSession(request.session_id());
  if (entry->lease.token != request.lease_token()) {
    return LeaseLost(request.session_id(), request.lease_token());
  }
  entry->lease.until_ms = now_ms + request.ttl_ms();
  Prolong(request.tenant(), *entry);
  return v1::RenewLeaseResponse();
}

absl::StatusOr<v1::ReleaseLeaseResponse> InMemorySessionStore::ReleaseLease(
    const v1::ReleaseLeaseRequest& request, absl::Time) {
  sync::MutexLock lock(mutex_);
  Entry* entry = Find(request, absl::ToUnixMillis(clock_.Now()));
  if (entry != nullptr && entry->lease.token == request.lease_token()) entry->lease = {};
  return v1::ReleaseLeaseResponse();
}

absl::StatusOr<v1::CommitTurnResponse> InMemorySessionStore::CommitTurn(
    const v1::CommitTurnRequest& request, absl::Time) {
  const int64_t now_ms = absl::ToUnixMillis(clock_.Now());
  const uint64_t parent = request.parent_version();
  const v1::Turn& turn = request.turn();
  v1::CommitTurnResponse response;
  sync::MutexLock lock(mutex_);
  Entry* entry = Find(request, now_ms);
  if (entry == nullptr) return NoSuchSession(request.session_id());
  v1::Session& session = entry->session;
  if (const auto known = entry->versions_by_request_id.find(turn.request_id());
      known != entry->versions_by_request_id.end()) {
    response.set_version(known->second);
  } else if (parent < session.version() &&
             entry->turns[parent]->lease_token == request.lease_token() &&
             TurnPayload(entry->turns[parent]->turn) == TurnPayload(turn)) {
    response.set_version(parent + 1);
  } else if (entry->lease.token != request.lease_token() || entry->lease.until_ms <= now_ms) {
    return LeaseLost(request.session_id(), request.lease_token());
  } else if (parent != session.version()) {
    return StaleVersion(request.session_id(), parent, session.version());
  } else {
    auto stored = std::make_shared<StoredTurn>(StoredTurn{
        .turn = turn,
        .lease_token = request.lease_token(),
        .num_messages = session.num_messages() + turn.messages_size(),
        .num_tokens = (turn.replaces_tokens() ? 0 : session.num_tokens()) + turn.token_ids_size()});
    stored->turn.set_version(parent + 1);
    stored->turn.set_committed_unix_ms(now_ms);
    stored->turn.clear_snapshot_tokens();
    if (!request.snapshot_id().empty()) {
      const absl::string_view reason =
          Attach(*entry, request.snapshot_id(), request.lease_token(), now_ms, *stored);
      response.set_snapshot_lost_reason(std::string(reason));
    }
    entry->turns.push_back(std::move(stored));
    entry->executor = request.executor();
    SetVersion(*entry);
    if (!turn.request_id().empty()) {
      entry->versions_by_request_id[turn.request_id()] = session.version();
    }
    Use(request.tenant(), *entry, now_ms);
    response.set_version(session.version());
  }
  // Also of a turn that was committed before.
  if (!request.snapshot_id().empty() && response.snapshot_lost_reason().empty() &&
      entry->turns[response.version() - 1]->manifest == nullptr) {
    response.set_snapshot_lost_reason(std::string(kStagedIsGone));
  }
  if (request.release() && entry->lease.token == request.lease_token()) entry->lease = {};
  return response;
}

absl::string_view InMemorySessionStore::Attach(Entry& entry, const std::string& snapshot_id,
                                               uint64_t lease_token, int64_t now_ms,
                                               StoredTurn& turn) {
  Family& family = *entry.family;
  const auto found = family.staged.find(snapshot_id);
  if (found == family.staged.end()) return kStagedIsGone;
  // Attached or not, it can be of no other turn.
  const Staged staged = std::move(found->second);
  family.staged.erase(found);
  if (IsOver(staged.expires_at_ms, now_ms)) return kStagedIsGone;
  if (staged.lease_token != lease_token) return kStagedUnderOtherLease;
  for (const snapshot::v1::Chunk& chunk : staged.manifest->chunks()) {
    const auto stored = family.chunks.find(chunk.digest());
    if (stored == family.chunks.end() || IsOver(stored->second.expires_at_ms, now_ms)) {
      return kStagedChunksAreGone;
    }
  }
  for (const snapshot::v1::Chunk& chunk : staged.manifest->chunks()) {
    family.chunks[chunk.digest()].expires_at_ms = 0;
  }
  turn.manifest = staged.manifest;
  turn.turn.set_snapshot_tokens(turn.manifest->num_tokens());
  return "";
}

// Chunks go into the family as they come, and live on only if a turn lists them.
class InMemorySessionStore::Staging final : public SnapshotStaging {
 public:
  Staging(InMemorySessionStore& store, const v1::StageSnapshotRequest::Header& header)
      : store_(store), key_(header.tenant(), header.session_id()), token_(header.lease_token()) {}

  absl::Status Add(v1::ChunkPayload chunk) override {
    ASSIGN_OR_RETURN(std::string digest, DigestOf(chunk));
    chunk.mutable_chunk()->set_digest(digest);
    sent_.Add(chunk.chunk());
    const int64_t now_ms = absl::ToUnixMillis(store_.clock_.Now());
    sync::MutexLock lock(store_.mutex_);
    ASSIGN_OR_RETURN(Entry * entry, store_.Leased(key_, token_, now_ms));
    const auto size = static_cast<int64_t>(chunk.payload().size());
    StoredChunk& stored = entry->family->chunks[digest];
    const bool is_new = stored.payload.empty() || IsOver(stored.expires_at_ms, now_ms);
    const int64_t limit = store_.options_.QuotaOf(key_.first).max_kv_bytes();
    if (is_new && limit > 0 && store_.KvBytes(key_.first) + new_bytes_ + size > limit) {
      entry->family->chunks.erase(digest);
      return QuotaUsedUp("max_kv_bytes", limit);
    }
    if (is_new) {
      stored.payload = std::move(*chunk.mutable_payload());
      new_bytes_ += size;
    }
    stored.is_on_disk = false;
    if (is_new || stored.expires_at_ms != 0) stored.expires_at_ms = ExpiryFrom(now_ms);
    return absl::OkStatus();
  }

  absl::StatusOr<v1::StageSnapshotResponse> Finish(snapshot::v1::Manifest manifest) override {
    const int64_t now_ms = absl::ToUnixMillis(store_.clock_.Now());
    RETURN_IF_ERROR(sent_.Complete(now_ms, &manifest));
    v1::StageSnapshotResponse response;
    sync::MutexLock lock(store_.mutex_);
    ASSIGN_OR_RETURN(Entry * entry, store_.Leased(key_, token_, now_ms));
    Family& family = *entry->family;
    for (int i = 0; i < manifest.chunks_size(); ++i) {
      const auto found = family.chunks.find(manifest.chunks(i).digest());
      if (found == family.chunks.end() || IsOver(found->second.expires_at_ms, now_ms)) {
        return UnknownChunk(i);
      }
    }
    response.set_snapshot_id(absl::StrFormat("%016x", ++store_.last_snapshot_id_));
    response.set_bytes_stored(new_bytes_);
    *response.mutable_manifest() = manifest;
    family.staged[response.snapshot_id()] = {
        .lease_token = token_,
        .manifest = std::make_shared<const snapshot::v1::Manifest>(std::move(manifest)),
        .expires_at_ms = ExpiryFrom(now_ms)};
    return response;
  }

 private:
  int64_t ExpiryFrom(int64_t now_ms) const {
    return now_ms + absl::ToInt64Milliseconds(store_.options_.orphan_age);
  }

  InMemorySessionStore& store_;
  const Key key_;
  const uint64_t token_;
  SentChunks sent_;
  int64_t new_bytes_ = 0;
};

absl::StatusOr<std::unique_ptr<SnapshotStaging>> InMemorySessionStore::StageSnapshot(
    const v1::StageSnapshotRequest::Header& header, absl::Time) {
  sync::MutexLock lock(mutex_);
  RETURN_IF_ERROR(Leased({header.tenant(), header.session_id()}, header.lease_token(),
                         absl::ToUnixMillis(clock_.Now()))
                      .status());
  return std::make_unique<Staging>(*this, header);
}

absl::Status InMemorySessionStore::FetchSnapshot(const v1::FetchSnapshotRequest& request,
                                                 const FetchSink& sink, absl::Time) {
  std::vector<v1::FetchSnapshotResponse> parts(1);
  {
    sync::MutexLock lock(mutex_);
    Entry* entry = Find(request, absl::ToUnixMillis(clock_.Now()));
    if (entry == nullptr) return NoSuchSession(request.session_id());
    if (request.version() > entry->turns.size()) {
      return absl::NotFoundError(NoSuchVersion(request.session_id(), request.version()).message());
    }
    const uint64_t version =
        SnapshotVersion(*entry, request.version() == 0 ? entry->turns.size() : request.version());
    if (version == 0) return NoSnapshot(request.session_id());
    const snapshot::v1::Manifest& manifest = *entry->turns[version - 1]->manifest;
    parts[0].mutable_found()->set_version(version);
    *parts[0].mutable_found()->mutable_manifest() = manifest;
    std::vector<int> positions(request.chunks().begin(), request.chunks().end());
    for (const int position : positions) {
      if (position < 0 || position >= manifest.chunks_size()) {
        return status::InvalidField(
            "chunks", absl::StrCat("the manifest has no chunk at this position: ", position));
      }
    }
    for (int i = 0; positions.empty() && i < manifest.chunks_size(); ++i) {
      parts.emplace_back().mutable_chunk()->set_index(i);
    }
    for (const int position : positions) parts.emplace_back().mutable_chunk()->set_index(position);
    if (request.manifest_only()) parts.resize(1);
    int64_t in_redis = 0;
    for (const FamilyUse& use : FamiliesByUse(0)) in_redis += use.family->Bytes(/*on_disk=*/false);
    for (size_t i = 1; i < parts.size(); ++i) {
      auto* chunk = parts[i].mutable_chunk();
      StoredChunk& stored = entry->family->chunks.at(manifest.chunks(chunk->index()).digest());
      chunk->set_payload(stored.payload);
      chunk->set_tier(stored.is_on_disk ? "disk" : "redis");
      const auto size = static_cast<int64_t>(stored.payload.size());
      if (!stored.is_on_disk) continue;
      if (options_.redis_budget_bytes > 0 && in_redis + size > options_.redis_budget_bytes) {
        continue;
      }
      stored.is_on_disk = false;
      in_redis += size;
    }
  }
  for (v1::FetchSnapshotResponse& part : parts) RETURN_IF_ERROR(sink(std::move(part)));
  return absl::OkStatus();
}

bool InMemorySessionStore::IsShared(const Entry& entry,
                                    const std::shared_ptr<const StoredTurn>& turn, int64_t now_ms) {
  return std::any_of(entries_.begin(), entries_.end(), [&](const auto& item) {
    const Entry& other = item.second;
    return &other != &entry && other.family == entry.family &&
           !IsOver(other.expires_at_ms, now_ms) &&
           std::find(other.turns.begin(), other.turns.end(), turn) != other.turns.end();
  });
}

absl::StatusOr<ReplacedSnapshot> InMemorySessionStore::ReplaceSnapshot(
    const SnapshotReplacement& request, absl::Time) {
  const int64_t now_ms = absl::ToUnixMillis(clock_.Now());
  ReplacedSnapshot replaced;
  sync::MutexLock lock(mutex_);
  ASSIGN_OR_RETURN(Entry * entry,
                   Leased({request.tenant, request.session_id}, request.lease_token, now_ms));
  const uint64_t head = entry->turns.size();
  if (request.version != head) return StaleVersion(request.session_id, request.version, head);
  const uint64_t at = request.snapshot_version;
  if (at == 0 || SnapshotVersion(*entry, head) != at) {
    return ReplacementIsGone(request.session_id, "its snapshot was dropped");
  }
  if (!request.snapshot_id.empty()) {
    auto turn = std::make_shared<StoredTurn>(*entry->turns[at - 1]);
    const absl::string_view reason =
        Attach(*entry, request.snapshot_id, request.lease_token, now_ms, *turn);
    if (!reason.empty()) return ReplacementIsGone(request.session_id, reason);
    entry->turns[at - 1] = std::move(turn);
  }
  if (request.memory_policy.has_value()) {
    *entry->session.mutable_memory_policy() = *request.memory_policy;
  }
  for (uint64_t i = 0; request.drop_older_snapshots && i + 1 < at; ++i) {
    if (entry->turns[i]->manifest == nullptr || IsShared(*entry, entry->turns[i], now_ms)) continue;
    auto bare = std::make_shared<StoredTurn>(*entry->turns[i]);
    bare->manifest = nullptr;
    bare->turn.clear_snapshot_tokens();
    entry->turns[i] = std::move(bare);
    ++replaced.num_dropped;
  }
  SetVersion(*entry);
  entry->lease = {};
  Prolong(request.tenant, *entry);
  replaced.session = entry->session;
  return replaced;
}

absl::StatusOr<v1::ForkSessionResponse> InMemorySessionStore::ForkSession(
    const v1::ForkSessionRequest& request, absl::Time) {
  const int64_t now_ms = absl::ToUnixMillis(clock_.Now());
  v1::ForkSessionResponse response;
  sync::MutexLock lock(mutex_);
  const Entry* source = Find(request, now_ms);
  if (source == nullptr) return NoSuchSession(request.session_id());
  const uint64_t head = source->turns.size();
  const uint64_t version = request.has_version() ? request.version() : head;
  if (version > head) return NoSuchVersion(request.session_id(), version);
  const Key new_key = {request.tenant(), request.new_session_id()};
  Entry* entry = Find(new_key, now_ms);
  if (entry != nullptr) {
    const bool is_same = !request.request_id().empty() && entry->family == source->family &&
                         entry->create_request_id == request.request_id();
    if (!is_same) return SessionExists(request.new_session_id());
    *response.mutable_session() = entry->session;
    return response;
  }
  ASSIGN_OR_RETURN(entry, Make(new_key, now_ms));
  entry->family = source->family;
  entry->create_request_id = request.request_id();
  entry->turns.assign(source->turns.begin(), source->turns.begin() + static_cast<int64_t>(version));
  if (version == head) entry->executor = source->executor;
  v1::Session& session = entry->session;
  session.set_model(source->session.model());
  session.set_title(request.title().empty() ? source->session.title() : request.title());
  if (source->session.has_memory_policy()) {
    *session.mutable_memory_policy() = source->session.memory_policy();
  }
  session.set_ttl_seconds(source->session.ttl_seconds());
  session.set_parent_session(request.session_id());
  session.set_parent_session_version(version);
  SetVersion(*entry);
  Use(request.tenant(), *entry, now_ms);
  *response.mutable_session() = session;
  return response;
}

absl::StatusOr<v1::RewindSessionResponse> InMemorySessionStore::RewindSession(
    const v1::RewindSessionRequest& request, absl::Time) {
  const int64_t now_ms = absl::ToUnixMillis(clock_.Now());
  v1::RewindSessionResponse response;
  sync::MutexLock lock(mutex_);
  Entry* entry = Find(request, now_ms);
  if (entry == nullptr) return NoSuchSession(request.session_id());
  if (entry->lease.token != 0 && entry->lease.until_ms > now_ms) {
    return SessionBusy(request.session_id(), entry->lease.holder,
                       absl::Milliseconds(entry->lease.until_ms - now_ms));
  }
  if (request.version() > entry->turns.size()) {
    return NoSuchVersion(request.session_id(), request.version());
  }
  if (request.version() < entry->turns.size()) {
    for (size_t i = request.version(); i < entry->turns.size(); ++i) {
      entry->versions_by_request_id.erase(entry->turns[i]->turn.request_id());
    }
    entry->turns.resize(request.version());
    // Whoever had a lease that ran out computed a turn that does not exist any more.
    entry->lease = {};
    entry->executor.clear();
    SetVersion(*entry);
  }
  Use(request.tenant(), *entry, now_ms);
  *response.mutable_session() = entry->session;
  return response;
}

absl::StatusOr<v1::DescribeSessionResponse> InMemorySessionStore::DescribeSession(
    const v1::DescribeSessionRequest& request, absl::Time) {
  const int64_t now_ms = absl::ToUnixMillis(clock_.Now());
  v1::DescribeSessionResponse response;
  sync::MutexLock lock(mutex_);
  const Entry* entry = Find(request, now_ms);
  if (entry == nullptr) return NoSuchSession(request.session_id());
  *response.mutable_session() = entry->session;
  response.set_leased(entry->lease.token != 0 && entry->lease.until_ms > now_ms);
  response.set_executor(entry->executor);
  std::map<std::string, int64_t> all;  // bytes, by digest
  std::set<std::string> before;
  for (const auto& stored : entry->turns) {
    auto* version = response.add_versions();
    version->set_version(stored->turn.version());
    version->set_committed_unix_ms(stored->turn.committed_unix_ms());
    version->set_num_tokens(stored->num_tokens);
    version->set_request_id(stored->turn.request_id());
    std::set<std::string> listed;
    int64_t own_bytes = 0;
    if (stored->manifest != nullptr) {
      version->set_snapshot_tokens(stored->manifest->num_tokens());
      version->set_snapshot_bytes(PayloadBytes(*stored->manifest));
      for (const snapshot::v1::Chunk& chunk : stored->manifest->chunks()) {
        all[chunk.digest()] = chunk.num_bytes();
        const bool is_new = listed.insert(chunk.digest()).second;
        if (is_new && before.count(chunk.digest()) == 0) own_bytes += chunk.num_bytes();
      }
    }
    version->set_own_bytes(own_bytes);
    before = std::move(listed);
  }
  std::set<std::string> shared;
  for (const auto& [key, other] : entries_) {
    if (&other == entry || other.family != entry->family || IsOver(other.expires_at_ms, now_ms)) {
      continue;
    }
    bool shares = false;
    for (const auto& stored : other.turns) {
      shares = shares ||
               std::find(entry->turns.begin(), entry->turns.end(), stored) != entry->turns.end();
      if (stored->manifest == nullptr) continue;
      for (const auto& chunk : stored->manifest->chunks()) shared.insert(chunk.digest());
    }
    if (shares && response.shares_with_size() < kMaxSharers) response.add_shares_with(key.second);
  }
  int64_t shared_bytes = 0;
  for (const auto& [digest, bytes] : all) {
    const auto stored = entry->family->chunks.find(digest);
    const bool is_on_disk = stored != entry->family->chunks.end() && stored->second.is_on_disk;
    (*response.mutable_bytes_by_tier())[is_on_disk ? "disk" : "redis"] += bytes;
    if (shared.count(digest) > 0) shared_bytes += bytes;
  }
  response.set_shared_bytes(shared_bytes);
  return response;
}

absl::StatusOr<v1::UpdateSessionResponse> InMemorySessionStore::UpdateSession(
    const v1::UpdateSessionRequest& request, absl::Time) {
  v1::UpdateSessionResponse response;
  sync::MutexLock lock(mutex_);
  Entry* entry = Find(request, absl::ToUnixMillis(clock_.Now()));
  if (entry == nullptr) return NoSuchSession(request.session_id());
  if (request.has_title()) entry->session.set_title(request.title());
  if (request.has_ttl_seconds()) entry->session.set_ttl_seconds(request.ttl_seconds());
  if (request.has_pinned()) entry->session.set_pinned(request.pinned());
  if (request.has_memory_policy()) {
    *entry->session.mutable_memory_policy() = request.memory_policy();
  }
  Prolong(request.tenant(), *entry);
  *response.mutable_session() = entry->session;
  return response;
}

absl::StatusOr<v1::ForgetTenantResponse> InMemorySessionStore::ForgetTenant(
    const v1::ForgetTenantRequest& request, absl::Time) {
  sync::MutexLock lock(mutex_);
  v1::ForgetTenantResponse response;
  response.set_sessions(static_cast<int64_t>(std::erase_if(
      entries_, [&](const auto& item) { return item.first.first == request.tenant(); })));
  return response;
}

absl::StatusOr<WholeSession> InMemorySessionStore::ReadSession(const std::string& tenant,
                                                               const std::string& session_id,
                                                               absl::Time) {
  sync::MutexLock lock(mutex_);
  const Entry* entry = Find(Key{tenant, session_id}, absl::ToUnixMillis(clock_.Now()));
  if (entry == nullptr) return NoSuchSession(session_id);
  WholeSession whole{.session = entry->session};
  for (const auto& stored : entry->turns) {
    WholeSession::Turn& turn = whole.turns.emplace_back();
    turn.turn = stored->turn;
    turn.turn.clear_snapshot_tokens();
    if (stored->manifest != nullptr) turn.manifest = *stored->manifest;
  }
  return whole;
}

class InMemorySessionStore::Import final : public SessionImport {
 public:
  Import(InMemorySessionStore& store, std::string tenant)
      : store_(store), tenant_(std::move(tenant)) {}

  absl::Status Add(v1::ChunkPayload chunk) override {
    ASSIGN_OR_RETURN(std::string digest, DigestOf(chunk));
    bytes_ += static_cast<int64_t>(chunk.payload().size());
    chunks_[std::move(digest)] = {.payload = std::move(*chunk.mutable_payload())};
    const int64_t limit = store_.options_.QuotaOf(tenant_).max_kv_bytes();
    sync::MutexLock lock(store_.mutex_);
    if (limit == 0 || store_.KvBytes(tenant_) + bytes_ <= limit) return absl::OkStatus();
    return QuotaUsedUp("max_kv_bytes", limit);
  }

  absl::StatusOr<v1::Session> Finish(WholeSession whole) override {
    std::vector<std::shared_ptr<const StoredTurn>> turns;
    std::map<std::string, uint64_t> versions_by_request_id;
    int32_t num_messages = 0;
    int64_t num_tokens = 0;
    for (WholeSession::Turn& turn : whole.turns) {
      num_messages += turn.turn.messages_size();
      num_tokens = (turn.turn.replaces_tokens() ? 0 : num_tokens) + turn.turn.token_ids_size();
      auto stored = std::make_shared<StoredTurn>(
          StoredTurn{.turn = turn.turn, .num_messages = num_messages, .num_tokens = num_tokens});
      if (turn.manifest.has_value()) {
        for (const snapshot::v1::Chunk& chunk : turn.manifest->chunks()) {
          if (chunks_.count(chunk.digest()) > 0) continue;
          return absl::DataLossError("the session file lists a chunk that it does not hold");
        }
        stored->turn.set_snapshot_tokens(turn.manifest->num_tokens());
        stored->manifest = std::make_shared<const snapshot::v1::Manifest>(*turn.manifest);
      }
      if (!turn.turn.request_id().empty()) {
        versions_by_request_id[turn.turn.request_id()] = turn.turn.version();
      }
      turns.push_back(std::move(stored));
    }
    const int64_t now_ms = absl::ToUnixMillis(store_.clock_.Now());
    const Key key = {tenant_, whole.session.session_id()};
    sync::MutexLock lock(store_.mutex_);
    if (store_.Find(key, now_ms) != nullptr) return SessionExists(key.second);
    ASSIGN_OR_RETURN(Entry * entry, store_.Make(key, now_ms));
    entry->session = whole.session;
    entry->session.clear_parent_session();
    entry->session.clear_parent_session_version();
    entry->turns = std::move(turns);
    entry->versions_by_request_id = std::move(versions_by_request_id);
    entry->family->chunks = std::move(chunks_);
    SetVersion(*entry);
    store_.Use(tenant_, *entry, now_ms);
    return entry->session;
  }

 private:
  InMemorySessionStore& store_;
  const std::string tenant_;
  std::map<std::string, StoredChunk> chunks_;
  int64_t bytes_ = 0;
};

absl::StatusOr<std::unique_ptr<SessionImport>> InMemorySessionStore::ImportSession(
    const std::string& tenant, absl::Time) {
  return std::make_unique<Import>(*this, tenant);
}

absl::Status InMemorySessionStore::Sweep(absl::Time deadline) {
  const int64_t now_ms = absl::ToUnixMillis(clock_.Now());
  DropUnlisted(now_ms);
  RoundIdle(now_ms, deadline);
  DropUnlisted(now_ms);
  sync::MutexLock lock(mutex_);
  KeepToBudgets(now_ms);
  return absl::OkStatus();
}

void InMemorySessionStore::DropUnlisted(int64_t now_ms) {
  sync::MutexLock lock(mutex_);
  std::erase_if(entries_,
                [&](const auto& item) { return IsOver(item.second.expires_at_ms, now_ms); });
  std::map<Family*, std::set<std::string>> listed;
  const auto list = [](const snapshot::v1::Manifest& manifest, std::set<std::string>& digests) {
    for (const snapshot::v1::Chunk& chunk : manifest.chunks()) digests.insert(chunk.digest());
  };
  for (const auto& [key, entry] : entries_) {
    std::set<std::string>& digests = listed[entry.family.get()];
    for (const auto& stored : entry.turns) {
      if (stored->manifest != nullptr) list(*stored->manifest, digests);
    }
  }
  for (auto& [family, digests] : listed) {
    std::erase_if(family->staged,
                  [&](const auto& item) { return IsOver(item.second.expires_at_ms, now_ms); });
    for (const auto& [id, staged] : family->staged) list(*staged.manifest, digests);
    std::erase_if(family->chunks, [&, &digests = digests](const auto& item) {
      const bool waits =
          item.second.expires_at_ms != 0 && !IsOver(item.second.expires_at_ms, now_ms);
      return !waits && digests.count(item.first) == 0;
    });
  }
}

void InMemorySessionStore::RoundIdle(int64_t now_ms, absl::Time deadline) {
  if (options_.redis_budget_bytes == 0 || disk_budget_bytes_.has_value() || !options_.is_elastic) {
    return;
  }
  std::vector<FamilyUse> uses;
  {
    sync::MutexLock lock(mutex_);
    uses = FamiliesByUse(now_ms);
  }
  for (const FamilyUse& use : uses) {
    std::vector<Key> idle;
    {
      sync::MutexLock lock(mutex_);
      int64_t in_redis = 0;
      for (const FamilyUse& each : FamiliesByUse(now_ms)) in_redis += each.family->Bytes(false);
      if (in_redis <= options_.redis_budget_bytes) return;
      for (const auto& [key, entry] : entries_) {
        if (entry.family.get() == use.family && !entry.session.pinned() &&
            options_.is_elastic(key.first, entry.session)) {
          idle.push_back(key);
        }
      }
    }
    for (const Key& key : idle) {
      RoundIdleSession(*this, key.first, key.second, deadline).IgnoreError();
    }
    DropUnlisted(now_ms);
  }
}

int64_t InMemorySessionStore::Family::Bytes(bool on_disk) const {
  int64_t bytes = 0;
  for (const auto& [digest, chunk] : chunks) {
    if (chunk.expires_at_ms == 0 && chunk.is_on_disk == on_disk) {
      bytes += static_cast<int64_t>(chunk.payload.size());
    }
  }
  return bytes;
}

std::vector<InMemorySessionStore::FamilyUse> InMemorySessionStore::FamiliesByUse(int64_t now_ms) {
  std::map<Family*, FamilyUse> by_family;
  for (const auto& [key, entry] : entries_) {
    FamilyUse& use = by_family[entry.family.get()];
    use.family = entry.family.get();
    use.order = std::max(use.order, entry.order);
    use.is_pinned = use.is_pinned || entry.session.pinned();
    use.is_leased = use.is_leased || (entry.lease.token != 0 && entry.lease.until_ms > now_ms);
  }
  std::vector<FamilyUse> uses;
  for (const auto& [family, use] : by_family) uses.push_back(use);
  std::sort(uses.begin(), uses.end(),
            [](const FamilyUse& a, const FamilyUse& b) { return a.order < b.order; });
  return uses;
}

// As RedisTiers does, by payload bytes.
void InMemorySessionStore::KeepToBudgets(int64_t now_ms) {
  const std::vector<FamilyUse> uses = FamiliesByUse(now_ms);
  int64_t in_redis = 0;
  int64_t on_disk = 0;
  for (const FamilyUse& use : uses) {
    in_redis += use.family->Bytes(/*on_disk=*/false);
    on_disk += use.family->Bytes(/*on_disk=*/true);
  }
  const int64_t budget = options_.redis_budget_bytes;
  const bool has_disk = disk_budget_bytes_.has_value();
  const bool is_over = budget > 0 && in_redis > budget;
  for (const bool may_be_pinned : {false, true}) {
    if (!is_over || (may_be_pinned && !has_disk)) break;
    const int64_t limit = may_be_pinned || !has_disk ? budget : budget - budget / 8;
    for (const FamilyUse& use : uses) {
      if (in_redis <= limit) break;
      if (use.is_leased || (use.is_pinned && !may_be_pinned)) continue;
      const int64_t bytes = use.family->Bytes(/*on_disk=*/false);
      in_redis -= bytes;
      if (!has_disk) {
        DropSnapshots(use.family);
        continue;
      }
      on_disk += bytes;
      for (auto& [digest, chunk] : use.family->chunks) {
        if (chunk.expires_at_ms == 0) chunk.is_on_disk = true;
      }
    }
  }
  if (disk_budget_bytes_.value_or(0) == 0) return;
  for (const FamilyUse& use : uses) {
    if (on_disk <= *disk_budget_bytes_) break;
    const int64_t bytes = use.family->Bytes(/*on_disk=*/true);
    if (bytes == 0 || use.is_leased || use.is_pinned) continue;
    on_disk -= bytes;
    DropSnapshots(use.family);
  }
}

void InMemorySessionStore::DropSnapshots(const Family* family) {
  std::map<std::shared_ptr<const StoredTurn>, std::shared_ptr<const StoredTurn>> without;
  for (auto& [key, entry] : entries_) {
    if (entry.family.get() != family) continue;
    for (auto& turn : entry.turns) {
      if (turn->manifest == nullptr) continue;
      std::shared_ptr<const StoredTurn>& bare = without[turn];
      if (bare == nullptr) {
        auto copy = std::make_shared<StoredTurn>(*turn);
        copy->manifest = nullptr;
        bare = std::move(copy);
      }
      turn = bare;
    }
    entry.family->chunks.clear();
    SetVersion(entry);
  }
}

absl::Status InMemorySessionStore::CheckReady(absl::Time) { return absl::OkStatus(); }

}  // namespace mneme::memory
