#include "services/memory/redis_session_store.h"

#include <algorithm>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/status/status_macros.h"
#include "services/memory/session_errors.h"
#include "services/memory/session_history.h"

namespace mneme::memory {
namespace {

using redis::Reply;

constexpr char kYes[] = "1";
constexpr char kNo[] = "0";
constexpr int kSweptEntries = 4;
constexpr int kMinListBatch = 64;
// How long a creation may take from entering the index to making the session.
constexpr absl::Duration kIndexGrace = absl::Minutes(1);

const char* Flag(bool value) { return value ? kYes : kNo; }

// The braces make Redis Cluster keep a session's keys together. '/' cannot be in either identifier,
// so that no tenant can name another's key.
std::string SessionKey(absl::string_view tenant, absl::string_view session_id,
                       absl::string_view name) {
  return absl::StrCat("mneme:1:{", tenant, "/", session_id, "}:", name);
}

template <typename Request>
std::vector<std::string> SessionKeys(const Request& request) {
  std::vector<std::string> keys;
  for (const char* name : {"head", "turns", "requests", "fence"}) {
    keys.push_back(SessionKey(request.tenant(), request.session_id(), name));
  }
  return keys;
}

std::string IndexKey(absl::string_view tenant) {
  return absl::StrCat("mneme:1:{", tenant, "}:sessions");
}

absl::Status Malformed(absl::string_view session_id) {
  return absl::DataLossError(absl::StrCat(
      "what Redis holds of the session is damaged, was a key evicted or written by hand? "
      "maxmemory-policy must be noeviction: ",
      session_id));
}

// The first word of a script's answer.
absl::string_view Word(const Reply& reply) {
  return reply.elements().empty() ? absl::string_view() : reply.elements()[0].text();
}

// Returns element `i` of a script's answer as a number.
absl::StatusOr<int64_t> Number(const Reply& reply, size_t i) {
  if (i >= reply.elements().size()) return absl::InternalError("a script's answer is too short");
  return reply.elements()[i].Integer();
}

// Reads the head's fields as the scripts' session() returns them.
absl::StatusOr<v1::Session> ParseSession(const std::string& session_id, const Reply& reply) {
  const std::vector<Reply>& fields = reply.elements();
  if (fields.size() != 9) return Malformed(session_id);
  v1::Session session;
  session.set_session_id(session_id);
  session.set_model(fields[1].text());
  session.set_title(fields[6].text());
  int64_t numbers[6];
  const int positions[6] = {0, 2, 3, 4, 5, 8};
  for (int i = 0; i < 6; ++i) {
    const absl::StatusOr<int64_t> number = fields[positions[i]].Integer();
    if (!number.ok()) return Malformed(session_id);
    numbers[i] = *number;
  }
  session.set_version(numbers[0]);
  session.set_created_unix_ms(numbers[1]);
  session.set_used_unix_ms(numbers[2]);
  session.set_num_messages(static_cast<int32_t>(numbers[3]));
  session.set_num_tokens(numbers[4]);
  session.set_ttl_seconds(numbers[5]);
  if (!fields[7].text().empty() &&
      !session.mutable_memory_policy()->ParseFromString(fields[7].text())) {
    return Malformed(session_id);
  }
  return session;
}

// Reads an element of the turns list: "version:committed_ms:lease_token:" and the turn's bytes.
absl::StatusOr<v1::Turn> ParseTurn(const std::string& session_id, absl::string_view stored) {
  uint64_t numbers[3];
  for (uint64_t& number : numbers) {
    const size_t colon = stored.find(':');
    if (colon == absl::string_view::npos || !absl::SimpleAtoi(stored.substr(0, colon), &number)) {
      return Malformed(session_id);
    }
    stored.remove_prefix(colon + 1);
  }
  v1::Turn turn;
  if (!turn.ParseFromArray(stored.data(), static_cast<int>(stored.size()))) {
    return Malformed(session_id);
  }
  turn.set_version(numbers[0]);
  turn.set_committed_unix_ms(static_cast<int64_t>(numbers[1]));
  return turn;
}

// Adds all turns of a session to a response; the list must reach from version 1 to the head.
template <typename Response>
absl::Status AppendTurns(const Reply& turns, HistoryParts parts, Response* response) {
  const v1::Session& session = response->session();
  if (turns.elements().size() != session.version()) return Malformed(session.session_id());
  uint64_t version = 0;
  for (const Reply& stored : turns.elements()) {
    ASSIGN_OR_RETURN(v1::Turn turn, ParseTurn(session.session_id(), stored.text()));
    if (turn.version() != ++version) return Malformed(session.session_id());
    AppendTurn(std::move(turn), parts, response);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Reply> RedisSessionStore::Eval(const redis::Script& script,
                                              const std::vector<std::string>& keys,
                                              const std::vector<redis::Argument>& arguments,
                                              absl::Time deadline) {
  absl::StatusOr<Reply> reply = client_.Eval(script, keys, arguments, deadline);
  if (!reply.ok()) redis_errors_.Increment();
  return reply;
}

absl::StatusOr<std::vector<Reply>> RedisSessionStore::RunPipeline(
    const std::vector<redis::Command>& commands, absl::Time deadline) {
  absl::StatusOr<std::vector<Reply>> replies = client_.RunPipeline(commands, deadline);
  absl::Status status = replies.status();
  if (replies.ok()) {
    for (const Reply& reply : *replies) status.Update(reply.status());
  }
  if (status.ok()) return replies;
  redis_errors_.Increment();
  return status;
}

absl::Status RedisSessionStore::AddToIndex(const std::string& tenant, const std::string& session_id,
                                           absl::Time deadline) {
  return Eval(scripts_.touch_index, {IndexKey(tenant)}, {session_id, kYes}, deadline).status();
}

void RedisSessionStore::MoveInIndex(const std::string& tenant, const std::string& session_id,
                                    absl::Time deadline) {
  Eval(scripts_.touch_index, {IndexKey(tenant)}, {session_id, kNo}, deadline).IgnoreError();
}

void RedisSessionStore::DropFromIndex(const std::string& tenant,
                                      const std::vector<IndexEntry>& entries,
                                      absl::Duration min_age, absl::Time deadline) {
  if (entries.empty()) return;
  std::vector<redis::Argument> arguments = {absl::StrCat(absl::ToInt64Microseconds(min_age))};
  for (const IndexEntry& entry : entries) {
    arguments.push_back(entry.session_id);
    arguments.push_back(absl::StrCat(entry.order));
  }
  Eval(scripts_.drop_from_index, {IndexKey(tenant)}, arguments, deadline).IgnoreError();
}

void RedisSessionStore::SweepIndex(const std::string& tenant, absl::Time deadline) {
  const auto sample = RunPipeline(
      {{"ZRANDMEMBER", IndexKey(tenant), absl::StrCat(kSweptEntries), "WITHSCORES"}}, deadline);
  if (!sample.ok()) return;
  std::vector<IndexEntry> entries;
  std::vector<redis::Command> commands;
  const std::vector<Reply>& pairs = (*sample)[0].elements();
  for (size_t i = 0; i + 1 < pairs.size(); i += 2) {
    double order = 0;
    if (!absl::SimpleAtod(pairs[i + 1].text(), &order)) return;
    entries.push_back({pairs[i].text(), static_cast<int64_t>(order)});
    commands.push_back({"EXISTS", SessionKey(tenant, pairs[i].text(), "head")});
  }
  const auto exist = RunPipeline(commands, deadline);
  if (!exist.ok()) return;
  std::vector<IndexEntry> gone;
  for (size_t i = 0; i < entries.size(); ++i) {
    if ((*exist)[i].Integer().value_or(1) == 0) gone.push_back(entries[i]);
  }
  DropFromIndex(tenant, gone, kIndexGrace, deadline);
}

absl::StatusOr<v1::CreateSessionResponse> RedisSessionStore::CreateSession(
    const v1::CreateSessionRequest& request, absl::Time deadline) {
  RETURN_IF_ERROR(AddToIndex(request.tenant(), request.session_id(), deadline));
  ASSIGN_OR_RETURN(
      const Reply reply,
      Eval(scripts_.create, SessionKeys(request),
           {request.model(), request.title(), request.memory_policy().SerializeAsString(),
            absl::StrCat(request.ttl_seconds()), request.request_id(),
            absl::StrCat(default_ttl_seconds_)},
           deadline));
  if (Word(reply) == "exists") return SessionExists(request.session_id());
  if (reply.elements().size() != 2) return absl::InternalError("a script's answer is too short");
  v1::CreateSessionResponse response;
  ASSIGN_OR_RETURN(*response.mutable_session(),
                   ParseSession(request.session_id(), reply.elements()[1]));
  if (Word(reply) == "made") {
    MoveInIndex(request.tenant(), request.session_id(), deadline);
    SweepIndex(request.tenant(), deadline);
  }
  return response;
}

absl::StatusOr<v1::GetSessionResponse> RedisSessionStore::GetSession(
    const v1::GetSessionRequest& request, absl::Time deadline) {
  const HistoryParts parts = {.messages = request.with_messages(), .tokens = request.with_tokens()};
  const bool with_turns = parts.messages || parts.tokens;
  ASSIGN_OR_RETURN(const Reply reply,
                   Eval(scripts_.get, SessionKeys(request), {Flag(with_turns)}, deadline));
  if (Word(reply) == "missing") return NoSuchSession(request.session_id());
  if (reply.elements().size() != 3) return absl::InternalError("a script's answer is too short");
  v1::GetSessionResponse response;
  ASSIGN_OR_RETURN(*response.mutable_session(),
                   ParseSession(request.session_id(), reply.elements()[1]));
  if (with_turns) RETURN_IF_ERROR(AppendTurns(reply.elements()[2], parts, &response));
  return response;
}

absl::StatusOr<v1::ListSessionsResponse> RedisSessionStore::ListSessions(
    const v1::ListSessionsRequest& request, absl::Time deadline) {
  std::string before = "+inf";
  if (!request.page_token().empty()) {
    ASSIGN_OR_RETURN(const int64_t order, DecodePageToken(request.page_token()));
    before = absl::StrCat("(", order);
  }
  v1::ListSessionsResponse response;
  int64_t last_order = 0;
  while (true) {
    // One more than the page: whether there is another page is known exactly.
    const int batch = std::max(request.page_size() + 1 - response.sessions_size(), kMinListBatch);
    ASSIGN_OR_RETURN(const std::vector<Reply> range,
                     RunPipeline({{"ZREVRANGEBYSCORE", IndexKey(request.tenant()), before, "-inf",
                                   "WITHSCORES", "LIMIT", "0", absl::StrCat(batch)}},
                                 deadline));
    const std::vector<Reply>& pairs = range[0].elements();
    std::vector<IndexEntry> entries;
    std::vector<redis::Command> commands;
    for (size_t i = 0; i + 1 < pairs.size(); i += 2) {
      double order = 0;
      if (!absl::SimpleAtod(pairs[i + 1].text(), &order)) return Malformed(pairs[i].text());
      entries.push_back({pairs[i].text(), static_cast<int64_t>(order)});
      commands.push_back({"HMGET", SessionKey(request.tenant(), pairs[i].text(), "head"), "version",
                          "model", "created_ms", "used_ms", "messages", "tokens", "title", "policy",
                          "ttl_s"});
    }
    ASSIGN_OR_RETURN(const std::vector<Reply> heads, RunPipeline(commands, deadline));
    std::vector<IndexEntry> gone;
    for (size_t i = 0; i < entries.size(); ++i) {
      if (heads[i].elements().empty() || heads[i].elements()[0].is_nil()) {
        gone.push_back(entries[i]);
        continue;
      }
      ASSIGN_OR_RETURN(v1::Session session, ParseSession(entries[i].session_id, heads[i]));
      if (!request.model().empty() && session.model() != request.model()) continue;
      if (response.sessions_size() == request.page_size()) {
        response.set_next_page_token(EncodePageToken(last_order));
        break;
      }
      *response.add_sessions() = std::move(session);
      last_order = entries[i].order;
    }
    DropFromIndex(request.tenant(), gone, kIndexGrace, deadline);
    const bool is_end = static_cast<int>(entries.size()) < batch;
    if (is_end || !response.next_page_token().empty()) return response;
    before = absl::StrCat("(", entries.back().order);
  }
}

absl::StatusOr<v1::DeleteSessionResponse> RedisSessionStore::DeleteSession(
    const v1::DeleteSessionRequest& request, absl::Time deadline) {
  // The entry goes only if it is still the one from before the deletion: the session may be made
  // again meanwhile.
  ASSIGN_OR_RETURN(
      const std::vector<Reply> entry,
      RunPipeline({{"ZSCORE", IndexKey(request.tenant()), request.session_id()}}, deadline));
  ASSIGN_OR_RETURN(const Reply reply, Eval(scripts_.remove, SessionKeys(request), {}, deadline));
  if (double order = 0; absl::SimpleAtod(entry[0].text(), &order)) {
    DropFromIndex(request.tenant(), {{request.session_id(), static_cast<int64_t>(order)}},
                  absl::ZeroDuration(), deadline);
  }
  if (Word(reply) == "missing") return NoSuchSession(request.session_id());
  return v1::DeleteSessionResponse();
}

absl::StatusOr<Reply> RedisSessionStore::EvalAcquire(const v1::AcquireLeaseRequest& request,
                                                     bool create, absl::Time deadline) {
  return Eval(scripts_.acquire, SessionKeys(request),
              {request.holder(), absl::StrCat(request.ttl_ms()),
               request.has_parent_version() ? absl::StrCat(request.parent_version()) : "",
               Flag(create), request.model(), request.request_id(), Flag(request.with_history()),
               absl::StrCat(default_ttl_seconds_)},
              deadline);
}

absl::StatusOr<v1::AcquireLeaseResponse> RedisSessionStore::AcquireLease(
    const v1::AcquireLeaseRequest& request, absl::Time deadline) {
  const std::string& session_id = request.session_id();
  // Nearly always the session exists, and one step is enough.
  ASSIGN_OR_RETURN(Reply reply, EvalAcquire(request, /*create=*/false, deadline));
  bool is_made = false;
  if (Word(reply) == "missing" && request.create()) {
    RETURN_IF_ERROR(AddToIndex(request.tenant(), session_id, deadline));
    ASSIGN_OR_RETURN(reply, EvalAcquire(request, /*create=*/true, deadline));
    is_made = true;
  }
  const absl::string_view word = Word(reply);
  if (word == "missing") return NoSuchSession(session_id);
  if (word == "stale") {
    ASSIGN_OR_RETURN(const int64_t head, Number(reply, 1));
    return StaleVersion(session_id, request.parent_version(), head);
  }
  if (word == "busy") {
    ASSIGN_OR_RETURN(const int64_t remaining_ms, Number(reply, 2));
    return SessionBusy(session_id, reply.elements()[1].text(), absl::Milliseconds(remaining_ms));
  }
  if (reply.elements().size() < 3) return absl::InternalError("a script's answer is too short");
  v1::AcquireLeaseResponse response;
  ASSIGN_OR_RETURN(*response.mutable_session(), ParseSession(session_id, reply.elements()[1]));
  if (word == "committed") {
    ASSIGN_OR_RETURN(*response.mutable_committed(),
                     ParseTurn(session_id, reply.elements()[2].text()));
    return response;
  }
  ASSIGN_OR_RETURN(const int64_t token, Number(reply, 2));
  response.set_lease_token(token);
  if (request.with_history()) {
    RETURN_IF_ERROR(
        AppendTurns(reply.elements()[3], {.messages = true, .tokens = true}, &response));
  }
  MoveInIndex(request.tenant(), session_id, deadline);
  if (is_made) SweepIndex(request.tenant(), deadline);
  return response;
}

absl::StatusOr<v1::RenewLeaseResponse> RedisSessionStore::RenewLease(
    const v1::RenewLeaseRequest& request, absl::Time deadline) {
  ASSIGN_OR_RETURN(const Reply reply,
                   Eval(scripts_.renew, SessionKeys(request),
                        {absl::StrCat(request.lease_token()), absl::StrCat(request.ttl_ms()),
                         absl::StrCat(default_ttl_seconds_)},
                        deadline));
  if (Word(reply) == "missing") return NoSuchSession(request.session_id());
  if (Word(reply) == "lost") return LeaseLost(request.session_id(), request.lease_token());
  return v1::RenewLeaseResponse();
}

absl::StatusOr<v1::ReleaseLeaseResponse> RedisSessionStore::ReleaseLease(
    const v1::ReleaseLeaseRequest& request, absl::Time deadline) {
  RETURN_IF_ERROR(
      Eval(scripts_.release, SessionKeys(request), {absl::StrCat(request.lease_token())}, deadline)
          .status());
  return v1::ReleaseLeaseResponse();
}

absl::StatusOr<v1::CommitTurnResponse> RedisSessionStore::CommitTurn(
    const v1::CommitTurnRequest& request, absl::Time deadline) {
  const v1::Turn& turn = request.turn();
  ASSIGN_OR_RETURN(
      const Reply reply,
      Eval(scripts_.commit, SessionKeys(request),
           {absl::StrCat(request.lease_token()), absl::StrCat(request.parent_version()),
            TurnPayload(turn), absl::StrCat(turn.messages_size()),
            absl::StrCat(turn.token_ids_size()), Flag(turn.replaces_tokens()), turn.request_id(),
            Flag(request.release()), absl::StrCat(default_ttl_seconds_)},
           deadline));
  const absl::string_view word = Word(reply);
  if (word == "missing") return NoSuchSession(request.session_id());
  if (word == "lost") return LeaseLost(request.session_id(), request.lease_token());
  ASSIGN_OR_RETURN(const int64_t version, Number(reply, 1));
  if (word == "stale") return StaleVersion(request.session_id(), request.parent_version(), version);
  if (word == "committed") MoveInIndex(request.tenant(), request.session_id(), deadline);
  v1::CommitTurnResponse response;
  response.set_version(version);
  return response;
}

absl::Status RedisSessionStore::CheckReady(absl::Time deadline) { return client_.Ping(deadline); }

}  // namespace mneme::memory
