// Against a real Redis Cluster of three masters.
#include <atomic>
#include <set>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/redis/client.h"
#include "common/redis/cluster_directory.h"
#include "common/redis/hash_slot.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/redis_cluster.h"
#include "tests/support/redis_server.h"

namespace mneme::redis {
namespace {

using ::mneme::testing::RedisCluster;
using ::mneme::testing::RedisServer;
using ::testing::HasSubstr;

constexpr int kNumKeys = 200;

std::string KeyOf(int i) { return absl::StrCat("key:", i); }

class ClusterTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    auto started = RedisCluster::Start({.has_replicas = false});
    ASSERT_TRUE(started.ok()) << started.status();
    cluster_ = *std::move(started);
  }
  static void TearDownTestSuite() { cluster_.reset(); }

  void SetUp() override { ASSERT_TRUE(client_.RunOnEveryMaster({"FLUSHALL"}).ok()); }

  // How often the server has answered with this error.
  static int NumErrors(const RedisServer& server, absl::string_view name) {
    const std::string info = server.Ask("INFO errorstats");
    const std::string head = absl::StrCat("errorstat_", name, ":count=");
    const size_t at = info.find(head);
    return at == std::string::npos ? 0 : std::atoi(info.c_str() + at + head.size());
  }
  static RedisServer& Other(const RedisServer& server) {
    return &cluster_->server(0) == &server ? cluster_->server(1) : cluster_->server(0);
  }
  // Makes the slot ready to move; returns where to.
  static RedisServer& BeginMove(int slot, RedisServer& from) {
    RedisServer& to = Other(from);
    EXPECT_EQ(
        to.Ask(absl::StrCat("CLUSTER SETSLOT ", slot, " IMPORTING ", RedisCluster::IdOf(from))),
        "+OK\r\n");
    EXPECT_EQ(
        from.Ask(absl::StrCat("CLUSTER SETSLOT ", slot, " MIGRATING ", RedisCluster::IdOf(to))),
        "+OK\r\n");
    return to;
  }
  static void MoveKey(const std::string& key, RedisServer& from, RedisServer& to) {
    EXPECT_EQ(from.Ask(absl::StrCat("MIGRATE 127.0.0.1 ", to.port(), " ", key, " 0 1000")),
              "+OK\r\n");
  }
  static void EndMove(int slot, RedisServer& to) {
    const std::string line =
        absl::StrCat("CLUSTER SETSLOT ", slot, " NODE ", RedisCluster::IdOf(to));
    EXPECT_EQ(to.Ask(line), "+OK\r\n");
    for (int i = 0; i < cluster_->size(); ++i) EXPECT_EQ(cluster_->server(i).Ask(line), "+OK\r\n");
  }

  static inline std::unique_ptr<RedisCluster> cluster_;
  // Knows one node and finds the others.
  Client client_{{.mode = Mode::kCluster, .address = cluster_->server(0).address()}};
};

TEST_F(ClusterTest, HashSlotsAreThoseOfRedis) {
  std::vector<std::string> keys = {"", "{", "{}", "a{}b", "{a}", "x{a}y{b}", "a{{b}}c", "a}b{c}"};
  for (int i = 0; i < 100; ++i) keys.push_back(absl::StrCat("mneme:1:{t/", i, "}:head"));
  for (const std::string& key : keys) {
    EXPECT_EQ(HashSlot(key), client_.Run({"CLUSTER", "KEYSLOT", key})->Integer().value()) << key;
  }
  EXPECT_EQ(HashSlot("123456789"), 0x31C3);  // the standard's check value, below 2^14
}

TEST_F(ClusterTest, CommandsRunOnTheMasterOfTheirKey) {
  for (int i = 0; i < kNumKeys; ++i) {
    ASSERT_TRUE(client_.Run({"SET", KeyOf(i), absl::StrCat(i)}).ok());
  }
  for (int i = 0; i < kNumKeys; ++i) {
    EXPECT_EQ(client_.Run({"GET", KeyOf(i)})->text(), absl::StrCat(i));
  }
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(NumErrors(cluster_->server(i), "MOVED"), 0);  // it knew, and did not try
    EXPECT_NE(cluster_->server(i).Ask("DBSIZE"), ":0\r\n");
  }
}

TEST_F(ClusterTest, PipelineOverAllServersIsAnsweredInOrder) {
  const std::string large(1 << 20, 'x');
  std::vector<Command> commands;
  for (int i = 0; i < kNumKeys; ++i) {
    commands.push_back({"SET", KeyOf(i), i % 50 == 0 ? large : absl::StrCat(i)});
    commands.push_back({"GET", KeyOf(i)});
    commands.push_back({"LPUSH", KeyOf(i), "x"});
    commands.push_back({"PING"});
  }
  const auto replies = client_.RunPipeline(commands);
  ASSERT_TRUE(replies.ok()) << replies.status();
  ASSERT_EQ(replies->size(), commands.size());
  for (int i = 0; i < kNumKeys; ++i) {
    EXPECT_EQ((*replies)[4 * i].text(), "OK");
    EXPECT_EQ((*replies)[4 * i + 1].text(), i % 50 == 0 ? large : absl::StrCat(i));
    EXPECT_THAT((*replies)[4 * i + 2].text(), HasSubstr("WRONGTYPE"));
    EXPECT_EQ((*replies)[4 * i + 3].text(), "PONG");
  }
}

TEST_F(ClusterTest, ManyThreadsWithFewConnectionsDoNotWaitForEachOther) {
  Client client({.mode = Mode::kCluster, .addresses = cluster_->addresses(), .pool_size = 1});
  std::atomic<int> num_failed = 0;
  {
    std::vector<std::jthread> threads;
    for (int t = 0; t < 8; ++t) {
      threads.emplace_back([&client, &num_failed, t] {
        for (int i = 0; i < 50; ++i) {
          std::vector<Command> commands;
          // Begins with another server each time.
          for (int k = 0; k < 6; ++k) commands.push_back({"INCR", KeyOf((t + i + k) % 12)});
          if (!client.RunPipeline(commands).ok()) ++num_failed;
        }
      });
    }
  }
  EXPECT_EQ(num_failed, 0);
  int64_t sum = 0;
  for (int k = 0; k < 12; ++k) sum += client.Run({"GET", KeyOf(k)})->Integer().value();
  EXPECT_EQ(sum, 8 * 50 * 6);
}

TEST_F(ClusterTest, ScriptIsSentWholeToEachServerThatDoesNotKnowIt) {
  const Script script("return redis.call('INCRBY', KEYS[1], ARGV[1])");
  for (int round = 1; round <= 2; ++round) {
    ASSERT_TRUE(client_.RunOnEveryMaster({"SCRIPT", "FLUSH"}).ok());
    for (int i = 0; i < 20; ++i) {
      const auto reply = client_.Eval(script, {KeyOf(i)}, {"2"});
      ASSERT_TRUE(reply.ok()) << reply.status();
      EXPECT_EQ(reply->Integer().value(), 2 * round);
    }
  }
}

TEST_F(ClusterTest, KeysOfSeveralSlotsAreTheCallersMistake) {
  const absl::Status status = client_.Eval(Script("return 1"), {"a", "b"}, {}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("a, b"));
  EXPECT_TRUE(client_.Eval(Script("return 1"), {"{t}a", "{t}b"}, {}).ok());
  EXPECT_EQ(client_.Run({"MGET", "a", "b"}).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(ClusterTest, WhatConcernsOneServerOnlyNeedsItsName) {
  for (int i = 0; i < kNumKeys; ++i) ASSERT_TRUE(client_.Run({"SET", KeyOf(i), "v"}).ok());
  for (const char* name : {"KEYS", "SCAN", "FLUSHALL", "config"}) {
    EXPECT_EQ(client_.Run({name, "x"}).status().code(), absl::StatusCode::kInvalidArgument);
  }
  EXPECT_EQ(client_.Run({"GET"}).status().code(), absl::StatusCode::kInvalidArgument);
  const auto masters = client_.Masters();
  ASSERT_TRUE(masters.ok()) << masters.status();
  EXPECT_EQ(masters->size(), 3u);
  std::set<std::string> found;
  for (const std::string& master : *masters) {
    std::string cursor = "0";
    do {
      const auto page = client_.RunOn(master, {"SCAN", cursor, "COUNT", "7"});
      ASSERT_TRUE(page.ok()) << page.status();
      cursor = page->elements()[0].text();
      for (const Reply& key : page->elements()[1].elements()) found.insert(key.text());
    } while (cursor != "0");
  }
  EXPECT_EQ(found.size(), static_cast<size_t>(kNumKeys));
  EXPECT_EQ(client_.RunOn("127.0.0.1:1", {"DBSIZE"}).status().code(), absl::StatusCode::kNotFound);
}

TEST_F(ClusterTest, SlotThatMovesIsFollowed) {
  const int slot = HashSlot("{m}");
  RedisServer& from = *cluster_->MasterOf(slot);
  ASSERT_TRUE(client_.RunPipeline({{"SET", "{m}old", "1"}, {"SET", "{m}moved", "2"}}).ok());
  RedisServer& to = BeginMove(slot, from);
  MoveKey("{m}moved", from, to);
  // ASK: what is not here any more, or never was, is at the new place.
  const int asked = NumErrors(from, "ASK");
  const auto replies = client_.RunPipeline({{"GET", "{m}old"},
                                            {"GET", "{m}moved"},
                                            {"GET", "other"},
                                            {"SET", "{m}new", "3"},
                                            {"INCR", "{m}moved"}});
  ASSERT_TRUE(replies.ok()) << replies.status();
  EXPECT_EQ((*replies)[0].text(), "1");
  EXPECT_EQ((*replies)[1].text(), "2");
  EXPECT_TRUE((*replies)[2].is_nil());
  EXPECT_EQ((*replies)[3].text(), "OK");
  EXPECT_EQ((*replies)[4].Integer().value(), 3);
  EXPECT_EQ(NumErrors(from, "ASK"), asked + 3);
  // TRYAGAIN: keys at both places, until the rest has moved.
  const absl::Status both =
      client_.Run({"MGET", "{m}old", "{m}moved"}, absl::Now() + absl::Milliseconds(100)).status();
  EXPECT_EQ(both.code(), absl::StatusCode::kUnavailable) << both;
  std::jthread mover([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    MoveKey("{m}old", from, to);
    EndMove(slot, to);
  });
  const auto moved = client_.Run({"MGET", "{m}old", "{m}moved"});
  ASSERT_TRUE(moved.ok()) << moved.status();
  EXPECT_EQ(moved->elements()[0].text(), "1");
  EXPECT_EQ(moved->elements()[1].text(), "3");
  mover.join();
  // MOVED: once, then it is known.
  ASSERT_TRUE(client_.Run({"GET", "{m}old"}).ok());
  const int redirected = NumErrors(from, "MOVED");
  for (int i = 0; i < 20; ++i) EXPECT_EQ(client_.Run({"GET", "{m}old"})->text(), "1");
  EXPECT_EQ(NumErrors(from, "MOVED"), redirected);
}

TEST_F(ClusterTest, SlotThatHasMovedIsFoundByAClientThatKnewTheOldPlace) {
  const int slot = HashSlot("{n}");
  RedisServer& from = *cluster_->MasterOf(slot);
  ASSERT_TRUE(client_.Run({"PING"}).ok());
  EndMove(slot, BeginMove(slot, from));
  const auto replies = client_.RunPipeline({{"SET", "{n}", "1"}, {"INCR", "{n}"}, {"GET", "{n}"}});
  ASSERT_TRUE(replies.ok()) << replies.status();
  EXPECT_EQ((*replies)[0].text(), "OK");
  EXPECT_EQ((*replies)[2].text(), "2");
}

TEST_F(ClusterTest, PingSaysWhetherTheClusterServes) { EXPECT_TRUE(client_.Ping().ok()); }

TEST(ClusterSettingsTest, ClientOfTheOtherKindSaysWhatToSet) {
  const auto server = RedisServer::Start({.append_fsync = "no"});
  ASSERT_TRUE(server.ok()) << server.status();
  Client client({.mode = Mode::kCluster, .addresses = {(*server)->address()}});
  const absl::Status status = client.Run({"GET", "k"}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("redis.mode"));
  EXPECT_EQ(Client({.mode = Mode::kCluster}).Ping().code(), absl::StatusCode::kFailedPrecondition);
}

TEST(ParseSlotsTest, ReadsRangesAndPutsTheAskedHostWhereNoneIsGiven) {
  const auto node = [](const char* host, int64_t port) {
    return Reply::OfArray({Reply::OfString(host), Reply::OfInteger(port)});
  };
  const Reply reply = Reply::OfArray(
      {Reply::OfArray({Reply::OfInteger(0), Reply::OfInteger(9), node("", 1), node("::1", 2)}),
       Reply::OfArray({Reply::OfInteger(10), Reply::OfInteger(16383),
                       Reply::OfArray({Reply(), Reply::OfInteger(3)})})});
  const auto ranges = ParseSlots(reply, "redis.internal:6379");
  ASSERT_TRUE(ranges.ok()) << ranges.status();
  EXPECT_THAT((*ranges)[0].addresses, ::testing::ElementsAre("redis.internal:1", "[::1]:2"));
  EXPECT_THAT((*ranges)[1].addresses, ::testing::ElementsAre("redis.internal:3"));
  EXPECT_EQ((*ranges)[1].last, 16383);
  for (const auto& [first, last] : {std::pair(5, 4), {-1, 4}, {0, 16384}}) {
    const Reply wrong = Reply::OfArray(
        {Reply::OfArray({Reply::OfInteger(first), Reply::OfInteger(last), node("h", 1)})});
    EXPECT_FALSE(ParseSlots(wrong, "h:1").ok());
  }
  EXPECT_FALSE(ParseSlots(Reply::OfString("OK"), "h:1").ok());
}

TEST(TargetOfTest, FindsTheKey) {
  const auto slot = [](const Command& command) { return TargetOf(command)->slot; };
  const int k = HashSlot("k");
  EXPECT_EQ(slot({"get", "k"}), k);
  EXPECT_EQ(slot({"EVALSHA", "sha", "2", "k", "l", "x"}), k);
  EXPECT_EQ(slot({"XREAD", "COUNT", "1", "STREAMS", "k", "0"}), k);
  EXPECT_EQ(slot({"OBJECT", "ENCODING", "k"}), k);
  EXPECT_EQ(slot({"BLMPOP", "0", "1", "k", "LEFT"}), k);
  EXPECT_EQ(TargetOf({"EVAL", "return 1", "0"})->scope, Scope::kAnyNode);
  EXPECT_FALSE(TargetOf({}).ok());
  EXPECT_FALSE(TargetOf({"XREAD", "COUNT", "1"}).ok());
}

}  // namespace
}  // namespace mneme::redis
