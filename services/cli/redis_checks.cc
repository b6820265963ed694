#include "services/cli/redis_checks.h"

#include <cstdint>
#include <tuple>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "common/redis/client.h"
#include "common/redis/config.h"
#include "services/cli/chat_settings.h"

namespace mneme::cli {
namespace {

constexpr int kOldestMajor = 6;
constexpr int kOldestMinor = 2;
constexpr char kUnknown[] = "unknown";

std::string ValueOf(const std::map<std::string, std::string>& map, const std::string& key) {
  const auto found = map.find(key);
  return found == map.end() ? std::string() : found->second;
}

int64_t NumberOf(const std::map<std::string, std::string>& map, const std::string& key) {
  int64_t number = 0;
  return absl::SimpleAtoi(ValueOf(map, key), &number) ? number : 0;
}

// Looks at one server's facts; each method adds findings about one subject.
class Judge {
 public:
  Judge(const std::string& name, const memory::v1::RedisConfig& redis, const RedisFacts& facts)
      : name_(name), redis_(redis), facts_(facts) {}

  std::vector<Finding> All() {
    Version();
    Role();
    AppendOnly();
    LastWrites();
    Eviction();
    Memory();
    if (redis_.mode() != memory::v1::REDIS_MODE_UNSPECIFIED || redis_.wait_for_replicas() > 0) {
      Replication();
    }
    return std::move(findings_);
  }

 private:
  std::string Name(absl::string_view subject) const { return absl::StrCat(name_, ": ", subject); }
  std::string Setting(const std::string& key) const { return ValueOf(facts_.settings, key); }
  std::string Info(const std::string& key) const { return ValueOf(facts_.info, key); }
  void Ok(absl::string_view subject, std::string found) {
    findings_.push_back(Finding::Ok(Name(subject), std::move(found)));
  }
  void Warning(absl::string_view subject, std::string found, std::string advice) {
    findings_.push_back(Finding::Warning(Name(subject), std::move(found), std::move(advice)));
  }
  void Bad(absl::string_view subject, std::string found, std::string advice) {
    findings_.push_back(Finding::Bad(Name(subject), std::move(found), std::move(advice)));
  }

  void Version() {
    const std::string version = Info("redis_version");
    const std::vector<std::string> parts = absl::StrSplit(version, '.');
    int major = 0;
    int minor = 0;
    if (parts.size() < 2 || !absl::SimpleAtoi(parts[0], &major) ||
        !absl::SimpleAtoi(parts[1], &minor)) {
      Warning("version", kUnknown, "Mneme needs 6.2 or later: see `redis-cli info server`");
    } else if (std::tie(major, minor) < std::tie(kOldestMajor, kOldestMinor)) {
      Bad("version", version, "Mneme needs 6.2 or later: upgrade Redis");
    } else {
      Ok("version", version);
    }
  }

  void Role() {
    if (redis_.mode() == memory::v1::REDIS_MODE_UNSPECIFIED && Info("cluster_enabled") == "1") {
      Bad("role", "a node of a Redis Cluster",
          "one node refuses most sessions: set redis.mode to REDIS_MODE_CLUSTER (doctor: "
          "--redis-mode cluster)");
    } else if (Info("role") == "slave") {
      Bad("role", absl::StrCat("a replica of ", Info("master_host"), ":", Info("master_port")),
          "it refuses writes: point redis.address at its master, or let Sentinels find that "
          "(redis.mode)");
    }
  }

  void AppendOnly() {
    std::string append_only = Setting("appendonly");
    if (append_only.empty() && !Info("aof_enabled").empty()) {
      append_only = Info("aof_enabled") == "1" ? "yes" : "no";
    }
    if (append_only != "yes") {
      const std::string snapshots = Setting("save");
      Bad("appendonly", append_only.empty() ? kUnknown : append_only,
          absl::StrCat(snapshots.empty() ? "every session is lost"
                                         : "what was said since the last snapshot (save) is lost",
                       " when Redis restarts: CONFIG SET appendonly yes, and the same in "
                       "redis.conf"));
      return;
    }
    const std::string fsync = Setting("appendfsync");
    if (fsync == "always") {
      Ok("appendonly", "yes, on the disk with every turn (always)");
    } else if (fsync.empty()) {
      Warning(
          "appendonly", "yes, appendfsync unknown",
          "CONFIG is forbidden here: see where Redis is hosted that it is always (or everysec)");
    } else {
      Warning("appendonly", absl::StrCat("yes, appendfsync ", fsync),
              fsync == "everysec"
                  ? "a power failure loses up to a second of turns; for none: CONFIG SET "
                    "appendfsync always"
                  : "a power failure loses what the system has not written yet: CONFIG SET "
                    "appendfsync always (or everysec)");
    }
    if (Setting("no-appendfsync-on-rewrite") == "yes" && fsync != "no") {
      Warning("no-appendfsync-on-rewrite", "yes",
              "while the append-only file is rewritten nothing is forced to the disk, and a power "
              "failure loses up to 30 s of turns: CONFIG SET no-appendfsync-on-rewrite no");
    }
  }

  void LastWrites() {
    const std::string write = Info("aof_last_write_status");
    if (!write.empty() && write != "ok") {
      Bad("append-only file", absl::StrCat("the last write failed: ", write),
          "Redis refuses turns until it can write again: free disk space, see its log");
    }
    const std::string rewrite = Info("aof_last_bgrewrite_status");
    if (!rewrite.empty() && rewrite != "ok") {
      Warning("append-only file", absl::StrCat("the last rewrite failed: ", rewrite),
              "the file grows without bound: free disk space and memory, then BGREWRITEAOF");
    }
    const std::string snapshot = Info("rdb_last_bgsave_status");
    if (snapshot.empty() || snapshot == "ok") return;
    const bool refuses =
        !Setting("save").empty() && Setting("stop-writes-on-bgsave-error") == "yes";
    const std::string found = absl::StrCat("the last one failed: ", snapshot);
    const std::string advice = "free disk space and memory, see its log, then BGSAVE";
    if (refuses) {
      Bad("snapshot", found, absl::StrCat("Redis refuses turns until one works: ", advice));
    } else {
      Warning("snapshot", found, advice);
    }
  }

  void Eviction() {
    std::string policy = Setting("maxmemory-policy");
    if (policy.empty()) policy = Info("maxmemory_policy");
    if (policy == "noeviction") {
      Ok("eviction", policy);
    } else {
      Bad("eviction", policy.empty() ? kUnknown : policy,
          "Redis would silently drop parts of sessions when it is full: CONFIG SET "
          "maxmemory-policy noeviction, and the same in redis.conf");
    }
  }

  void Memory() {
    const int64_t used = NumberOf(facts_.info, "used_memory");
    const int64_t limit = facts_.settings.contains("maxmemory")
                              ? NumberOf(facts_.settings, "maxmemory")
                              : NumberOf(facts_.info, "maxmemory");
    if (limit == 0) {
      Warning("memory", absl::StrCat(BytesText(used), " used, no limit"),
              "on a shared machine set one, so that a full Redis refuses writes instead of being "
              "killed: CONFIG SET maxmemory 4gb");
    } else if (used > limit / 10 * 9) {
      Bad("memory", absl::StrCat(BytesText(used), " of ", BytesText(limit), " used"),
          "soon no turn can be stored: raise maxmemory, or delete sessions");
    } else {
      Ok("memory", absl::StrCat(BytesText(used), " of ", BytesText(limit), " used"));
    }
  }

  void Replication() {
    const int64_t connected = NumberOf(facts_.info, "connected_slaves");
    if (redis_.wait_for_replicas() > 0) {
      Acknowledgement(connected);
      return;
    }
    if (connected == 0) {
      Warning("replication", "no replica",
              "if this server dies nothing takes over and its sessions wait for its return: add a "
              "replica");
      return;
    }
    const int64_t replicas = NumberOf(facts_.settings, "min-replicas-to-write");
    if (replicas > 0) {
      Ok("replication",
         absl::StrCat("min-replicas-to-write ", replicas, ", min-replicas-max-lag ",
                      Setting("min-replicas-max-lag"),
                      " s: a master that is cut off stops taking turns. It stays asynchronous: a "
                      "turn acknowledged in the instant before a failover can still be lost, "
                      "without redis.wait_for_replicas"));
      return;
    }
    Warning("replication", "asynchronous, min-replicas-to-write 0",
            "a failover loses the turns that the replica does not have yet, and a master that is "
            "cut off goes on acknowledging turns that are lost later: set redis.wait_for_replicas, "
            "or bound that with CONFIG SET min-replicas-to-write 1 and min-replicas-max-lag 10");
  }

  void Acknowledgement(int64_t connected) {
    const int64_t wanted = redis_.wait_for_replicas();
    const std::string found = absl::StrCat(connected, " replicas, each turn waits for ", wanted);
    if (connected < wanted) {
      Bad("replication", found,
          "no turn can be committed: connect replicas, or lower redis.wait_for_replicas");
    } else if (connected == wanted) {
      Warning("replication", found,
              "if one of them fails no turn can be committed, nor after a failover: add a replica");
    } else {
      Ok("replication", found);
    }
  }

  const std::string name_;
  const memory::v1::RedisConfig& redis_;
  const RedisFacts& facts_;
  std::vector<Finding> findings_;
};

absl::StatusOr<RedisFacts> Ask(redis::Client& client, const std::string& master) {
  RedisFacts facts;
  const absl::StatusOr<redis::Reply> info = client.RunOn(master, {"INFO"});
  if (!info.ok()) return info.status();
  facts.info = ParseInfo(info->text());
  const absl::StatusOr<redis::Reply> settings = client.RunOn(master, {"CONFIG", "GET", "*"});
  if (!settings.ok()) return facts;  // a hosted Redis may forbid it; INFO says the most of it
  const std::vector<redis::Reply>& pairs = settings->elements();
  for (size_t i = 0; i + 1 < pairs.size(); i += 2)
    facts.settings[pairs[i].text()] = pairs[i + 1].text();
  return facts;
}

Finding Unreachable(const std::string& what, const std::string& found, const absl::Status& status) {
  return Finding::Bad(what, found, std::string(status.message()));
}

// Each has its own view of the Cluster: the worst one counts.
Finding CheckCluster(redis::Client& client, const std::vector<std::string>& masters) {
  Finding finding;
  for (const std::string& master : masters) {
    const absl::StatusOr<redis::Reply> info = client.RunOn(master, {"CLUSTER", "INFO"});
    finding = info.ok() ? JudgeCluster(ParseInfo(info->text()))
                        : Unreachable("redis: cluster", master, info.status());
    if (finding.level != Finding::Level::kOk) break;
  }
  return finding;
}

bool IsLoopback(absl::string_view address) {
  return absl::StartsWith(address, "127.") || absl::StartsWith(address, "localhost:") ||
         absl::StartsWith(address, "[::1]:");
}

}  // namespace

std::map<std::string, std::string> ParseInfo(absl::string_view text) {
  std::map<std::string, std::string> fields;
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    absl::ConsumeSuffix(&line, "\r");
    const std::pair<absl::string_view, absl::string_view> parts =
        absl::StrSplit(line, absl::MaxSplits(':', 1));
    if (!parts.first.empty() && parts.first[0] != '#') {
      fields[std::string(parts.first)] = std::string(parts.second);
    }
  }
  return fields;
}

std::vector<Finding> JudgeRedis(const std::string& name, const memory::v1::RedisConfig& redis,
                                const RedisFacts& facts) {
  return Judge(name, redis, facts).All();
}

Finding JudgeCluster(const std::map<std::string, std::string>& info) {
  const std::string state = ValueOf(info, "cluster_state");
  const std::string found =
      absl::StrCat("state ", state.empty() ? kUnknown : state, ", ", ValueOf(info, "cluster_size"),
                   " masters, ", ValueOf(info, "cluster_slots_ok"), " of 16384 hash slots served");
  if (state == "ok" && ValueOf(info, "cluster_slots_ok") == "16384") {
    return Finding::Ok("redis: cluster", found);
  }
  return Finding::Bad(
      "redis: cluster", found,
      "sessions of the other slots cannot be used: see `redis-cli --cluster check`, "
      "start the servers that are missing or `redis-cli --cluster fix`");
}

Finding JudgeEncryption(const memory::v1::RedisConfig& redis) {
  if (redis.tls()) return Finding::Ok("redis: encryption", "TLS");
  bool is_local = redis.address().empty() || IsLoopback(redis.address());
  for (const std::string& address : redis.addresses()) is_local &= IsLoopback(address);
  if (is_local) return Finding::Ok("redis: encryption", "none, on this machine only");
  return Finding::Warning("redis: encryption", "none",
                          "passwords and conversations can be read on the way: set redis.tls, with "
                          "Redis' tls-port");
}

std::vector<Finding> CheckRedis(const memory::v1::RedisConfig& redis) {
  const absl::StatusOr<redis::Options> options = redis::OptionsOf(redis);
  if (!options.ok()) return {Unreachable("redis", redis.address(), options.status())};
  redis::Client client(*options);
  const absl::StatusOr<std::vector<std::string>> masters = client.Masters();
  if (!masters.ok()) return {Unreachable("redis", client.address(), masters.status())};
  std::vector<Finding> findings;
  for (const std::string& master : *masters) {
    const std::string name = redis.mode() == memory::v1::REDIS_MODE_UNSPECIFIED
                                 ? "redis"
                                 : absl::StrCat("redis ", master);
    const absl::StatusOr<RedisFacts> facts = Ask(client, master);
    if (!facts.ok()) {
      findings.push_back(Unreachable(name, master, facts.status()));
      continue;
    }
    findings.push_back(Finding::Ok(name, master));
    for (Finding& finding : JudgeRedis(name, redis, *facts)) {
      findings.push_back(std::move(finding));
    }
  }
  if (redis.mode() == memory::v1::REDIS_MODE_CLUSTER) {
    findings.push_back(CheckCluster(client, *masters));
  }
  findings.push_back(JudgeEncryption(redis));
  return findings;
}

}  // namespace mneme::cli
