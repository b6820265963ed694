#include "services/cli/redis_checks.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "common/redis/client.h"
#include "services/cli/local_redis.h"
#include "tests/support/certificates.h"
#include "tests/support/redis_cluster.h"
#include "tests/support/redis_sentinels.h"
#include "tests/support/redis_server.h"

namespace mneme::cli {
namespace {

using ::mneme::testing::RedisServer;
using ::testing::HasSubstr;
using Level = Finding::Level;
using memory::v1::REDIS_MODE_CLUSTER;
using memory::v1::REDIS_MODE_SENTINEL;
using memory::v1::REDIS_MODE_UNSPECIFIED;

Finding Named(const std::vector<Finding>& findings, const std::string& what) {
  for (const Finding& finding : findings) {
    if (finding.what == what) return finding;
  }
  ADD_FAILURE() << "no finding " << what;
  return {};
}

memory::v1::RedisConfig UsedAs(memory::v1::RedisMode mode, int wait_for_replicas = 0) {
  memory::v1::RedisConfig config;
  config.set_mode(mode);
  config.set_wait_for_replicas(wait_for_replicas);
  return config;
}

// A server with nothing to complain about.
RedisFacts GoodFacts() {
  return {.settings = {{"appendonly", "yes"},
                       {"appendfsync", "always"},
                       {"no-appendfsync-on-rewrite", "no"},
                       {"save", ""},
                       {"maxmemory", "1000"},
                       {"maxmemory-policy", "noeviction"},
                       {"min-replicas-to-write", "1"},
                       {"min-replicas-max-lag", "10"}},
          .info = {{"redis_version", "7.0.15"},
                   {"role", "master"},
                   {"used_memory", "10"},
                   {"connected_slaves", "1"},
                   {"aof_last_write_status", "ok"},
                   {"aof_last_bgrewrite_status", "ok"},
                   {"rdb_last_bgsave_status", "ok"}}};
}

TEST(RedisChecksTest, AServerThatKeepsItsWordIsFine) {
  for (const auto mode : {REDIS_MODE_UNSPECIFIED, REDIS_MODE_CLUSTER, REDIS_MODE_SENTINEL}) {
    for (const Finding& finding : JudgeRedis("redis", UsedAs(mode), GoodFacts())) {
      EXPECT_EQ(finding.level, Level::kOk) << finding.what << ": " << finding.found;
      EXPECT_EQ(finding.advice, "");
    }
  }
}

struct Case {
  const char* map;  // "settings" or "info"
  const char* key;
  const char* value;
  const char* what;
  Level level;
  const char* advice;
  memory::v1::RedisMode mode = REDIS_MODE_UNSPECIFIED;
};

class BadSettingTest : public ::testing::TestWithParam<Case> {};

TEST_P(BadSettingTest, IsNamedWithWhatToDo) {
  RedisFacts facts = GoodFacts();
  const Case& c = GetParam();
  (std::string(c.map) == "info" ? facts.info : facts.settings)[c.key] = c.value;
  const std::vector<Finding> findings = JudgeRedis("redis", UsedAs(c.mode), facts);
  const Finding finding = Named(findings, c.what);
  EXPECT_EQ(finding.level, c.level);
  EXPECT_THAT(finding.advice, HasSubstr(c.advice));
  for (const Finding& other : findings) {
    if (other.what == c.what) continue;
    EXPECT_EQ(other.level, Level::kOk) << other.what;
  }
}

INSTANTIATE_TEST_SUITE_P(
    All, BadSettingTest,
    ::testing::Values(
        Case{"settings", "appendonly", "no", "redis: appendonly", Level::kBad, "every session"},
        Case{"settings", "appendfsync", "everysec", "redis: appendonly", Level::kWarning,
             "appendfsync always"},
        Case{"settings", "appendfsync", "no", "redis: appendonly", Level::kWarning,
             "appendfsync always"},
        Case{"settings", "no-appendfsync-on-rewrite", "yes", "redis: no-appendfsync-on-rewrite",
             Level::kWarning, "no-appendfsync-on-rewrite no"},
        Case{"settings", "maxmemory-policy", "allkeys-lru", "redis: eviction", Level::kBad,
             "noeviction"},
        Case{"settings", "maxmemory", "0", "redis: memory", Level::kWarning, "maxmemory"},
        Case{"info", "used_memory", "950", "redis: memory", Level::kBad, "raise maxmemory"},
        Case{"info", "redis_version", "6.0.16", "redis: version", Level::kBad, "upgrade"},
        Case{"info", "redis_version", "", "redis: version", Level::kWarning, "6.2"},
        Case{"info", "role", "slave", "redis: role", Level::kBad, "master"},
        Case{"info", "cluster_enabled", "1", "redis: role", Level::kBad, "REDIS_MODE_CLUSTER"},
        Case{"info", "aof_last_write_status", "err", "redis: append-only file", Level::kBad,
             "free disk space"},
        Case{"info", "aof_last_bgrewrite_status", "err", "redis: append-only file", Level::kWarning,
             "BGREWRITEAOF"},
        Case{"info", "rdb_last_bgsave_status", "err", "redis: snapshot", Level::kWarning, "BGSAVE"},
        Case{"settings", "min-replicas-to-write", "0", "redis: replication", Level::kWarning,
             "min-replicas-to-write 1", REDIS_MODE_CLUSTER},
        Case{"settings", "min-replicas-to-write", "0", "redis: replication", Level::kWarning,
             "min-replicas-to-write 1", REDIS_MODE_SENTINEL},
        Case{"info", "connected_slaves", "0", "redis: replication", Level::kWarning,
             "add a replica", REDIS_MODE_CLUSTER}));

TEST(RedisChecksTest, AFailedSnapshotThatStopsWritesIsBad) {
  RedisFacts facts = GoodFacts();
  facts.settings["save"] = "3600 1";
  facts.settings["stop-writes-on-bgsave-error"] = "yes";
  facts.info["rdb_last_bgsave_status"] = "err";
  EXPECT_EQ(
      Named(JudgeRedis("redis", UsedAs(REDIS_MODE_UNSPECIFIED), facts), "redis: snapshot").level,
      Level::kBad);
}

TEST(RedisChecksTest, WhereConfigIsForbiddenInfoSaysTheMost) {
  RedisFacts facts = GoodFacts();
  facts.settings.clear();
  facts.info["aof_enabled"] = "1";
  facts.info["maxmemory"] = "1000";
  facts.info["maxmemory_policy"] = "allkeys-lru";
  const std::vector<Finding> findings = JudgeRedis("redis", UsedAs(REDIS_MODE_UNSPECIFIED), facts);
  EXPECT_EQ(Named(findings, "redis: appendonly").level, Level::kWarning);
  EXPECT_THAT(Named(findings, "redis: appendonly").found, HasSubstr("unknown"));
  EXPECT_EQ(Named(findings, "redis: eviction").level, Level::kBad);
  EXPECT_EQ(Named(findings, "redis: memory").level, Level::kOk);
  facts.info["aof_enabled"] = "0";
  EXPECT_EQ(
      Named(JudgeRedis("redis", UsedAs(REDIS_MODE_UNSPECIFIED), facts), "redis: appendonly").level,
      Level::kBad);
}

TEST(RedisChecksTest, WhoWaitsForReplicasNeedsOneMore) {
  RedisFacts facts = GoodFacts();
  facts.settings["min-replicas-to-write"] = "0";
  for (const auto mode : {REDIS_MODE_UNSPECIFIED, REDIS_MODE_SENTINEL}) {
    const auto level_with = [&](const char* connected) {
      facts.info["connected_slaves"] = connected;
      return Named(JudgeRedis("redis", UsedAs(mode, 1), facts), "redis: replication").level;
    };
    EXPECT_EQ(level_with("0"), Level::kBad);
    EXPECT_EQ(level_with("1"), Level::kWarning);
    EXPECT_EQ(level_with("2"), Level::kOk);
  }
}

TEST(RedisChecksTest, EncryptionIsWantedBetweenMachines) {
  memory::v1::RedisConfig redis;
  redis.set_address("127.0.0.1:6379");
  EXPECT_EQ(JudgeEncryption(redis).level, Level::kOk);
  redis.add_addresses("redis.internal:6379");
  EXPECT_EQ(JudgeEncryption(redis).level, Level::kWarning);
  redis.set_tls(true);
  EXPECT_EQ(JudgeEncryption(redis).level, Level::kOk);
}

TEST(RedisChecksTest, ARealRedisIsAsked) {
  const auto redis = RedisServer::Start(
      {.append_fsync = "everysec", .config_lines = {"maxmemory-policy volatile-lru"}});
  ASSERT_TRUE(redis.ok()) << redis.status();
  memory::v1::RedisConfig config;
  config.set_address((*redis)->address());
  const std::vector<Finding> findings = CheckRedis(config);
  EXPECT_EQ(Named(findings, "redis").level, Level::kOk);
  EXPECT_EQ(Named(findings, "redis: version").level, Level::kOk);
  EXPECT_EQ(Named(findings, "redis: appendonly").level, Level::kWarning);
  EXPECT_THAT(Named(findings, "redis: appendonly").advice, HasSubstr("appendfsync always"));
  EXPECT_EQ(Named(findings, "redis: eviction").level, Level::kBad);
  EXPECT_TRUE(CheckExternalRedis(config).ok());
  // A user who may not see the settings.
  redis::Client client({.address = (*redis)->address()});
  ASSERT_TRUE(client.Run({"ACL", "SETUSER", "default", "-config"}).ok());
  EXPECT_THAT(Named(CheckRedis(config), "redis: appendonly").found, HasSubstr("unknown"));
  (*redis)->Stop();
  EXPECT_EQ(Named(CheckRedis(config), "redis").level, Level::kBad);
  const absl::Status status = CheckExternalRedis(config);
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr((*redis)->address()));
}

TEST(RedisChecksTest, ARedisWithTlsIsAsked) {
  testing::CertificateAuthority authority;
  const testing::CertificateFiles files = authority.Issue("IP:127.0.0.1");
  const auto redis = RedisServer::Start({.tls = {{.ca_file = authority.certificate_file(),
                                                  .certificate = files.certificate,
                                                  .key = files.key}}});
  ASSERT_TRUE(redis.ok()) << redis.status();
  memory::v1::RedisConfig config;
  config.set_address((*redis)->address());
  config.set_tls(true);
  EXPECT_THAT(Named(CheckRedis(config), "redis").advice, HasSubstr("redis.tls_ca_file"));
  config.set_tls_ca_file(authority.certificate_file());
  const std::vector<Finding> findings = CheckRedis(config);
  EXPECT_EQ(Named(findings, "redis").level, Level::kOk);
  EXPECT_EQ(Named(findings, "redis: encryption").found, "TLS");
  EXPECT_TRUE(CheckExternalRedis(config).ok());
}

TEST(RedisChecksTest, EveryMasterOfAClusterIsLookedAt) {
  const auto cluster = testing::RedisCluster::Start({.has_replicas = false});
  ASSERT_TRUE(cluster.ok()) << cluster.status();
  memory::v1::RedisConfig config;
  config.set_mode(REDIS_MODE_CLUSTER);
  config.add_addresses((*cluster)->server(0).address());
  ASSERT_EQ((*cluster)->server(2).Ask("CONFIG SET maxmemory-policy allkeys-lru"), "+OK\r\n");
  const std::vector<Finding> findings = CheckRedis(config);
  for (int i = 0; i < 3; ++i) {
    const std::string name = absl::StrCat("redis ", (*cluster)->server(i).address());
    EXPECT_EQ(Named(findings, name).level, Level::kOk);
    EXPECT_EQ(Named(findings, name + ": eviction").level, i == 2 ? Level::kBad : Level::kOk);
    EXPECT_EQ(Named(findings, name + ": replication").level, Level::kWarning);
  }
  EXPECT_EQ(Named(findings, "redis: cluster").level, Level::kOk);
  EXPECT_TRUE(CheckExternalRedis(config).ok());
  // One node alone is not the whole.
  memory::v1::RedisConfig single;
  single.set_address((*cluster)->server(0).address());
  EXPECT_EQ(Named(CheckRedis(single), "redis: role").level, Level::kBad);
  ASSERT_EQ((*cluster)->server(0).Ask("CLUSTER DELSLOTS 0"), "+OK\r\n");
  EXPECT_EQ(Named(CheckRedis(config), "redis: cluster").level, Level::kBad);
}

TEST(RedisChecksTest, TheMasterOfSentinelsIsLookedAt) {
  const auto all = testing::RedisSentinels::Start();
  ASSERT_TRUE(all.ok()) << all.status();
  memory::v1::RedisConfig config;
  config.set_mode(REDIS_MODE_SENTINEL);
  config.set_master_name(testing::RedisSentinels::kMasterName);
  for (const std::string& address : (*all)->addresses()) config.add_addresses(address);
  const std::string name = absl::StrCat("redis ", (*all)->server(0).address());
  const std::vector<Finding> findings = CheckRedis(config);
  EXPECT_EQ(Named(findings, name).level, Level::kOk);
  EXPECT_THAT(Named(findings, name + ": replication").advice, HasSubstr("min-replicas-to-write"));
}

TEST(RedisChecksTest, SettingsThatDoNotGoTogetherAreNamed) {
  memory::v1::RedisConfig config;
  config.add_addresses("a:1");
  EXPECT_THAT(std::string(CheckExternalRedis(config).message()), HasSubstr("redis.mode"));
  config.set_mode(REDIS_MODE_SENTINEL);
  EXPECT_THAT(std::string(CheckExternalRedis(config).message()), HasSubstr("redis.master_name"));
  config.set_mode(REDIS_MODE_CLUSTER);
  config.set_database(1);
  EXPECT_THAT(std::string(CheckExternalRedis(config).message()), HasSubstr("redis.database"));
  config.set_database(0);
  config.set_tls_ca_file("ca.pem");
  EXPECT_THAT(std::string(CheckExternalRedis(config).message()), HasSubstr("redis.tls"));
  EXPECT_EQ(CheckExternalRedis(config).code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace mneme::cli
