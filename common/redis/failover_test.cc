// What callers see while masters of a real Redis Cluster, and one watched by real Sentinels, are
// killed, stopped still and replaced.
#include <functional>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/redis/client.h"
#include "common/redis/hash_slot.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/redis_cluster.h"
#include "tests/support/redis_sentinels.h"

namespace mneme::redis {
namespace {

using ::mneme::testing::RedisCluster;
using ::mneme::testing::RedisSentinels;
using ::mneme::testing::RedisSentinelsOptions;
using ::mneme::testing::RedisServer;
using ::testing::HasSubstr;

// Beyond what a failover takes on a busy machine: a Sentinel that was held up for two seconds does
// nothing for the next thirty.
constexpr absl::Duration kPatience = absl::Seconds(80);
// What a call may take beyond its time on one.
constexpr absl::Duration kSlack = absl::Seconds(2);

absl::Duration TimeOf(const std::function<void()>& call) {
  const absl::Time start = absl::Now();
  call();
  return absl::Now() - start;
}

TEST(ClusterFailoverTest, KilledMasterIsReplacedUnderTheCall) {
  const auto cluster = RedisCluster::Start();
  ASSERT_TRUE(cluster.ok()) << cluster.status();
  Client client({.mode = Mode::kCluster,
                 .addresses = {(*cluster)->server(0).address(), (*cluster)->server(1).address()},
                 .command_timeout = kPatience});
  const int slot = HashSlot("k");
  ASSERT_TRUE(client.Run({"SET", "k", "v"}).ok());
  ASSERT_TRUE(client.RunOn((*cluster)->MasterOf(slot)->address(), {"WAIT", "1", "5000"}).ok());
  RedisServer& old_master = *(*cluster)->MasterOf(slot);
  old_master.Kill();
  // Nothing of this can have run before there is a new master: each is one call.
  auto reply = client.Run({"GET", "k"});
  if (!reply.ok()) {
    // The dying connection may have taken the command with it; then the caller is told so.
    EXPECT_EQ(reply.status().code(), absl::StatusCode::kUnavailable);
    EXPECT_THAT(std::string(reply.status().message()), HasSubstr("may have run"));
    reply = client.Run({"GET", "k"});
  }
  ASSERT_TRUE(reply.ok()) << reply.status();
  EXPECT_EQ(reply->text(), "v");
  // A pipeline over all masters, and other slots, work as before.
  std::vector<Command> commands;
  for (int i = 0; i < 50; ++i) commands.push_back({"SET", absl::StrCat("k", i), "w"});
  const auto replies = client.RunPipeline(commands);
  ASSERT_TRUE(replies.ok()) << replies.status();
  for (const Reply& each : *replies) EXPECT_EQ(each.text(), "OK") << each.status();
  // It comes back as a replica, and is not taken for a master.
  ASSERT_TRUE(old_master.Restart().ok());
  ASSERT_TRUE((*cluster)->WaitUntilServed().ok());
  EXPECT_TRUE(client.Run({"SET", "k", "w"}).ok());
  EXPECT_EQ(client.Run({"GET", "k"})->text(), "w");
}

TEST(ClusterFailoverTest, StoppedMasterIsLeftAndCallersDeadlinesHold) {
  const auto cluster = RedisCluster::Start();
  ASSERT_TRUE(cluster.ok()) << cluster.status();
  Client client({.mode = Mode::kCluster,
                 .addresses = (*cluster)->addresses(),
                 .connect_timeout = absl::Milliseconds(300),
                 .command_timeout = kPatience});
  ASSERT_TRUE(client.Run({"SET", "k", "v"}).ok());
  RedisServer& old_master = *(*cluster)->MasterOf(HashSlot("k"));
  ASSERT_TRUE(client.RunOn(old_master.address(), {"WAIT", "1", "5000"}).ok());
  old_master.Pause();
  absl::Status status;
  EXPECT_LT(TimeOf([&] {
              status = client.Run({"GET", "k"}, absl::Now() + absl::Milliseconds(500)).status();
            }),
            absl::Milliseconds(500) + kSlack);
  EXPECT_FALSE(status.ok());
  const auto reply = client.Run({"GET", "k"});
  ASSERT_TRUE(reply.ok()) << reply.status();
  EXPECT_EQ(reply->text(), "v");
  old_master.Resume();
}

TEST(ClusterFailoverTest, PartWithoutAServerIsUnavailableAndTheRestWorks) {
  const auto cluster = RedisCluster::Start(
      {.has_replicas = false,
       .server = {.append_fsync = "no", .config_lines = {"cluster-require-full-coverage no"}}});
  ASSERT_TRUE(cluster.ok()) << cluster.status();
  Client client({.mode = Mode::kCluster,
                 .addresses = (*cluster)->addresses(),
                 .command_timeout = absl::Milliseconds(500)});
  ASSERT_TRUE(client.Ping().ok());
  RedisServer& lost = *(*cluster)->MasterOf(HashSlot("k"));
  lost.Kill();
  std::string elsewhere = "a";
  while ((*cluster)->MasterOf(HashSlot(elsewhere)) == nullptr) elsewhere += "a";
  for (int i = 0; i < 3; ++i) {
    absl::Status status;
    EXPECT_LT(TimeOf([&] {
                status = client.Run({"GET", "k"}).status();
              }),
              absl::Milliseconds(500) + kSlack);
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
    EXPECT_TRUE(client.Run({"SET", elsewhere, "v"}).ok());
  }
}

TEST(ClusterFailoverTest, WithNobodyLeftToAskThereIsNothingToWaitFor) {
  const auto cluster = RedisCluster::Start({.has_replicas = false});
  ASSERT_TRUE(cluster.ok()) << cluster.status();
  Client client(
      {.mode = Mode::kCluster, .addresses = (*cluster)->addresses(), .command_timeout = kPatience});
  ASSERT_TRUE(client.Ping().ok());
  for (int i = 0; i < 3; ++i) (*cluster)->server(i).Kill();
  for (int i = 0; i < 3; ++i) {
    absl::Status status;
    EXPECT_LT(TimeOf([&] { status = client.Run({"GET", "k"}).status(); }), kSlack);
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  }
}

Options SentinelOptions(const RedisSentinels& sentinels) {
  return {.mode = Mode::kSentinel,
          .addresses = sentinels.addresses(),
          .master_name = RedisSentinels::kMasterName,
          .command_timeout = kPatience};
}

TEST(SentinelFailoverTest, KilledMasterIsReplacedUnderTheCall) {
  const auto all = RedisSentinels::Start({.password = "pw", .sentinel_password = "spw"});
  ASSERT_TRUE(all.ok()) << all.status();
  Options options = SentinelOptions(**all);
  options.password = "pw";
  {
    const absl::Status status = Client(options).Ping();
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("redis.sentinel_password_file"));
  }
  options.sentinel_password = "spw";
  Client client(options);
  ASSERT_TRUE(client.Run({"SET", "k", "v"}).ok());
  EXPECT_THAT(*client.Masters(), ::testing::ElementsAre((*all)->server(0).address()));
  ASSERT_EQ(client.Run({"WAIT", "1", "5000"})->Integer().value(), 1);
  (*all)->sentinel(0).Kill();  // two of three go on
  (*all)->server(0).Kill();
  auto reply = client.Run({"GET", "k"});
  if (!reply.ok()) {
    EXPECT_THAT(std::string(reply.status().message()), HasSubstr("may have run"));
    reply = client.Run({"GET", "k"});
  }
  ASSERT_TRUE(reply.ok()) << reply.status();
  EXPECT_EQ(reply->text(), "v");
  EXPECT_TRUE(client.Run({"SET", "k", "w"}).ok());
  EXPECT_THAT(*client.Masters(), ::testing::ElementsAre((*all)->server(1).address()));
}

TEST(SentinelFailoverTest, MasterThatBecomesAReplicaIsLeft) {
  const auto all = RedisSentinels::Start();
  ASSERT_TRUE(all.ok()) << all.status();
  Client client(SentinelOptions(**all));
  ASSERT_TRUE(client.Run({"SET", "k", "0"}).ok());
  ASSERT_EQ(
      (*all)->sentinel(0).Ask(absl::StrCat("SENTINEL FAILOVER ", RedisSentinels::kMasterName)),
      "+OK\r\n");
  // Both run all the time; at first the old master takes the writes, then it refuses them.
  const absl::Time end = absl::Now() + kPatience;
  while (client.Masters()->front() == (*all)->server(0).address() && absl::Now() < end) {
    const absl::Status status = client.Run({"INCR", "k"}).status();
    if (!status.ok()) {
      EXPECT_THAT(std::string(status.message()), HasSubstr("may have run"));
    }
    absl::SleepFor(absl::Milliseconds(10));
  }
  EXPECT_THAT(*client.Masters(), ::testing::ElementsAre((*all)->server(1).address()));
  EXPECT_TRUE(client.Run({"SET", "k", "v"}).ok());
  EXPECT_THAT((*all)->server(1).Ask("GET k"), HasSubstr("v"));
}

TEST(SentinelSettingsTest, WhatIsWrongIsNamedAtOnce) {
  const auto server = RedisServer::Start({.append_fsync = "no"});
  ASSERT_TRUE(server.ok()) << server.status();
  const auto sentinel = RedisServer::Start(
      {.config_lines = {absl::StrCat("sentinel monitor m 127.0.0.1 ", (*server)->port(), " 1")},
       .is_sentinel = true});
  ASSERT_TRUE(sentinel.ok()) << sentinel.status();
  const std::string address = (*sentinel)->address();
  EXPECT_TRUE(
      Client({.mode = Mode::kSentinel, .address = address, .master_name = "m"}).Ping().ok());
  const absl::Status unknown =
      Client({.mode = Mode::kSentinel, .address = address, .master_name = "other"}).Ping();
  EXPECT_EQ(unknown.code(), absl::StatusCode::kFailedPrecondition) << unknown;
  EXPECT_THAT(std::string(unknown.message()), HasSubstr("redis.master_name"));
  EXPECT_EQ(Client({.mode = Mode::kSentinel, .address = address}).Ping().code(),
            absl::StatusCode::kFailedPrecondition);
  (*sentinel)->Kill();
  absl::Status status;
  EXPECT_LT(TimeOf([&] {
              status =
                  Client({.mode = Mode::kSentinel, .address = address, .master_name = "m"}).Ping();
            }),
            kSlack);
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
}

}  // namespace
}  // namespace mneme::redis
