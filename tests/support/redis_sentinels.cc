#include "tests/support/redis_sentinels.h"

#include <chrono>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/config/config.h"
#include "common/status/status_macros.h"
#include "tests/support/time_limit.h"

namespace mneme::testing {
namespace {

constexpr int kNumSentinels = 3;
constexpr int kQuorum = 2;

// By its log: it may have a password.
absl::Status WaitUntilInStep(const RedisServer& replica) {
  const absl::Time deadline = absl::Now() + TimeLimit(absl::Seconds(30));
  while (absl::Now() < deadline) {
    const std::string log =
        config::ReadFile(absl::StrCat(replica.folder(), "/redis.log")).value_or("");
    if (absl::StrContains(log, "sync: Finished with success")) return absl::OkStatus();
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  return absl::DeadlineExceededError("a replica never was in step with its master");
}

}  // namespace

absl::StatusOr<std::unique_ptr<RedisSentinels>> RedisSentinels::Start(
    const RedisSentinelsOptions& options) {
  std::unique_ptr<RedisSentinels> all(new RedisSentinels);
  for (int i = 0; i <= options.num_replicas; ++i) {
    RedisServerOptions server = {.append_fsync = "no", .password = options.password};
    server.config_lines = {"repl-diskless-sync-delay 0"};
    if (!options.password.empty()) {
      server.config_lines.push_back(absl::StrCat("masterauth ", options.password));
    }
    if (i > 0) {
      server.config_lines.push_back(absl::StrCat("replicaof 127.0.0.1 ", all->server(0).port()));
    }
    ASSIGN_OR_RETURN(std::unique_ptr<RedisServer> started, RedisServer::Start(server));
    all->servers_.push_back(std::move(started));
    // A Sentinel asks a master for its replicas when it begins, and then not for ten seconds.
    if (i > 0) RETURN_IF_ERROR(WaitUntilInStep(all->server(i)));
  }
  for (int i = 0; i < kNumSentinels; ++i) {
    RedisServerOptions sentinel = {.is_sentinel = true};
    const std::string name = kMasterName;
    sentinel.config_lines = {
        absl::StrCat("sentinel monitor ", name, " 127.0.0.1 ", all->server(0).port(), " ", kQuorum),
        absl::StrCat("sentinel down-after-milliseconds ", name, " 1000"),
        absl::StrCat("sentinel failover-timeout ", name, " 4000")};
    if (!options.password.empty()) {
      sentinel.config_lines.push_back(
          absl::StrCat("sentinel auth-pass ", name, " ", options.password));
    }
    if (!options.sentinel_password.empty()) {
      sentinel.config_lines.push_back(absl::StrCat("requirepass ", options.sentinel_password));
      sentinel.config_lines.push_back(
          absl::StrCat("sentinel sentinel-pass ", options.sentinel_password));
    }
    ASSIGN_OR_RETURN(std::unique_ptr<RedisServer> started, RedisServer::Start(sentinel));
    all->sentinels_.push_back(std::move(started));
  }
  RETURN_IF_ERROR(all->WaitUntilKnown(options));
  return all;
}

std::vector<std::string> RedisSentinels::addresses() const {
  std::vector<std::string> addresses;
  for (const auto& sentinel : sentinels_) addresses.push_back(sentinel->address());
  return addresses;
}

absl::Status RedisSentinels::WaitUntilKnown(const RedisSentinelsOptions& options) {
  const absl::Time deadline = absl::Now() + TimeLimit(absl::Seconds(30));
  for (const auto& sentinel : sentinels_) {
    // What a Sentinel knows it also writes into its configuration, password or not.
    const std::string path = absl::StrCat(sentinel->folder(), "/redis.conf");
    while (true) {
      const std::string known = config::ReadFile(path).value_or("");
      bool knows_all = true;
      for (int i = 1; i <= options.num_replicas; ++i) {
        knows_all &= absl::StrContains(
            known, absl::StrCat("known-replica ", kMasterName, " 127.0.0.1 ", server(i).port()));
      }
      for (const auto& other : sentinels_) {
        if (other == sentinel) continue;
        knows_all &= absl::StrContains(
            known, absl::StrCat("known-sentinel ", kMasterName, " 127.0.0.1 ", other->port()));
      }
      if (knows_all) break;
      if (absl::Now() > deadline) {
        return absl::DeadlineExceededError("the Sentinels never got to know each other");
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
  }
  return absl::OkStatus();
}

}  // namespace mneme::testing
