#include "services/memory/redis_session_store.h"

#include <algorithm>
#include <map>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/status/status_macros.h"
#include "services/memory/redis_records.h"
#include "services/memory/session_errors.h"
#include "services/memory/session_history.h"

namespace mneme::memory {
namespace {

using redis::Reply;

constexpr char kYes[] = "1";
constexpr char kNo[] = "0";
constexpr int kMinListBatch = 64;
// How long a creation may take from entering the index to making the session.
constexpr absl::Duration kIndexGrace = absl::Minutes(1);
constexpr int kMakeAttempts = 4;

const char* Flag(bool value) { return value ? kYes : kNo; }

std::vector<std::string> NoArguments(const Family&) { return {}; }

absl::Status TooShort() { return absl::InternalError("a script's answer is too short"); }

// Seals a title; none stays none.
std::string SealedTitle(const Family& family, const std::string& title,
                        const std::string& session_id) {
  return title.empty() ? "" : family.SealTitle(title, session_id);
}

absl::Status BusyOf(const std::string& session_id, const Reply& reply) {
  ASSIGN_OR_RETURN(const int64_t remaining_ms, Number(reply, 2));
  return SessionBusy(session_id, reply.elements()[1].text(), absl::Milliseconds(remaining_ms));
}

absl::string_view LostReason(absl::string_view word) {
  if (word == "gone") return kStagedIsGone;
  if (word == "lease") return kStagedUnderOtherLease;
  if (word == "chunks") return kStagedChunksAreGone;
  return word;
}

}  // namespace

RedisSessionStore::RedisSessionStore(redis::Client& client, TenantKeys& keys, StoreOptions options,
                                     MemoryMetrics& metrics, DiskTier* disk)
    : options_(std::move(options)),
      directory_(client, keys, metrics.redis_errors()),
      promoter_(disk == nullptr ? nullptr
                                : std::make_unique<ChunkPromoter>(
                                      directory_, *disk, options_.redis_budget_bytes, metrics)),
      source_(directory_, disk, promoter_.get(), metrics),
      tiers_(directory_, options_, disk, promoter_.get(), metrics) {}

absl::StatusOr<Family> RedisSessionStore::Claim(const std::string& tenant,
                                                const std::string& session_id,
                                                const std::optional<Family>& candidate,
                                                absl::Time deadline) {
  const int64_t limit = options_.QuotaOf(tenant).max_sessions();
  absl::StatusOr<Family> family = directory_.Claim(tenant, session_id, candidate, limit, deadline);
  if (!absl::IsResourceExhausted(family.status()) || limit == 0) return family;
  // Some of those that are counted may have expired.
  RETURN_IF_ERROR(SweepIndex(tenant, deadline));
  return directory_.Claim(tenant, session_id, candidate, limit, deadline);
}

absl::Status RedisSessionStore::TakeBack(const Family& family, const std::string& session_id,
                                         absl::Time deadline) {
  return directory_.RunIn(family, directory_.scripts().remove, session_id, 0, {}, deadline)
      .status();
}

absl::StatusOr<FamilyDirectory::Ran> RedisSessionStore::Make(const std::string& tenant,
                                                             const std::string& session_id,
                                                             const std::optional<Family>& candidate,
                                                             const RunScript& run,
                                                             absl::Time deadline) {
  for (int attempt = 0; attempt < kMakeAttempts; ++attempt) {
    ASSIGN_OR_RETURN(const Family family, Claim(tenant, session_id, candidate, deadline));
    ASSIGN_OR_RETURN(Reply reply, run(family));
    if (Word(reply) == "rekeyed") {
      // What is left of it was sealed with a key that is destroyed.
      RETURN_IF_ERROR(
          directory_.RunOnFamily(family, directory_.scripts().drop, {}, deadline).status());
      continue;
    }
    Ran ran{.family = family, .reply = std::move(reply)};
    const absl::string_view word = ran.word();
    if (word != "made" && word != "granted") return ran;
    ASSIGN_OR_RETURN(const bool is_ours,
                     directory_.Touch(tenant, session_id, family.name(), "", deadline));
    if (is_ours) {
      if (word == "made") SweepSomeOfIndex(tenant, deadline);
      return ran;
    }
    RETURN_IF_ERROR(TakeBack(family, session_id, deadline));
  }
  return absl::UnavailableError(
      absl::StrCat("the session is being made and deleted by others, try again: ", session_id));
}

absl::StatusOr<FamilyDirectory::Ran> RedisSessionStore::MakeIn(const std::string& tenant,
                                                               const std::string& session_id,
                                                               const Family& family,
                                                               const RunScript& run,
                                                               absl::Time deadline) {
  for (int attempt = 0; attempt < kMakeAttempts; ++attempt) {
    bool is_elsewhere = false;
    const auto run_there = [&](const Family& claimed) -> absl::StatusOr<Reply> {
      is_elsewhere = claimed.name() != family.name();
      if (!is_elsewhere) return run(claimed);
      return directory_.RunIn(claimed, directory_.scripts().get, session_id, 0, {kNo}, deadline);
    };
    ASSIGN_OR_RETURN(const Ran ran, Make(tenant, session_id, family, run_there, deadline));
    if (!is_elsewhere) return ran;
    if (ran.word() != "missing") return SessionExists(session_id);
    ASSIGN_OR_RETURN(const std::vector<Reply> score,
                     directory_.RunPipeline(
                         {{"ZSCORE", FamilyDirectory::IndexKey(tenant), session_id}}, deadline));
    IndexEntry entry{.session_id = session_id, .family = ran.family->name(), .order = -1};
    if (double order = 0; absl::SimpleAtod(score[0].text(), &order)) {
      entry.order = static_cast<int64_t>(order);
    }
    directory_.Unlink(tenant, {entry}, absl::ZeroDuration(), deadline);
  }
  return absl::UnavailableError(
      absl::StrCat("the session is being made and deleted by others, try again: ", session_id));
}

// Returns those of some entries whose session is not there.
absl::StatusOr<std::vector<IndexEntry>> RedisSessionStore::WithoutSession(
    const std::string& tenant, std::vector<IndexEntry> entries, absl::Time deadline) {
  if (entries.empty()) return entries;
  redis::Command families = {"HMGET", FamilyDirectory::FamiliesKey(tenant)};
  for (const IndexEntry& entry : entries) families.push_back(entry.session_id);
  ASSIGN_OR_RETURN(const std::vector<Reply> names, directory_.RunPipeline({families}, deadline));
  if (names[0].elements().size() != entries.size()) return TooShort();
  std::vector<redis::Command> commands;
  std::vector<IndexEntry*> asked;
  std::vector<IndexEntry> missing;
  for (size_t i = 0; i < entries.size(); ++i) {
    entries[i].family = names[0].elements()[i].text();
    if (entries[i].family.empty()) {
      missing.push_back(entries[i]);
      continue;
    }
    absl::StatusOr<Family> family = directory_.FamilyOf(tenant, entries[i].family, deadline);
    if (absl::IsNotFound(family.status())) {
      missing.push_back(entries[i]);
      continue;
    }
    RETURN_IF_ERROR(family.status());
    commands.push_back({"EXISTS", family->HeadKey(entries[i].session_id)});
    asked.push_back(&entries[i]);
  }
  if (commands.empty()) return missing;
  ASSIGN_OR_RETURN(const std::vector<Reply> exist, directory_.RunPipeline(commands, deadline));
  for (size_t i = 0; i < asked.size(); ++i) {
    if (exist[i].Integer().value_or(1) == 0) missing.push_back(*asked[i]);
  }
  return missing;
}

void RedisSessionStore::SweepSomeOfIndex(const std::string& tenant, absl::Time deadline) {
  const auto sample = directory_.RunPipeline(
      {{"ZRANDMEMBER", FamilyDirectory::IndexKey(tenant), "4", "WITHSCORES"}}, deadline);
  if (!sample.ok()) return;
  std::vector<IndexEntry> entries;
  const std::vector<Reply>& pairs = (*sample)[0].elements();
  for (size_t i = 0; i + 1 < pairs.size(); i += 2) {
    double order = 0;
    if (!absl::SimpleAtod(pairs[i + 1].text(), &order)) return;
    entries.push_back({.session_id = pairs[i].text(), .order = static_cast<int64_t>(order)});
  }
  const auto gone = WithoutSession(tenant, std::move(entries), deadline);
  if (gone.ok()) directory_.Unlink(tenant, *gone, kIndexGrace, deadline);
}

absl::StatusOr<v1::CreateSessionResponse> RedisSessionStore::CreateSession(
    const v1::CreateSessionRequest& request, absl::Time deadline) {
  const auto create = [&](const Family& family) {
    return directory_.RunIn(
        family, directory_.scripts().create, request.session_id(),
        options_.TtlSecondsOf(request.tenant()),
        {request.model(), SealedTitle(family, request.title(), request.session_id()),
         request.memory_policy().SerializeAsString(), absl::StrCat(request.ttl_seconds()),
         request.request_id()},
        deadline);
  };
  ASSIGN_OR_RETURN(const Ran ran,
                   Make(request.tenant(), request.session_id(), std::nullopt, create, deadline));
  if (ran.word() == "exists") return SessionExists(request.session_id());
  if (ran.reply.elements().size() != 2) return TooShort();
  v1::CreateSessionResponse response;
  ASSIGN_OR_RETURN(*response.mutable_session(),
                   ParseSession(*ran.family, request.session_id(), ran.reply.elements()[1]));
  return response;
}

absl::StatusOr<v1::GetSessionResponse> RedisSessionStore::GetSession(
    const v1::GetSessionRequest& request, absl::Time deadline) {
  const HistoryParts parts = {.messages = request.with_messages(), .tokens = request.with_tokens()};
  const bool with_turns = parts.messages || parts.tokens;
  const auto arguments = [&](const Family&) { return std::vector<std::string>{Flag(with_turns)}; };
  ASSIGN_OR_RETURN(const Ran ran, RunOn(directory_.scripts().get, request, arguments, deadline));
  if (!ran.found()) return NoSuchSession(request.session_id());
  const std::vector<Reply>& answer = ran.reply.elements();
  if (answer.size() != 4) return TooShort();
  v1::GetSessionResponse response;
  ASSIGN_OR_RETURN(*response.mutable_session(),
                   ParseSession(*ran.family, request.session_id(), answer[1]));
  if (with_turns) {
    RETURN_IF_ERROR(AppendTurns(*ran.family, answer[2], answer[3], parts, &response));
  }
  return response;
}

absl::StatusOr<v1::ListSessionsResponse> RedisSessionStore::ListSessions(
    const v1::ListSessionsRequest& request, absl::Time deadline) {
  absl::StatusOr<v1::ListSessionsResponse> page = ListPage(request, deadline);
  if (!absl::IsDataLoss(page.status())) return page;
  // The tenant may have been forgotten, and have come back with another key.
  directory_.keys().Find(request.tenant(), /*again=*/true, deadline).status().IgnoreError();
  return ListPage(request, deadline);
}

absl::StatusOr<v1::ListSessionsResponse> RedisSessionStore::ListPage(
    const v1::ListSessionsRequest& request, absl::Time deadline) {
  const std::string& tenant = request.tenant();
  std::string before = "+inf";
  if (!request.page_token().empty()) {
    ASSIGN_OR_RETURN(const int64_t order, DecodePageToken(request.page_token()));
    before = absl::StrCat("(", order);
  }
  v1::ListSessionsResponse response;
  std::map<std::string, Family> families;
  int64_t last_order = 0;
  while (true) {
    // One more than the page: whether there is another page is known exactly.
    const int batch = std::max(request.page_size() + 1 - response.sessions_size(), kMinListBatch);
    ASSIGN_OR_RETURN(
        const std::vector<Reply> range,
        directory_.RunPipeline({{"ZREVRANGEBYSCORE", FamilyDirectory::IndexKey(tenant), before,
                                 "-inf", "WITHSCORES", "LIMIT", "0", absl::StrCat(batch)}},
                               deadline));
    const std::vector<Reply>& pairs = range[0].elements();
    if (pairs.empty()) return response;
    std::vector<IndexEntry> entries;
    redis::Command names = {"HMGET", FamilyDirectory::FamiliesKey(tenant)};
    for (size_t i = 0; i + 1 < pairs.size(); i += 2) {
      double order = 0;
      if (!absl::SimpleAtod(pairs[i + 1].text(), &order)) return Malformed(pairs[i].text());
      entries.push_back({.session_id = pairs[i].text(), .order = static_cast<int64_t>(order)});
      names.push_back(pairs[i].text());
    }
    ASSIGN_OR_RETURN(const std::vector<Reply> named, directory_.RunPipeline({names}, deadline));
    if (named[0].elements().size() != entries.size()) return TooShort();
    std::vector<redis::Command> commands;
    for (size_t i = 0; i < entries.size(); ++i) {
      entries[i].family = named[0].elements()[i].text();
      if (families.find(entries[i].family) == families.end()) {
        absl::StatusOr<Family> family = directory_.FamilyOf(tenant, entries[i].family, deadline);
        if (absl::IsNotFound(family.status())) return response;  // the tenant was forgotten
        RETURN_IF_ERROR(family.status());
        families.emplace(entries[i].family, *std::move(family));
      }
      // An entry without a family asks for a key that is never there.
      redis::Command fields = {"HMGET",
                               families.at(entries[i].family).HeadKey(entries[i].session_id)};
      for (const std::string& field : SessionFields()) fields.push_back(field);
      commands.push_back(std::move(fields));
    }
    ASSIGN_OR_RETURN(const std::vector<Reply> heads, directory_.RunPipeline(commands, deadline));
    std::vector<IndexEntry> gone;
    for (size_t i = 0; i < entries.size(); ++i) {
      if (heads[i].elements().empty() || heads[i].elements()[0].is_nil()) {
        gone.push_back(entries[i]);
        continue;
      }
      ASSIGN_OR_RETURN(v1::Session session, ParseSession(families.at(entries[i].family),
                                                         entries[i].session_id, heads[i]));
      if (!request.model().empty() && session.model() != request.model()) continue;
      if (response.sessions_size() == request.page_size()) {
        response.set_next_page_token(EncodePageToken(last_order));
        break;
      }
      *response.add_sessions() = std::move(session);
      last_order = entries[i].order;
    }
    directory_.Unlink(tenant, gone, kIndexGrace, deadline);
    const bool is_end = static_cast<int>(entries.size()) < batch;
    if (is_end || !response.next_page_token().empty()) return response;
    before = absl::StrCat("(", entries.back().order);
  }
}

absl::StatusOr<v1::DeleteSessionResponse> RedisSessionStore::DeleteSession(
    const v1::DeleteSessionRequest& request, absl::Time deadline) {
  const std::string& tenant = request.tenant();
  const std::string& session_id = request.session_id();
  // The entry goes only if it is still the one from before the deletion: the session may be made
  // again meanwhile.
  ASSIGN_OR_RETURN(
      const std::vector<Reply> read,
      directory_.RunPipeline({{"ZSCORE", FamilyDirectory::IndexKey(tenant), session_id},
                              {"HGET", FamilyDirectory::FamiliesKey(tenant), session_id}},
                             deadline));
  IndexEntry entry{.session_id = session_id, .family = read[1].text(), .order = -1};
  if (double order = 0; absl::SimpleAtod(read[0].text(), &order)) {
    entry.order = static_cast<int64_t>(order);
  }
  ASSIGN_OR_RETURN(const Ran ran,
                   RunOn(directory_.scripts().remove, request, NoArguments, deadline));
  directory_.Unlink(tenant, {entry}, absl::ZeroDuration(), deadline);
  if (!ran.found()) return NoSuchSession(session_id);
  if (ran.reply.elements().size() > 1 && ran.reply.elements()[1].text() == kYes) {
    directory_
        .Eval(directory_.scripts().drop_unused, FamilyDirectory::TenantKeysOf(tenant),
              {ran.family->name()}, deadline)
        .IgnoreError();
    tiers_.RemoveUnused(tenant, ran.family->name(), deadline);
  }
  return v1::DeleteSessionResponse();
}

absl::StatusOr<v1::AcquireLeaseResponse> RedisSessionStore::AcquireLease(
    const v1::AcquireLeaseRequest& request, absl::Time deadline) {
  const std::string& session_id = request.session_id();
  const auto arguments = [&](bool create) {
    return std::vector<std::string>{
        request.holder(),
        absl::StrCat(request.ttl_ms()),
        request.has_parent_version() ? absl::StrCat(request.parent_version()) : "",
        Flag(create),
        request.model(),
        request.request_id(),
        Flag(request.with_history()),
        Flag(request.idle())};
  };
  // Nearly always the session exists, and one step is enough.
  ASSIGN_OR_RETURN(Ran ran,
                   RunOn(
                       directory_.scripts().acquire, request,
                       [&](const Family&) { return arguments(/*create=*/false); }, deadline));
  const bool is_made = !ran.found() && request.create();
  if (is_made && request.has_parent_version() && request.parent_version() != 0) {
    return StaleVersion(session_id, request.parent_version(), 0);
  }
  if (is_made) {
    ASSIGN_OR_RETURN(ran, Make(
                              request.tenant(), session_id, std::nullopt,
                              [&](const Family& family) {
                                return directory_.RunIn(family, directory_.scripts().acquire,
                                                        session_id,
                                                        options_.TtlSecondsOf(request.tenant()),
                                                        arguments(/*create=*/true), deadline);
                              },
                              deadline));
  }
  if (!ran.found()) return NoSuchSession(session_id);
  const absl::string_view word = ran.word();
  const std::vector<Reply>& answer = ran.reply.elements();
  if (word == "stale") {
    ASSIGN_OR_RETURN(const int64_t head, Number(ran.reply, 1));
    return StaleVersion(session_id, request.parent_version(), head);
  }
  if (word == "busy") return BusyOf(session_id, ran.reply);
  if (answer.size() < 6) return TooShort();
  v1::AcquireLeaseResponse response;
  ASSIGN_OR_RETURN(*response.mutable_session(), ParseSession(*ran.family, session_id, answer[1]));
  if (word == "committed") {
    v1::Turn& turn = *response.mutable_committed();
    ASSIGN_OR_RETURN(turn, ParseTurn(*ran.family, session_id, answer[3].text(), answer[5].text()));
    ASSIGN_OR_RETURN(const TurnRecord record, ParseRecord(session_id, answer[4].text()));
    ASSIGN_OR_RETURN(const int64_t version, Number(ran.reply, 2));
    turn.set_version(version);
    turn.set_committed_unix_ms(record.committed_ms);
    turn.set_snapshot_tokens(record.snapshot_tokens);
    return response;
  }
  ASSIGN_OR_RETURN(const int64_t token, Number(ran.reply, 2));
  response.set_lease_token(token);
  if (request.with_history()) {
    RETURN_IF_ERROR(AppendTurns(*ran.family, answer[3], answer[4],
                                {.messages = true, .tokens = true}, &response));
  }
  response.set_executor(answer[5].text());
  ASSIGN_OR_RETURN(const int64_t snapshot_version, Number(ran.reply, 6));
  response.set_snapshot_version(snapshot_version);
  if (is_made) {
    SweepSomeOfIndex(request.tenant(), deadline);
  } else if (!request.idle()) {
    directory_.Touch(request.tenant(), session_id, ran.family->name(), "", deadline).IgnoreError();
  }
  return response;
}

absl::StatusOr<v1::RenewLeaseResponse> RedisSessionStore::RenewLease(
    const v1::RenewLeaseRequest& request, absl::Time deadline) {
  const auto arguments = [&](const Family&) {
    return std::vector<std::string>{absl::StrCat(request.lease_token()),
                                    absl::StrCat(request.ttl_ms())};
  };
  ASSIGN_OR_RETURN(const Ran ran, RunOn(directory_.scripts().renew, request, arguments, deadline));
  if (!ran.found()) return NoSuchSession(request.session_id());
  if (ran.word() == "lost") return LeaseLost(request.session_id(), request.lease_token());
  return v1::RenewLeaseResponse();
}

absl::StatusOr<v1::ReleaseLeaseResponse> RedisSessionStore::ReleaseLease(
    const v1::ReleaseLeaseRequest& request, absl::Time deadline) {
  const auto arguments = [&](const Family&) {
    return std::vector<std::string>{absl::StrCat(request.lease_token())};
  };
  RETURN_IF_ERROR(RunOn(directory_.scripts().release, request, arguments, deadline).status());
  return v1::ReleaseLeaseResponse();
}

absl::StatusOr<v1::CommitTurnResponse> RedisSessionStore::CommitTurn(
    const v1::CommitTurnRequest& request, absl::Time deadline) {
  const v1::Turn& turn = request.turn();
  const std::string payload = TurnPayload(turn);
  std::string turn_id = request.snapshot_id();
  bool has_snapshot = !turn_id.empty();
  v1::CommitTurnResponse response;
  while (true) {
    if (turn_id.empty()) turn_id = NewTurnId();
    const auto arguments = [&](const Family& family) {
      return std::vector<std::string>{absl::StrCat(request.lease_token()),
                                      absl::StrCat(request.parent_version()),
                                      turn_id,
                                      family.SealText(payload, turn_id),
                                      family.TurnMark(payload),
                                      absl::StrCat(turn.messages_size()),
                                      absl::StrCat(turn.token_ids_size()),
                                      Flag(turn.replaces_tokens()),
                                      turn.request_id(),
                                      Flag(request.release()),
                                      Flag(has_snapshot),
                                      request.executor()};
    };
    ASSIGN_OR_RETURN(const Ran ran,
                     RunOn(directory_.scripts().commit, request, arguments, deadline));
    if (!ran.found()) return NoSuchSession(request.session_id());
    const absl::string_view word = ran.word();
    if (word == "lost") return LeaseLost(request.session_id(), request.lease_token());
    if (word == "taken") {
      // A snapshot belongs to one turn; this one was committed with another.
      if (has_snapshot) response.set_snapshot_lost_reason(std::string(kStagedIsGone));
      turn_id.clear();
      has_snapshot = false;
      continue;
    }
    ASSIGN_OR_RETURN(const int64_t version, Number(ran.reply, 1));
    if (word == "stale") {
      return StaleVersion(request.session_id(), request.parent_version(), version);
    }
    response.set_version(version);
    if (ran.reply.elements().size() < 4) return TooShort();
    const std::string& reason = ran.reply.elements()[2].text();
    if (!reason.empty()) response.set_snapshot_lost_reason(std::string(LostReason(reason)));
    if (word != "committed") return response;
    directory_
        .Touch(request.tenant(), request.session_id(), ran.family->name(),
               has_snapshot ? ran.reply.elements()[3].text() : "", deadline)
        .IgnoreError();
    return response;
  }
}

absl::StatusOr<v1::ForkSessionResponse> RedisSessionStore::ForkSession(
    const v1::ForkSessionRequest& request, absl::Time deadline) {
  const std::string& new_id = request.new_session_id();
  const auto plain_get = [](const Family&) { return std::vector<std::string>{kNo}; };
  ASSIGN_OR_RETURN(const Ran source, RunOn(directory_.scripts().get, request, plain_get, deadline));
  if (!source.found()) return NoSuchSession(request.session_id());
  if (source.reply.elements().size() < 2) return TooShort();
  ASSIGN_OR_RETURN(const v1::Session parent,
                   ParseSession(*source.family, request.session_id(), source.reply.elements()[1]));
  if (request.has_version() && request.version() > parent.version()) {
    return NoSuchVersion(request.session_id(), request.version());
  }
  const std::string& title = request.title().empty() ? parent.title() : request.title();
  const auto fork = [&](const Family& family) {
    std::vector<std::string> keys = family.Keys(request.session_id());
    const std::vector<std::string> own = family.Keys(new_id);
    keys.insert(keys.end(), own.begin() + 2, own.end());
    return directory_.Eval(directory_.scripts().fork, keys,
                           {family.key_id(), request.session_id(),
                            absl::StrCat(options_.TtlSecondsOf(request.tenant())),
                            request.has_version() ? absl::StrCat(request.version()) : "", new_id,
                            request.request_id(), SealedTitle(family, title, new_id)},
                           deadline);
  };
  ASSIGN_OR_RETURN(const Ran ran, MakeIn(request.tenant(), new_id, *source.family, fork, deadline));
  const absl::string_view word = ran.word();
  if (word == "missing") return NoSuchSession(request.session_id());
  if (word == "range") return NoSuchVersion(request.session_id(), request.version());
  if (word == "exists") return SessionExists(new_id);
  if (ran.reply.elements().size() != 2) return TooShort();
  v1::ForkSessionResponse response;
  ASSIGN_OR_RETURN(*response.mutable_session(),
                   ParseSession(*ran.family, new_id, ran.reply.elements()[1]));
  return response;
}

absl::StatusOr<v1::RewindSessionResponse> RedisSessionStore::RewindSession(
    const v1::RewindSessionRequest& request, absl::Time deadline) {
  const auto arguments = [&](const Family&) {
    return std::vector<std::string>{absl::StrCat(request.version())};
  };
  ASSIGN_OR_RETURN(const Ran ran, RunOn(directory_.scripts().rewind, request, arguments, deadline));
  if (!ran.found()) return NoSuchSession(request.session_id());
  if (ran.word() == "busy") return BusyOf(request.session_id(), ran.reply);
  if (ran.word() == "range") return NoSuchVersion(request.session_id(), request.version());
  if (ran.reply.elements().size() != 2) return TooShort();
  v1::RewindSessionResponse response;
  ASSIGN_OR_RETURN(*response.mutable_session(),
                   ParseSession(*ran.family, request.session_id(), ran.reply.elements()[1]));
  directory_.Touch(request.tenant(), request.session_id(), ran.family->name(), "", deadline)
      .IgnoreError();
  return response;
}

absl::StatusOr<v1::UpdateSessionResponse> RedisSessionStore::UpdateSession(
    const v1::UpdateSessionRequest& request, absl::Time deadline) {
  const auto arguments = [&](const Family& family) {
    std::vector<std::string> fields;
    const auto set = [&fields](const char* name, std::string value) {
      fields.push_back(name);
      fields.push_back(std::move(value));
    };
    if (request.has_title()) {
      set("title", SealedTitle(family, request.title(), request.session_id()));
    }
    if (request.has_ttl_seconds()) set("ttl_s", absl::StrCat(request.ttl_seconds()));
    if (request.has_pinned()) set("pinned", Flag(request.pinned()));
    if (request.has_memory_policy()) {
      set("policy", request.memory_policy().SerializeAsString());
    }
    return fields;
  };
  ASSIGN_OR_RETURN(const Ran ran, RunOn(directory_.scripts().update, request, arguments, deadline));
  if (!ran.found()) return NoSuchSession(request.session_id());
  if (ran.reply.elements().size() != 2) return TooShort();
  v1::UpdateSessionResponse response;
  ASSIGN_OR_RETURN(*response.mutable_session(),
                   ParseSession(*ran.family, request.session_id(), ran.reply.elements()[1]));
  return response;
}

absl::Status RedisSessionStore::CheckReady(absl::Time deadline) {
  RETURN_IF_ERROR(directory_.client().Ping(deadline));
  return directory_.keys().Check(deadline);
}

}  // namespace mneme::memory
