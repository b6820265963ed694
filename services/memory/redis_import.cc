// RedisSessionStore's half of exports and imports.
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status/status_macros.h"
#include "services/memory/redis_chunks.h"
#include "services/memory/redis_records.h"
#include "services/memory/redis_session_store.h"
#include "services/memory/session_errors.h"
#include "services/memory/session_history.h"

namespace mneme::memory {
namespace {

using redis::Reply;

}  // namespace

absl::StatusOr<WholeSession> RedisSessionStore::ReadSession(const std::string& tenant,
                                                            const std::string& session_id,
                                                            absl::Time deadline) {
  v1::GetSessionRequest request;
  request.set_tenant(tenant);
  request.set_session_id(session_id);
  const auto with_turns = [](const Family&) { return std::vector<std::string>{"1"}; };
  ASSIGN_OR_RETURN(const Ran ran, RunOn(directory_.scripts().get, request, with_turns, deadline));
  if (!ran.found()) return NoSuchSession(session_id);
  const Family& family = *ran.family;
  const std::vector<Reply>& answer = ran.reply.elements();
  if (answer.size() != 4) return absl::InternalError("a script's answer is too short");
  WholeSession whole;
  ASSIGN_OR_RETURN(whole.session, ParseSession(family, session_id, answer[1]));
  const std::vector<Reply>& ids = answer[2].elements();
  const std::vector<Reply>& texts = answer[3].elements();
  if (ids.size() != whole.session.version() || texts.size() != ids.size()) {
    return Malformed(session_id);
  }
  if (ids.empty()) return whole;
  redis::Command manifests = {"HMGET", family.BodiesKey()};
  redis::Command records = {"HMGET", family.BodiesKey()};
  for (const Reply& id : ids) {
    manifests.push_back(absl::StrCat("m", id.text()));
    records.push_back(absl::StrCat("h", id.text()));
  }
  ASSIGN_OR_RETURN(const std::vector<Reply> bodies,
                   directory_.RunPipeline({manifests, records}, deadline));
  for (size_t i = 0; i < ids.size(); ++i) {
    WholeSession::Turn& turn = whole.turns.emplace_back();
    ASSIGN_OR_RETURN(turn.turn, ParseTurn(family, session_id, ids[i].text(), texts[i].text()));
    ASSIGN_OR_RETURN(const TurnRecord record,
                     ParseRecord(session_id, bodies[1].elements()[i].text()));
    turn.turn.set_version(i + 1);
    turn.turn.set_committed_unix_ms(record.committed_ms);
    const std::string& sealed = bodies[0].elements()[i].text();
    if (sealed.empty()) continue;
    ASSIGN_OR_RETURN(turn.manifest, ParseManifest(family, session_id, ids[i].text(), sealed));
  }
  return whole;
}

// Chunks go into a family that no session is in yet, where they expire by themselves; the last step
// makes the session there, at once.
class RedisSessionStore::Import final : public SessionImport {
 public:
  Import(RedisSessionStore& store, const std::string& tenant, const Family& family,
         int64_t kv_bytes, absl::Time deadline)
      : store_(store),
        tenant_(tenant),
        family_(family),
        deadline_(deadline),
        writer_(
            store.directory_, store.options_, tenant, family, kv_bytes,
            // Nobody else knows the family yet.
            [](const std::vector<std::string>& names) {
              return std::vector(names.size(), ChunkWriter::Presence::kNone);
            },
            deadline) {}

  absl::Status Add(v1::ChunkPayload chunk) override { return writer_.Add(std::move(chunk)); }

  absl::StatusOr<v1::Session> Finish(WholeSession whole) override {
    RETURN_IF_ERROR(writer_.Flush());
    const v1::Session& session = whole.session;
    const std::string& id = session.session_id();
    std::vector<std::string> arguments = {
        session.model(),
        session.title().empty() ? "" : family_.SealTitle(session.title(), id),
        session.memory_policy().SerializeAsString(),
        absl::StrCat(session.ttl_seconds()),
        absl::StrCat(session.created_unix_ms()),
        session.pinned() ? "1" : "0",
        ""};
    const size_t chunks_at = arguments.size() - 1;
    std::set<std::string> listed;
    int64_t num_messages = 0;
    int64_t num_tokens = 0;
    uint64_t snapshot_version = 0;
    for (const WholeSession::Turn& turn : whole.turns) {
      const std::string turn_id = NewTurnId();
      num_messages += turn.turn.messages_size();
      num_tokens = (turn.turn.replaces_tokens() ? 0 : num_tokens) + turn.turn.token_ids_size();
      std::string manifest;
      std::string covers = "0 0";
      if (turn.manifest.has_value()) {
        snapshot_version = turn.turn.version();
        covers = absl::StrCat(turn.manifest->num_tokens(), " ", PayloadBytes(*turn.manifest));
        manifest = family_.SealManifest(turn.manifest->SerializeAsString(), turn_id);
        snapshot::v1::Manifest unseen;
        for (const snapshot::v1::Chunk& chunk : turn.manifest->chunks()) {
          if (listed.insert(chunk.digest()).second) *unseen.add_chunks() = chunk;
        }
        absl::StrAppend(&arguments[chunks_at], ChunkList(family_, unseen));
      }
      const std::string payload = TurnPayload(turn.turn);
      arguments.push_back(turn_id);
      arguments.push_back(family_.SealText(payload, turn_id));
      // No lease: nobody can say that this turn was theirs and its answer was lost.
      arguments.push_back(absl::StrCat(
          turn.turn.committed_unix_ms(), " 0 ", family_.TurnMark(payload), " ", num_messages, " ",
          num_tokens, " ", snapshot_version, " ", covers, " ", turn.turn.request_id()));
      arguments.push_back(std::move(manifest));
      arguments.push_back(turn.turn.request_id());
    }
    const auto take_in = [&](const Family& family) {
      return store_.directory_.RunIn(family, store_.directory_.scripts().take_in, id,
                                     store_.options_.TtlSecondsOf(tenant_), arguments, deadline_);
    };
    ASSIGN_OR_RETURN(const Ran ran, store_.MakeIn(tenant_, id, family_, take_in, deadline_));
    if (ran.word() == "exists") return SessionExists(id);
    if (ran.word() == "unknown") {
      return absl::DataLossError("the session file lists a chunk that it does not hold");
    }
    if (ran.reply.elements().size() != 3) {
      return absl::InternalError("a script's answer is too short");
    }
    store_.directory_
        .Eval(store_.directory_.scripts().use, FamilyDirectory::TenantKeysOf(tenant_),
              {family_.name(), ran.reply.elements()[2].text()}, deadline_)
        .IgnoreError();
    return ParseSession(family_, id, ran.reply.elements()[1]);
  }

 private:
  RedisSessionStore& store_;
  const std::string tenant_;
  const Family family_;
  const absl::Time deadline_;
  ChunkWriter writer_;
};

absl::StatusOr<std::unique_ptr<SessionImport>> RedisSessionStore::ImportSession(
    const std::string& tenant, absl::Time deadline) {
  ASSIGN_OR_RETURN(auto key, directory_.keys().FindOrMake(tenant, deadline));
  ASSIGN_OR_RETURN(const int64_t kv_bytes, KvBytes(tenant, deadline));
  return std::make_unique<Import>(*this, tenant, Family(std::move(key), tenant, NewFamilyName()),
                                  kv_bytes, deadline);
}

}  // namespace mneme::memory
