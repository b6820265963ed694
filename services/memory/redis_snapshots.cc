// The verbs of RedisSessionStore that concern snapshots.
#include <map>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/status/annotate.h"
#include "common/status/status_macros.h"
#include "services/memory/redis_records.h"
#include "services/memory/redis_session_store.h"
#include "services/memory/redis_staging.h"
#include "services/memory/session_errors.h"

namespace mneme::memory {
namespace {

using redis::Reply;

constexpr int kMaxSharers = 100;

}  // namespace

absl::StatusOr<int64_t> RedisSessionStore::KvBytes(const std::string& tenant, absl::Time deadline) {
  if (options_.QuotaOf(tenant).max_kv_bytes() == 0) return 0;
  ASSIGN_OR_RETURN(
      const std::vector<Reply> total,
      directory_.RunPipeline({{"HGET", FamilyDirectory::UsageKey(tenant), "total"}}, deadline));
  return total[0].Integer().value_or(0);
}

absl::StatusOr<std::unique_ptr<SnapshotStaging>> RedisSessionStore::StageSnapshot(
    const v1::StageSnapshotRequest::Header& header, absl::Time deadline) {
  const auto arguments = [&](const Family&) {
    return std::vector<std::string>{absl::StrCat(header.lease_token()), "", "0"};
  };
  ASSIGN_OR_RETURN(const Ran ran,
                   RunOn(directory_.scripts().may_stage, header, arguments, deadline));
  if (!ran.found()) return NoSuchSession(header.session_id());
  if (ran.word() == "lost") return LeaseLost(header.session_id(), header.lease_token());
  ASSIGN_OR_RETURN(const int64_t kv_bytes, KvBytes(header.tenant(), deadline));
  return std::make_unique<RedisStaging>(directory_, options_, header, *ran.family, kv_bytes,
                                        deadline);
}

absl::Status RedisSessionStore::FetchSnapshot(const v1::FetchSnapshotRequest& request,
                                              const FetchSink& sink, absl::Time deadline) {
  const auto arguments = [&](const Family&) {
    return std::vector<std::string>{absl::StrCat(request.version())};
  };
  ASSIGN_OR_RETURN(const Ran ran, RunOn(directory_.scripts().find, request, arguments, deadline));
  if (!ran.found()) return NoSuchSession(request.session_id());
  if (ran.word() == "range") {
    return absl::NotFoundError(NoSuchVersion(request.session_id(), request.version()).message());
  }
  const std::vector<Reply>& answer = ran.reply.elements();
  if (ran.word() == "none") return NoSnapshot(request.session_id());
  if (answer.size() != 4) return absl::InternalError("a script's answer is too short");
  ASSIGN_OR_RETURN(const int64_t version, Number(ran.reply, 1));
  ASSIGN_OR_RETURN(
      const snapshot::v1::Manifest manifest,
      ParseManifest(*ran.family, request.session_id(), answer[2].text(), answer[3].text()));
  std::vector<int> positions(request.chunks().begin(), request.chunks().end());
  for (const int position : positions) {
    if (position < 0 || position >= manifest.chunks_size()) {
      return status::InvalidField(
          "chunks", absl::StrCat("the manifest has no chunk at this position: ", position));
    }
  }
  v1::FetchSnapshotResponse found;
  found.mutable_found()->set_version(version);
  *found.mutable_found()->mutable_manifest() = manifest;
  RETURN_IF_ERROR(sink(std::move(found)));
  if (request.manifest_only()) return absl::OkStatus();
  if (positions.empty()) {
    for (int i = 0; i < manifest.chunks_size(); ++i) positions.push_back(i);
  }
  return FetchChunks(source_, *ran.family, request.session_id(), manifest, positions, sink,
                     deadline);
}

absl::StatusOr<ReplacedSnapshot> RedisSessionStore::ReplaceSnapshot(
    const SnapshotReplacement& request, absl::Time deadline) {
  const std::string& session_id = request.session_id;
  ASSIGN_OR_RETURN(const std::optional<Family> family,
                   directory_.Find(request.tenant, session_id, /*again=*/false, deadline));
  if (!family.has_value()) return NoSuchSession(session_id);
  // The turn gets a new id, and its text is sealed for the id that it is stored under. What is not
  // there is for the script to tell.
  std::string old_id;
  std::string text;
  if (request.snapshot_version > 0) {
    ASSIGN_OR_RETURN(const std::vector<Reply> id,
                     directory_.RunPipeline({{"LINDEX", family->TurnsKey(session_id),
                                              absl::StrCat(request.snapshot_version - 1)}},
                                            deadline));
    old_id = id[0].text();
  }
  if (!request.snapshot_id.empty() && !old_id.empty()) {
    ASSIGN_OR_RETURN(const std::vector<Reply> sealed,
                     directory_.RunPipeline(
                         {{"HGET", family->BodiesKey(), absl::StrCat("t", old_id)}}, deadline));
    ASSIGN_OR_RETURN(std::string opened, family->OpenText(sealed[0].text(), old_id));
    text = family->SealText(std::move(opened), request.snapshot_id);
  }
  const bool has_policy = request.memory_policy.has_value();
  ASSIGN_OR_RETURN(
      const Reply reply,
      directory_.RunIn(*family, directory_.scripts().replace, session_id,
                       options_.TtlSecondsOf(request.tenant),
                       {absl::StrCat(request.lease_token), absl::StrCat(request.version),
                        absl::StrCat(request.snapshot_version), old_id, request.snapshot_id, text,
                        has_policy ? request.memory_policy->SerializeAsString() : "",
                        has_policy ? "1" : "0", request.drop_older_snapshots ? "1" : "0"},
                       deadline));
  const absl::string_view word = Word(reply);
  if (word == "lost") return LeaseLost(session_id, request.lease_token);
  if (word == "stale") {
    ASSIGN_OR_RETURN(const int64_t head, Number(reply, 1));
    return StaleVersion(session_id, request.version, head);
  }
  const std::vector<Reply>& answer = reply.elements();
  if (word == "gone") {
    return ReplacementIsGone(
        session_id, answer[1].text() == "snapshot" ? "its snapshot was dropped" : kStagedIsGone);
  }
  if (word != "replaced") return NoSuchSession(session_id);
  if (answer.size() != 4) return absl::InternalError("a script's answer is too short");
  ReplacedSnapshot replaced;
  ASSIGN_OR_RETURN(replaced.session, ParseSession(*family, session_id, answer[1]));
  ASSIGN_OR_RETURN(replaced.num_dropped, Number(reply, 2));
  directory_
      .Eval(directory_.scripts().use, FamilyDirectory::TenantKeysOf(request.tenant),
            {family->name(), answer[3].text()}, deadline)
      .status()
      .IgnoreError();
  // What nothing lists any more goes at once: it is why somebody asked. A sweep does it otherwise.
  SweepFamily(request.tenant, family->name(), deadline).status().IgnoreError();
  return replaced;
}

absl::StatusOr<v1::DescribeSessionResponse> RedisSessionStore::DescribeSession(
    const v1::DescribeSessionRequest& request, absl::Time deadline) {
  const std::string& session_id = request.session_id();
  const auto none = [](const Family&) { return std::vector<std::string>(); };
  ASSIGN_OR_RETURN(const Ran ran, RunOn(directory_.scripts().describe, request, none, deadline));
  if (!ran.found()) return NoSuchSession(session_id);
  const Family& family = *ran.family;
  const std::vector<Reply>& answer = ran.reply.elements();
  if (answer.size() != 6) return absl::InternalError("a script's answer is too short");
  v1::DescribeSessionResponse response;
  ASSIGN_OR_RETURN(*response.mutable_session(), ParseSession(family, session_id, answer[1]));
  response.set_leased(answer[4].text() == "1");
  response.set_executor(answer[5].text());
  const std::vector<Reply>& ids = answer[2].elements();
  const std::vector<Reply>& records = answer[3].elements();
  if (ids.size() != response.session().version() || records.size() != ids.size()) {
    return Malformed(session_id);
  }
  std::set<std::string> own_ids;
  for (size_t i = 0; i < ids.size(); ++i) {
    ASSIGN_OR_RETURN(const TurnRecord record, ParseRecord(session_id, records[i].text()));
    auto* version = response.add_versions();
    version->set_version(i + 1);
    version->set_committed_unix_ms(record.committed_ms);
    version->set_num_tokens(record.num_tokens);
    version->set_snapshot_tokens(record.snapshot_tokens);
    version->set_snapshot_bytes(record.snapshot_bytes);
    version->set_request_id(record.request_id);
    own_ids.insert(ids[i].text());
  }

  // The other sessions of the family and their turns.
  ASSIGN_OR_RETURN(const std::vector<Reply> registry,
                   directory_.RunPipeline({{"HGETALL", family.Keys()[0]}}, deadline));
  std::map<std::string, absl::string_view> chunk_entries;
  std::vector<std::string> others;
  std::vector<redis::Command> commands;
  const std::vector<Reply>& entries = registry[0].elements();
  for (size_t i = 0; i + 1 < entries.size(); i += 2) {
    const std::string& field = entries[i].text();
    if (absl::StartsWith(field, "c:")) chunk_entries[field.substr(2)] = entries[i + 1].text();
    if (absl::StartsWith(field, "s:") && field.substr(2) != session_id) {
      others.push_back(field.substr(2));
      commands.push_back({"LRANGE", family.TurnsKey(others.back()), "0", "-1"});
    }
  }
  std::vector<Reply> other_turns;
  if (!commands.empty()) {
    ASSIGN_OR_RETURN(other_turns, directory_.RunPipeline(commands, deadline));
  }
  std::set<std::string> other_ids;
  for (size_t i = 0; i < others.size(); ++i) {
    bool shares = false;
    for (const Reply& id : other_turns[i].elements()) {
      other_ids.insert(id.text());
      shares = shares || own_ids.count(id.text()) > 0;
    }
    if (shares && response.shares_with_size() < kMaxSharers) {
      response.add_shares_with(others[i]);
    }
  }

  // What the manifests of all of them list.
  std::set<std::string> all_ids = own_ids;
  all_ids.insert(other_ids.begin(), other_ids.end());
  if (all_ids.empty()) return response;
  redis::Command get = {"HMGET", family.BodiesKey()};
  for (const std::string& id : all_ids) get.push_back(absl::StrCat("m", id));
  ASSIGN_OR_RETURN(const std::vector<Reply> sealed, directory_.RunPipeline({get}, deadline));
  std::map<std::string, std::set<std::string>> chunks_of;  // digests, by turn id
  std::map<std::string, int64_t> own_sizes;                // by digest
  std::set<std::string> other_digests;
  std::set<std::string> with_manifest;  // turn ids
  size_t at = 0;
  for (const std::string& id : all_ids) {
    const std::string& text = sealed[0].elements()[at++].text();
    if (text.empty()) continue;
    with_manifest.insert(id);
    ASSIGN_OR_RETURN(const snapshot::v1::Manifest manifest,
                     ParseManifest(family, session_id, id, text));
    for (const snapshot::v1::Chunk& chunk : manifest.chunks()) {
      if (own_ids.count(id) > 0) {
        chunks_of[id].insert(chunk.digest());
        own_sizes[chunk.digest()] = chunk.num_bytes();
      }
      if (other_ids.count(id) > 0) other_digests.insert(chunk.digest());
    }
  }
  for (size_t i = 0; i < ids.size(); ++i) {
    auto* version = response.mutable_versions(static_cast<int>(i));
    if (with_manifest.count(ids[i].text()) == 0) {
      // It had none, or it was dropped.
      version->clear_snapshot_tokens();
      version->clear_snapshot_bytes();
      continue;
    }
    int64_t own_bytes = 0;
    for (const std::string& digest : chunks_of[ids[i].text()]) {
      const bool is_old = i > 0 && chunks_of[ids[i - 1].text()].count(digest) > 0;
      if (!is_old) own_bytes += own_sizes[digest];
    }
    version->set_own_bytes(own_bytes);
  }
  int64_t shared = 0;
  for (const auto& [digest, size] : own_sizes) {
    const absl::string_view entry = chunk_entries[family.ChunkName(digest)];
    const char* const tier = absl::StrContains(entry, ' ') ? "disk" : "redis";
    (*response.mutable_bytes_by_tier())[tier] += size;
    if (other_digests.count(digest) > 0) shared += size;
  }
  response.set_shared_bytes(shared);
  return response;
}

}  // namespace mneme::memory
