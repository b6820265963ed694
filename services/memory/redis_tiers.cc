#include "services/memory/redis_tiers.h"

#include <algorithm>
#include <map>
#include <memory>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "common/crypto/sha256.h"
#include "common/log/log.h"
#include "common/status/status_macros.h"

namespace mneme::memory {
namespace {

using redis::Reply;

// Of payload that is demoted in one step.
constexpr size_t kBatchBytes = 8 << 20;
constexpr size_t kBatchChunks = 64;
constexpr size_t kMaxFilesAsked = 1000;
constexpr int kMarkAttempts = 3;
// So much of its budget is free after Redis was relieved, for what is promoted until the next time.
constexpr int kFreeShare = 8;
// So much of a full disk is freed at least.
constexpr int kTrimShare = 16;
// While a replica sweeps a folder, others that share it need not.
constexpr char kLockPrefix[] = "mneme:2:sweeping:";
// Of ForgetTenant, for files; their key is gone, so that there is no hurry.
constexpr absl::Duration kRemovalTime = absl::Milliseconds(200);

// Names keys only; what it seals nobody opens.
Family WithoutKey(const std::string& tenant, const std::string& name) {
  static const auto* const key = new std::shared_ptr<const TenantKey>(
      std::make_shared<const TenantKey>(TenantKey{.key = crypto::Key::Random(), .id = "*"}));
  return Family(*key, tenant, name);
}

}  // namespace

absl::StatusOr<std::vector<RedisTiers::Use>> RedisTiers::UsesOf(
    const std::vector<std::string>& tenants, absl::Time deadline) {
  std::vector<Use> uses;
  std::vector<redis::Command> sizes;
  for (const std::string& tenant : tenants) {
    ASSIGN_OR_RETURN(const std::vector<Reply> read,
                     directory_.RunPipeline(
                         {{"HGETALL", FamilyDirectory::UsageKey(tenant)},
                          {"HGETALL", FamilyDirectory::FamiliesKey(tenant)},
                          {"ZRANGE", FamilyDirectory::IndexKey(tenant), "0", "-1", "WITHSCORES"}},
                         deadline));
    const std::vector<Reply>& usage = read[0].elements();
    const std::vector<Reply>& families = read[1].elements();
    const std::vector<Reply>& index = read[2].elements();
    std::map<std::string, double> used_by_session;
    for (size_t i = 0; i + 1 < index.size(); i += 2) {
      (void)absl::SimpleAtod(index[i + 1].text(), &used_by_session[index[i].text()]);
    }
    std::map<std::string, double> used_by_family;
    for (size_t i = 0; i + 1 < families.size(); i += 2) {
      double& used = used_by_family[families[i + 1].text()];
      used = std::max(used, used_by_session[families[i].text()]);
    }
    for (size_t i = 0; i + 1 < usage.size(); i += 2) {
      if (usage[i].text() == "total" || usage[i + 1].Integer().value_or(0) == 0) continue;
      uses.push_back(
          {.tenant = tenant, .family = usage[i].text(), .used = used_by_family[usage[i].text()]});
      sizes.push_back({"HMGET", WithoutKey(tenant, usage[i].text()).Keys()[0], "kv", "disk"});
    }
  }
  if (sizes.empty()) return uses;
  ASSIGN_OR_RETURN(const std::vector<Reply> replies, directory_.RunPipeline(sizes, deadline));
  for (size_t i = 0; i < uses.size(); ++i) {
    const std::vector<Reply>& size = replies[i].elements();
    if (size.size() != 2) return absl::InternalError("HMGET answered otherwise");
    uses[i].redis_bytes = size[0].Integer().value_or(0) - size[1].Integer().value_or(0);
  }
  std::sort(uses.begin(), uses.end(), [](const Use& a, const Use& b) { return a.used < b.used; });
  return uses;
}

absl::Status RedisTiers::KeepRedisToBudget(const std::vector<std::string>& tenants,
                                           SweepLock& sweep_lock, absl::Time deadline) {
  int64_t total = 0;
  if (options_.redis_budget_bytes == 0 && disk_ == nullptr) {
    for (const std::string& tenant : tenants) {
      ASSIGN_OR_RETURN(
          const std::vector<Reply> used,
          directory_.RunPipeline({{"HGET", FamilyDirectory::UsageKey(tenant), "total"}}, deadline));
      total += used[0].Integer().value_or(0);
    }
    metrics_.redis_bytes().Set(static_cast<double>(total));
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(std::vector<Use> uses, UsesOf(tenants, deadline));
  for (const Use& use : uses) total += use.redis_bytes;
  const int64_t budget = options_.redis_budget_bytes;
  const bool is_over = budget > 0 && total > budget;
  const int64_t target = disk_ == nullptr ? budget : budget - budget / kFreeShare;
  // Pinned sessions are the last to be demoted, and are never dropped.
  bool can_write = true;
  for (const bool may_be_pinned : {false, true}) {
    if (!is_over || !can_write || (may_be_pinned && disk_ == nullptr)) break;
    const int64_t limit = may_be_pinned ? budget : target;
    for (Use& use : uses) {
      if (total <= limit || !can_write) break;
      if (use.redis_bytes == 0) continue;
      int64_t freed = 0;
      if (disk_ == nullptr) {
        ASSIGN_OR_RETURN(freed, Drop(use, "tiers.redis_budget_bytes", deadline));
      } else {
        ASSIGN_OR_RETURN(Demoted demoted, Demote(use, may_be_pinned, sweep_lock, deadline));
        freed = demoted.bytes;
        if (absl::IsResourceExhausted(demoted.disk_status)) {
          // What was used even less gives way.
          log::Warning("the disk tier is full, the least used snapshots on it are dropped",
                       {{"error", std::string(demoted.disk_status.message())}});
          const int64_t needed = std::max(disk_->bytes() / kTrimShare, use.redis_bytes - freed);
          ASSIGN_OR_RETURN(const bool has_room, TrimDisk(disk_->bytes() - needed, deadline));
          if (has_room) {
            ASSIGN_OR_RETURN(demoted, Demote(use, may_be_pinned, sweep_lock, deadline));
            freed += demoted.bytes;
          }
        }
        NoteDisk(demoted.disk_status);
        if (absl::IsResourceExhausted(demoted.disk_status) && !may_be_pinned) {
          use.redis_bytes -= freed;
          total -= freed;
          ASSIGN_OR_RETURN(freed,
                           Drop(use, "tiers.redis_budget_bytes, the disk being full,", deadline));
        } else if (!demoted.disk_status.ok()) {
          can_write = false;
        } else if (disk_->budget_bytes() > 0 && disk_->bytes() > disk_->budget_bytes()) {
          RETURN_IF_ERROR(TrimDisk(disk_->budget_bytes(), deadline).status());
        }
      }
      use.redis_bytes -= freed;
      total -= freed;
    }
  }
  metrics_.redis_bytes().Set(static_cast<double>(total));
  if (promoter_ != nullptr) promoter_->SetRedisBytes(total);
  return absl::OkStatus();
}

absl::StatusOr<int64_t> RedisTiers::Drop(const Use& use, absl::string_view budget,
                                         absl::Time deadline) {
  ASSIGN_OR_RETURN(const Reply shrunk,
                   directory_.RunOnFamily(WithoutKey(use.tenant, use.family),
                                          directory_.scripts().shrink, {}, deadline));
  if (Word(shrunk) != "shrunk") return 0;
  ASSIGN_OR_RETURN(const int64_t freed, Number(shrunk, 1));
  ASSIGN_OR_RETURN(const int64_t from_disk, Number(shrunk, 2));
  metrics_.CountDroppedBytes(freed + from_disk);
  log::Info("snapshots were dropped to keep to a budget", {{"budget", std::string(budget)},
                                                           {"family", use.family},
                                                           {"redis_bytes", freed},
                                                           {"disk_bytes", from_disk}});
  RETURN_IF_ERROR(directory_
                      .Eval(directory_.scripts().use, FamilyDirectory::TenantKeysOf(use.tenant),
                            {use.family, "0"}, deadline)
                      .status());
  if (from_disk > 0) RemoveUnused(use.tenant, use.family, deadline);
  return freed;
}

absl::StatusOr<RedisTiers::Demoted> RedisTiers::Demote(const Use& use, bool may_be_pinned,
                                                       SweepLock& sweep_lock, absl::Time deadline) {
  Demoted demoted;
  absl::StatusOr<Family> family = directory_.FamilyOf(use.tenant, use.family, deadline);
  if (absl::IsNotFound(family.status())) return demoted;  // the tenant was forgotten
  RETURN_IF_ERROR(family.status());
  for (int attempt = 0; attempt < kMarkAttempts; ++attempt) {
    ASSIGN_OR_RETURN(const std::vector<Reply> registry,
                     directory_.RunPipeline({{"HGETALL", family->Keys()[0]}}, deadline));
    std::string epoch;
    std::vector<std::pair<std::string, size_t>> in_redis;  // name, bytes
    const std::vector<Reply>& entries = registry[0].elements();
    for (size_t i = 0; i + 1 < entries.size(); i += 2) {
      const std::string& field = entries[i].text();
      if (field == "epoch") epoch = entries[i + 1].text();
      size_t bytes = 0;
      // The record of one on disk is no number.
      if (absl::StartsWith(field, "c:") && absl::SimpleAtoi(entries[i + 1].text(), &bytes)) {
        in_redis.emplace_back(field.substr(2), bytes);
      }
    }
    const auto move = [&](const std::vector<std::string>& pairs) {
      std::vector<redis::Argument> arguments = {family->key_id(), epoch, may_be_pinned ? "1" : "0"};
      arguments.insert(arguments.end(), pairs.begin(), pairs.end());
      return directory_.Eval(directory_.scripts().demote, family->Keys(), arguments, deadline);
    };
    // A family in use is not worth a file.
    ASSIGN_OR_RETURN(const Reply may, move({}));
    if (Word(may) == "moved") continue;
    if (Word(may) != "demoted") return demoted;

    bool is_moved = false;
    for (size_t first = 0; first < in_redis.size() && !is_moved;) {
      sweep_lock.Keep(deadline);
      size_t end = first;
      std::vector<redis::Command> commands;
      for (size_t bytes = 0;
           end < in_redis.size() && bytes < kBatchBytes && end - first < kBatchChunks; ++end) {
        bytes += in_redis[end].second;
        commands.push_back({"GET", family->ChunkKey(in_redis[end].first)});
      }
      ASSIGN_OR_RETURN(std::vector<Reply> sealed, directory_.RunPipeline(commands, deadline));
      std::vector<DiskTier::Chunk> chunks;
      for (size_t i = 0; i < sealed.size(); ++i) {
        if (sealed[i].is_nil()) continue;  // lost, or swept meanwhile
        const std::string& name = in_redis[first + i].first;
        absl::StatusOr<std::string> payload = family->OpenChunk(sealed[i].TakeText(), name);
        // A damaged one stays for whoever reads it, and is told so.
        if (payload.ok()) chunks.push_back({.name = name, .payload = *std::move(payload)});
      }
      first = end;
      if (chunks.empty()) continue;
      const absl::StatusOr<std::vector<std::string>> places = disk_->Write(*family, chunks);
      if (!places.ok()) {
        demoted.disk_status = places.status();
        return demoted;
      }
      std::vector<std::string> pairs;
      for (size_t i = 0; i < chunks.size(); ++i) {
        pairs.push_back(chunks[i].name);
        pairs.push_back((*places)[i]);
      }
      const absl::StatusOr<Reply> moved = move(pairs);
      // Without an answer nobody knows whether the files are needed: the sweep finds out.
      RETURN_IF_ERROR(moved.status());
      if (Word(*moved) == "demoted") {
        ASSIGN_OR_RETURN(const int64_t bytes, Number(*moved, 1));
        demoted.bytes += bytes;
        metrics_.CountDemotedBytes(bytes);
        continue;
      }
      for (size_t i = 0; i < chunks.size(); ++i) {
        disk_->Remove(use.tenant, use.family, chunks[i].name, (*places)[i]);
      }
      if (Word(*moved) != "moved") return demoted;
      is_moved = true;
    }
    if (!is_moved) return demoted;
  }
  return demoted;  // others change it all the time: it is not among the least used
}

void RedisTiers::NoteDisk(const absl::Status& status) {
  if (status.ok() == !is_disk_failing_.exchange(!status.ok())) return;
  if (status.ok()) {
    log::Info("the disk tier works again", {{"path", disk_->path()}});
  } else {
    log::Error("the disk tier does not work, it is tried again with every sweep",
               {{"error", std::string(status.message())}});
  }
}

absl::StatusOr<size_t> RedisTiers::RemoveUnusedFiles(const DiskTier::FamilyFiles& files,
                                                     absl::Time deadline) {
  size_t num_unused = 0;
  const Family family = WithoutKey(files.tenant, files.family);
  for (size_t first = 0; first < files.files.size(); first += kMaxFilesAsked) {
    const size_t end = std::min(files.files.size(), first + kMaxFilesAsked);
    std::vector<std::string> arguments;
    std::map<std::string, std::string> name_by_place;
    for (size_t i = first; i < end; ++i) {
      arguments.push_back(files.files[i].name);
      arguments.push_back(files.files[i].place);
      name_by_place[files.files[i].place] = files.files[i].name;
    }
    ASSIGN_OR_RETURN(const Reply reply, directory_.RunOnFamily(family, directory_.scripts().unused,
                                                               arguments, deadline));
    if (reply.elements().size() != 2) return absl::InternalError("a script's answer is too short");
    for (const Reply& place : reply.elements()[1].elements()) {
      disk_->Remove(files.tenant, files.family, name_by_place[place.text()], place.text());
      ++num_unused;
    }
  }
  return num_unused;
}

absl::Status RedisTiers::RemoveUnusedOfAll(const std::vector<DiskTier::FamilyFiles>& all,
                                           SweepLock& sweep_lock, absl::Time deadline) {
  if (all.empty()) return absl::OkStatus();
  std::vector<redis::Command> ask;
  for (const DiskTier::FamilyFiles& files : all) {
    ask.push_back({"HGET", WithoutKey(files.tenant, files.family).Keys()[0], "epoch"});
  }
  ASSIGN_OR_RETURN(const std::vector<Reply> epochs, directory_.RunPipeline(ask, deadline));
  std::map<std::pair<std::string, std::string>, Clean> clean;
  for (size_t i = 0; i < all.size(); ++i) {
    sweep_lock.Keep(deadline);
    std::vector<absl::string_view> places;
    for (const DiskTier::File& file : all[i].files) places.push_back(file.place);
    std::sort(places.begin(), places.end());
    const std::pair<std::string, std::string> name = {all[i].tenant, all[i].family};
    // A family without an epoch is gone, and its files are of no use.
    const Clean now = {.epoch = epochs[i].text(),
                       .files = crypto::Sha256(absl::StrJoin(places, ""))};
    bool is_clean = false;
    if (!now.epoch.empty()) {
      sync::MutexLock clean_lock(mutex_);
      const auto known = clean_.find(name);
      is_clean = known != clean_.end() && known->second.epoch == now.epoch &&
                 known->second.files == now.files;
    }
    if (!is_clean) {
      ASSIGN_OR_RETURN(const size_t num_unused, RemoveUnusedFiles(all[i], deadline));
      is_clean = num_unused == 0;
    }
    if (is_clean) clean[name] = now;
  }
  sync::MutexLock clean_lock(mutex_);
  clean_ = std::move(clean);
  return absl::OkStatus();
}

void RedisTiers::RemoveUnused(const std::string& tenant, const std::string& family,
                              absl::Time deadline) {
  if (disk_ == nullptr || disk_->folder_id().empty()) return;
  absl::StatusOr<std::vector<DiskTier::File>> files = disk_->ListFamily(tenant, family);
  if (!files.ok() || files->empty()) return;
  RemoveUnusedFiles({.tenant = tenant, .family = family, .files = *std::move(files)}, deadline)
      .status()
      .IgnoreError();
}

void RedisTiers::RemoveTenant(const std::string& tenant, absl::Time deadline) {
  if (disk_ == nullptr) return;
  disk_->RemoveTenant(tenant, std::min(deadline, absl::Now() + kRemovalTime));
}

absl::StatusOr<bool> RedisTiers::TrimDisk(int64_t limit_bytes, absl::Time deadline) {
  const absl::StatusOr<std::vector<DiskTier::FamilyFiles>> listed = disk_->List();
  if (!listed.ok()) return false;
  std::set<std::string> tenants;
  std::set<std::pair<std::string, std::string>> on_disk;
  for (const DiskTier::FamilyFiles& files : *listed) {
    tenants.insert(files.tenant);
    on_disk.emplace(files.tenant, files.family);
  }
  ASSIGN_OR_RETURN(const std::vector<Use> uses, UsesOf({tenants.begin(), tenants.end()}, deadline));
  const int64_t before = disk_->bytes();
  for (const Use& use : uses) {
    if (disk_->bytes() <= limit_bytes) break;
    if (on_disk.count({use.tenant, use.family}) == 0) continue;
    RETURN_IF_ERROR(Drop(use, "tiers.disk_budget_bytes", deadline).status());
  }
  return disk_->bytes() < before;
}

absl::Status RedisTiers::SweepDisk(absl::Time deadline) {
  if (disk_ == nullptr) return absl::OkStatus();
  if (const absl::Status open = disk_->Open(); !open.ok()) {
    NoteDisk(open);
    return absl::OkStatus();
  }
  SweepLock sweep_lock(directory_, absl::StrCat(kLockPrefix, disk_->folder_id()));
  ASSIGN_OR_RETURN(const bool may_sweep, sweep_lock.Take(deadline));
  if (!may_sweep) return absl::OkStatus();
  const auto sweep = [&]() -> absl::Status {
    const absl::StatusOr<std::vector<DiskTier::FamilyFiles>> listed = disk_->List();
    if (!listed.ok()) {
      NoteDisk(listed.status());
      return absl::OkStatus();
    }
    RETURN_IF_ERROR(RemoveUnusedOfAll(*listed, sweep_lock, deadline));
    if (disk_->budget_bytes() > 0 && disk_->bytes() > disk_->budget_bytes()) {
      RETURN_IF_ERROR(TrimDisk(disk_->budget_bytes(), deadline).status());
    }
    metrics_.disk_bytes().Set(static_cast<double>(disk_->bytes()));
    return absl::OkStatus();
  };
  const absl::Status status = sweep();
  sweep_lock.Release(deadline);
  return status;
}

}  // namespace mneme::memory
