#include "services/memory/in_memory_session_store.h"

#include <algorithm>
#include <functional>
#include <limits>

#include "common/status/status_macros.h"
#include "services/memory/session_errors.h"
#include "services/memory/session_history.h"

namespace mneme::memory {

template <typename Request>
InMemorySessionStore::Entry* InMemorySessionStore::Find(const Request& request, int64_t now_ms) {
  const auto found = entries_.find({request.tenant(), request.session_id()});
  if (found == entries_.end()) return nullptr;
  if (found->second.expires_at_ms != 0 && found->second.expires_at_ms <= now_ms) {
    entries_.erase(found);
    return nullptr;
  }
  return &found->second;
}

InMemorySessionStore::Entry& InMemorySessionStore::Make(const Key& key, int64_t now_ms) {
  Entry& entry = entries_[key];
  entry.session.set_session_id(key.second);
  entry.session.set_created_unix_ms(now_ms);
  return entry;
}

void InMemorySessionStore::Use(Entry& entry, int64_t now_ms) {
  entry.session.set_used_unix_ms(now_ms);
  entry.order = last_order_ = std::max(last_order_ + 1, now_ms * 1000);
  Prolong(entry);
}

void InMemorySessionStore::Prolong(Entry& entry) const {
  const int64_t ttl_seconds =
      entry.session.ttl_seconds() != 0 ? entry.session.ttl_seconds() : default_ttl_seconds_;
  entry.expires_at_ms =
      ttl_seconds == 0
          ? 0
          : std::max(entry.session.used_unix_ms() + ttl_seconds * 1000, entry.lease.until_ms);
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
    entry = &Make({request.tenant(), request.session_id()}, now_ms);
    entry->create_request_id = request.request_id();
    entry->session.set_model(request.model());
    entry->session.set_title(request.title());
    entry->session.set_ttl_seconds(request.ttl_seconds());
    if (request.has_memory_policy()) {
      *entry->session.mutable_memory_policy() = request.memory_policy();
    }
    Use(*entry, now_ms);
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
  for (const StoredTurn& stored : entry->turns) {
    AppendTurn(v1::Turn(stored.turn),
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
    if (entry.expires_at_ms != 0 && entry.expires_at_ms <= now_ms) continue;
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
      *response.mutable_committed() = entry->turns[version->second - 1].turn;
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
    entry = &Make({request.tenant(), request.session_id()}, now_ms);
    entry->session.set_model(request.model());
  }
  last_lease_token_ =
      std::max(last_lease_token_ + 1, static_cast<uint64_t>(absl::ToUnixMicros(now)));
  entry->lease = {.token = last_lease_token_,
                  .holder = request.holder(),
                  .request_id = request.request_id(),
                  .until_ms = now_ms + request.ttl_ms()};
  Use(*entry, now_ms);
  response.set_lease_token(last_lease_token_);
  *response.mutable_session() = entry->session;
  if (request.with_history()) {
    for (const StoredTurn& stored : entry->turns) {
      AppendTurn(v1::Turn(stored.turn), {.messages = true, .tokens = true}, &response);
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
  Prolong(*entry);
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
             entry->turns[parent].lease_token == request.lease_token() &&
             TurnPayload(entry->turns[parent].turn) == TurnPayload(turn)) {
    response.set_version(parent + 1);
  } else if (entry->lease.token != request.lease_token() || entry->lease.until_ms <= now_ms) {
    return LeaseLost(request.session_id(), request.lease_token());
  } else if (parent != session.version()) {
    return StaleVersion(request.session_id(), parent, session.version());
  } else {
    session.set_version(parent + 1);
    session.set_num_messages(session.num_messages() + turn.messages_size());
    session.set_num_tokens((turn.replaces_tokens() ? 0 : session.num_tokens()) +
                           turn.token_ids_size());
    StoredTurn& stored = entry->turns.emplace_back(StoredTurn{turn, request.lease_token()});
    stored.turn.set_version(session.version());
    stored.turn.set_committed_unix_ms(now_ms);
    if (!turn.request_id().empty()) {
      entry->versions_by_request_id[turn.request_id()] = session.version();
    }
    Use(*entry, now_ms);
    response.set_version(session.version());
  }
  if (request.release() && entry->lease.token == request.lease_token()) entry->lease = {};
  return response;
}

absl::Status InMemorySessionStore::CheckReady(absl::Time) { return absl::OkStatus(); }

}  // namespace mneme::memory
