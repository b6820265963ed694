// How RedisSessionStore finds what nothing refers to any more, and how it forgets a tenant.
#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/log/log.h"
#include "common/status/status_macros.h"
#include "services/memory/redis_records.h"
#include "services/memory/redis_session_store.h"
#include "services/memory/session_compaction.h"
#include "services/memory/sweep_lock.h"

namespace mneme::memory {
namespace {

using redis::Reply;

constexpr char kLockKey[] = "mneme:2:sweeping";
constexpr absl::Duration kIndexGrace = absl::Minutes(1);
constexpr int kScanCount = 500;
constexpr int kDropBatch = 1000;
// Parts removed by one script, so that none keeps Redis from its other work.
constexpr size_t kMaxDeadParts = 2000;

}  // namespace

absl::Status RedisSessionStore::Sweep(absl::Time deadline) {
  if (must_rewrite_) RewriteAppendOnlyFile(deadline);
  SweepLock sweep_lock(directory_, kLockKey);
  ASSIGN_OR_RETURN(const bool may_sweep, sweep_lock.Take(deadline));
  // Each replica looks after its own disk.
  if (!may_sweep) return tiers_.SweepDisk(deadline);
  const auto sweep_all = [&]() -> absl::Status {
    ASSIGN_OR_RETURN(const TenantKeys::Tenants tenants, directory_.keys().List(deadline));
    for (const std::string& tenant : tenants.leftovers) {
      RETURN_IF_ERROR(RemoveRemains(tenant, deadline).status());
      RETURN_IF_ERROR(directory_.keys().RemoveTenant(tenant, deadline));
      must_rewrite_ = true;
    }
    absl::Status full;
    for (const std::string& tenant : tenants.known) {
      const absl::Status swept = SweepTenant(tenant, sweep_lock, deadline);
      if (!absl::IsResourceExhausted(swept)) RETURN_IF_ERROR(swept);
      full.Update(swept);
    }
    // What cannot be rounded in half of the time is dropped.
    const absl::Time now = absl::Now();
    RoundIdle(tenants.known, sweep_lock, now + (deadline - now) / 2).IgnoreError();
    RETURN_IF_ERROR(tiers_.KeepRedisToBudget(tenants.known, sweep_lock, deadline));
    return full;
  };
  absl::Status status = sweep_all();
  sweep_lock.Release(deadline);
  if (must_rewrite_) RewriteAppendOnlyFile(deadline);
  status.Update(tiers_.SweepDisk(deadline));
  return status;
}

absl::Status RedisSessionStore::SweepIndex(const std::string& tenant, absl::Time deadline) {
  std::string cursor = "0";
  do {
    ASSIGN_OR_RETURN(const std::vector<Reply> scanned,
                     directory_.RunPipeline({{"ZSCAN", FamilyDirectory::IndexKey(tenant), cursor,
                                              "COUNT", absl::StrCat(kScanCount)}},
                                            deadline));
    if (scanned[0].elements().size() != 2) return absl::InternalError("ZSCAN answered otherwise");
    cursor = scanned[0].elements()[0].text();
    const std::vector<Reply>& pairs = scanned[0].elements()[1].elements();
    std::vector<IndexEntry> entries;
    for (size_t i = 0; i + 1 < pairs.size(); i += 2) {
      double order = 0;
      if (!absl::SimpleAtod(pairs[i + 1].text(), &order)) continue;
      entries.push_back({.session_id = pairs[i].text(), .order = static_cast<int64_t>(order)});
    }
    ASSIGN_OR_RETURN(const std::vector<IndexEntry> gone,
                     WithoutSession(tenant, std::move(entries), deadline));
    directory_.Unlink(tenant, gone, kIndexGrace, deadline);
  } while (cursor != "0");
  return absl::OkStatus();
}

absl::Status RedisSessionStore::SweepTenant(const std::string& tenant, SweepLock& sweep_lock,
                                            absl::Time deadline) {
  RETURN_IF_ERROR(SweepIndex(tenant, deadline));
  // Families are listed before sessions are asked for theirs: one that appears in between is not
  // taken for unused.
  std::vector<std::string> names;
  std::string cursor = "0";
  do {
    ASSIGN_OR_RETURN(const std::vector<Reply> scanned,
                     directory_.RunPipeline({{"HSCAN", FamilyDirectory::UsageKey(tenant), cursor,
                                              "COUNT", absl::StrCat(kScanCount)}},
                                            deadline));
    if (scanned[0].elements().size() != 2) return absl::InternalError("HSCAN answered otherwise");
    cursor = scanned[0].elements()[0].text();
    const std::vector<Reply>& pairs = scanned[0].elements()[1].elements();
    for (size_t i = 0; i + 1 < pairs.size(); i += 2) {
      if (pairs[i].text() != "total") names.push_back(pairs[i].text());
    }
  } while (cursor != "0");
  std::vector<std::string> empty;
  for (const std::string& name : names) {
    sweep_lock.Keep(deadline);
    const absl::StatusOr<bool> is_empty = SweepFamily(tenant, name, deadline);
    if (absl::IsDataLoss(is_empty.status())) {
      // What cannot be read is not removed, and must not keep the others from being swept.
      log::Error("a family cannot be swept",
                 {{"family", name}, {"error", std::string(is_empty.status().message())}});
      continue;
    }
    if (absl::IsNotFound(is_empty.status())) return absl::OkStatus();  // forgotten meanwhile
    RETURN_IF_ERROR(is_empty.status());
    if (*is_empty) empty.push_back(name);
  }
  if (empty.empty()) return absl::OkStatus();
  // A family without a key in which a session is just being made is in use.
  ASSIGN_OR_RETURN(
      const std::vector<Reply> used,
      directory_.RunPipeline({{"HVALS", FamilyDirectory::FamiliesKey(tenant)}}, deadline));
  std::set<std::string> in_use;
  for (const Reply& name : used[0].elements()) in_use.insert(name.text());
  std::vector<std::string> unused;
  for (const std::string& name : empty) {
    if (in_use.count(name) == 0) unused.push_back(name);
  }
  for (size_t first = 0; first < unused.size(); first += kScanCount) {
    const size_t last = std::min(unused.size(), first + kScanCount);
    RETURN_IF_ERROR(directory_
                        .Eval(directory_.scripts().drop_unused,
                              FamilyDirectory::TenantKeysOf(tenant),
                              {unused.begin() + first, unused.begin() + last}, deadline)
                        .status());
  }
  return absl::OkStatus();
}

absl::StatusOr<bool> RedisSessionStore::SweepFamily(const std::string& tenant,
                                                    const std::string& name, absl::Time deadline) {
  ASSIGN_OR_RETURN(Family family, directory_.FamilyOf(tenant, name, deadline));
  const auto mark = [&] {
    return directory_.Eval(directory_.scripts().mark, family.Keys(), {family.key_id()}, deadline);
  };
  ASSIGN_OR_RETURN(Reply marked, mark());
  if (Word(marked) == "rekeyed") {
    // Either this process remembers an old key, or the family was sealed with a destroyed one.
    ASSIGN_OR_RETURN(const auto key, directory_.keys().Find(tenant, /*again=*/true, deadline));
    family = Family(key, tenant, name);
    ASSIGN_OR_RETURN(marked, mark());
    if (Word(marked) == "rekeyed") {
      RETURN_IF_ERROR(
          directory_.RunOnFamily(family, directory_.scripts().drop, {}, deadline).status());
      return true;
    }
  }
  const absl::string_view word = Word(marked);
  if (word == "dropped" || word == "gone") return true;
  std::string kv;
  if (word == "clean") {
    if (marked.elements().size() > 1) kv = marked.elements()[1].text();
  } else {
    ASSIGN_OR_RETURN(const std::vector<std::string> dead, DeadParts(family, marked, deadline));
    size_t at = 0;
    do {
      const size_t end = std::min(dead.size(), at + kMaxDeadParts);
      std::vector<redis::Argument> arguments = {family.key_id(), marked.elements()[1].text()};
      arguments.insert(arguments.end(), dead.begin() + at, dead.begin() + end);
      ASSIGN_OR_RETURN(const Reply swept, directory_.Eval(directory_.scripts().sweep, family.Keys(),
                                                          arguments, deadline));
      // A turn, a fork or a staging came in between: what is dead must be found anew.
      if (Word(swept) != "swept") return false;
      kv = swept.elements()[1].text();
      at = end;
    } while (at < dead.size());
  }
  RETURN_IF_ERROR(directory_
                      .Eval(directory_.scripts().use, FamilyDirectory::TenantKeysOf(tenant),
                            {name, kv}, deadline)
                      .status());
  return false;
}

// Returns what no turn of any session of a family lists, and no staged snapshot either, as the
// sweep script takes it.
absl::StatusOr<std::vector<std::string>> RedisSessionStore::DeadParts(const Family& family,
                                                                      const Reply& marked,
                                                                      absl::Time deadline) {
  if (marked.elements().size() != 5) return absl::InternalError("a script's answer is too short");
  std::set<std::string> live_ids;
  for (const Reply& id : marked.elements()[4].elements()) live_ids.insert(id.text());
  std::vector<std::string> dead;
  redis::Command manifests = {"HMGET", family.BodiesKey()};
  std::vector<std::string> manifest_ids;
  for (const Reply& field : marked.elements()[3].elements()) {
    const std::string id = field.text().substr(1);
    if (live_ids.count(id) == 0) {
      dead.push_back(absl::StrCat("b:", field.text()));
    } else if (field.text()[0] == 'm') {
      manifests.push_back(field.text());
      manifest_ids.push_back(id);
    }
  }
  std::set<std::string> live_names;
  if (!manifest_ids.empty()) {
    ASSIGN_OR_RETURN(const std::vector<Reply> sealed,
                     directory_.RunPipeline({manifests}, deadline));
    for (size_t i = 0; i < manifest_ids.size(); ++i) {
      const std::string& text = sealed[0].elements()[i].text();
      if (text.empty()) continue;  // gone meanwhile: the epoch has risen, nothing will be removed
      ASSIGN_OR_RETURN(const snapshot::v1::Manifest manifest,
                       ParseManifest(family, family.name(), manifest_ids[i], text));
      for (const snapshot::v1::Chunk& chunk : manifest.chunks()) {
        live_names.insert(family.ChunkName(chunk.digest()));
      }
    }
  }
  std::vector<std::string> names;
  const std::vector<Reply>& registry = marked.elements()[2].elements();
  for (size_t i = 0; i + 1 < registry.size(); i += 2) {
    const std::string& field = registry[i].text();
    if (absl::StartsWith(field, "c:")) names.push_back(field.substr(2));
    if (!absl::StartsWith(field, "p:")) continue;
    ASSIGN_OR_RETURN(
        const std::vector<Reply> staged,
        directory_.RunPipeline({{"HGET", family.StagedKey(field.substr(2)), "chunks"}}, deadline));
    const std::string& chunks = staged[0].text();
    for (size_t at = 0; at + 40 <= chunks.size(); at += 40) {
      live_names.insert(chunks.substr(at, 32));
    }
  }
  for (const std::string& name : names) {
    if (live_names.count(name) == 0) dead.push_back(absl::StrCat("c:", name));
  }
  return dead;
}

absl::Status RedisSessionStore::RoundIdle(const std::vector<std::string>& tenants,
                                          SweepLock& sweep_lock, absl::Time deadline) {
  const int64_t budget = options_.redis_budget_bytes;
  if (budget == 0 || promoter_ != nullptr || !options_.is_elastic) return absl::OkStatus();
  ASSIGN_OR_RETURN(const std::vector<RedisTiers::Use> uses, tiers_.UsesOf(tenants, deadline));
  int64_t total = 0;
  for (const RedisTiers::Use& use : uses) total += use.redis_bytes;
  for (const RedisTiers::Use& use : uses) {
    if (total <= budget) break;
    const absl::StatusOr<Family> family = directory_.FamilyOf(use.tenant, use.family, deadline);
    if (absl::IsNotFound(family.status())) continue;  // the tenant was forgotten
    RETURN_IF_ERROR(family.status());
    RETURN_IF_ERROR(RoundFamily(*family, sweep_lock, deadline));
    ASSIGN_OR_RETURN(const std::vector<Reply> left,
                     directory_.RunPipeline({{"HGET", family->Keys()[0], "kv"}}, deadline));
    const int64_t saved = use.redis_bytes - left[0].Integer().value_or(0);
    total -= saved;
    if (saved == 0) continue;
    log::Info("idle sessions' memory was rounded to keep to a budget",
              {{"family", use.family}, {"redis_bytes", saved}});
  }
  return absl::OkStatus();
}

absl::Status RedisSessionStore::RoundFamily(const Family& family, SweepLock& sweep_lock,
                                            absl::Time deadline) {
  ASSIGN_OR_RETURN(const std::vector<Reply> registry,
                   directory_.RunPipeline({{"HKEYS", family.Keys()[0]}}, deadline));
  for (const Reply& field : registry[0].elements()) {
    if (!absl::StartsWith(field.text(), "s:")) continue;
    const std::string session_id = field.text().substr(2);
    ASSIGN_OR_RETURN(
        const std::vector<Reply> head,
        directory_.RunPipeline({{"HMGET", family.HeadKey(session_id), "model", "pinned", "policy"}},
                               deadline));
    const std::vector<Reply>& values = head[0].elements();
    if (values.size() != 3 || values[0].is_nil() || values[1].text() == "1") continue;
    v1::Session session;
    session.set_model(values[0].text());
    // One that can't be read is left alone; whoever opens the session is told.
    if (!values[2].text().empty() &&
        !session.mutable_memory_policy()->ParseFromString(values[2].text())) {
      continue;
    }
    if (!options_.is_elastic(family.tenant(), session)) continue;
    sweep_lock.Keep(deadline);
    const absl::Status rounded = RoundIdleSession(*this, family.tenant(), session_id, deadline);
    // One that is in use, has lost a chunk or may not have more is none to wait for.
    if (absl::IsUnavailable(rounded) || absl::IsDeadlineExceeded(rounded)) return rounded;
  }
  return absl::OkStatus();
}

absl::StatusOr<int64_t> RedisSessionStore::RemoveRemains(const std::string& tenant,
                                                         absl::Time deadline) {
  int64_t sessions = 0;
  // The key does not exist any more: any will do to name what it sealed.
  const auto no_key =
      std::make_shared<const TenantKey>(TenantKey{.key = crypto::Key::Random(), .id = "*"});
  const redis::Script& drop = directory_.scripts().drop;
  // Spares the first batch its second try.
  directory_.client().Run({"SCRIPT", "LOAD", drop.source()}, deadline).status().IgnoreError();
  while (true) {
    ASSIGN_OR_RETURN(
        const std::vector<Reply> used,
        directory_.RunPipeline({{"HKEYS", FamilyDirectory::UsageKey(tenant)}}, deadline));
    std::vector<std::string> names;
    for (const Reply& name : used[0].elements()) {
      if (name.text() != "total") names.push_back(name.text());
    }
    if (names.empty()) break;
    for (size_t first = 0; first < names.size(); first += kDropBatch) {
      const size_t last = std::min(names.size(), first + kDropBatch);
      std::vector<std::vector<std::string>> keys;
      std::vector<redis::Command> commands;
      for (size_t i = first; i < last; ++i) {
        keys.push_back(Family(no_key, tenant, names[i]).Keys());
        commands.push_back({"EVALSHA", drop.sha1(), "2", keys.back()[0], keys.back()[1], "*"});
      }
      ASSIGN_OR_RETURN(std::vector<Reply> replies,
                       directory_.client().RunPipeline(commands, deadline));
      for (size_t i = 0; i < replies.size(); ++i) {
        if (!replies[i].status().ok()) {
          // A server that does not know the script yet, as a rule: this call brings it.
          ASSIGN_OR_RETURN(replies[i], directory_.Eval(drop, keys[i], {"*"}, deadline));
        }
        ASSIGN_OR_RETURN(const int64_t count, Number(replies[i], 1));
        sessions += count;
      }
      RETURN_IF_ERROR(directory_
                          .Eval(directory_.scripts().drop_unused,
                                FamilyDirectory::TenantKeysOf(tenant),
                                {names.begin() + first, names.begin() + last}, deadline)
                          .status());
    }
  }
  RETURN_IF_ERROR(
      directory_
          .RunPipeline({{"UNLINK", FamilyDirectory::IndexKey(tenant),
                         FamilyDirectory::FamiliesKey(tenant), FamilyDirectory::UsageKey(tenant)}},
                       deadline)
          .status());
  tiers_.RemoveTenant(tenant, deadline);
  return sessions;
}

void RedisSessionStore::RewriteAppendOnlyFile(absl::Time deadline) {
  const absl::Status status =
      directory_.client().RunOnEveryMaster({"BGREWRITEAOF"}, deadline).status();
  must_rewrite_ = !status.ok();
  if (status.ok()) return;
  log::Warning(
      "the append-only file still holds the wrapped key of a tenant that was forgotten; "
      "BGREWRITEAOF is tried again later",
      {{"error", std::string(status.message())}});
}

absl::StatusOr<v1::ForgetTenantResponse> RedisSessionStore::ForgetTenant(
    const v1::ForgetTenantRequest& request, absl::Time deadline) {
  // From here on nothing of the tenant can be read; what follows is cleaning up, which the sweeper
  // does if this process dies.
  RETURN_IF_ERROR(directory_.keys().Destroy(request.tenant(), deadline));
  ASSIGN_OR_RETURN(const int64_t sessions, RemoveRemains(request.tenant(), deadline));
  RETURN_IF_ERROR(directory_.keys().RemoveTenant(request.tenant(), deadline));
  RewriteAppendOnlyFile(deadline);
  v1::ForgetTenantResponse response;
  response.set_sessions(sessions);
  return response;
}

}  // namespace mneme::memory
