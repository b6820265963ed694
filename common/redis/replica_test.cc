// Calls that wait until replicas of a real Redis have what they wrote.
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/redis/client.h"
#include "common/redis/hash_slot.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/redis_cluster.h"
#include "tests/support/redis_server.h"
#include "tests/support/replicated_redis.h"

namespace mneme::redis {
namespace {

using ::mneme::testing::RedisCluster;
using ::mneme::testing::RedisServer;
using ::mneme::testing::ReplicatedRedis;
using ::testing::HasSubstr;

// What a call may take beyond its time on a busy machine.
constexpr absl::Duration kSlack = absl::Seconds(2);

absl::Duration TimeOf(const std::function<void()>& call) {
  const absl::Time start = absl::Now();
  call();
  return absl::Now() - start;
}

class ReplicaTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto redis = ReplicatedRedis::Start();
    ASSERT_TRUE(redis.ok()) << redis.status();
    redis_ = *std::move(redis);
  }

  Options WaitingFor(int num_replicas) const {
    return {.address = redis_->master().address(),
            .wait_for_replicas = num_replicas,
            .replica_timeout = absl::Seconds(1)};
  }

  const Script set_{"return redis.call('SET', KEYS[1], ARGV[1])", Ack::kReplicas};
  const Script get_{"return redis.call('GET', KEYS[1])"};
  std::unique_ptr<ReplicatedRedis> redis_;
};

TEST_F(ReplicaTest, HasWhatWasAcknowledged) {
  Client client(WaitingFor(1));
  for (int i = 0; i < 200; ++i) {
    const std::string value = absl::StrCat("value-", i);
    const auto reply = client.Eval(set_, {"k"}, {value});
    ASSERT_TRUE(reply.ok()) << reply.status();
    EXPECT_EQ(reply->text(), "OK");
    ASSERT_THAT(redis_->replica().Ask("GET k"), HasSubstr(value + "\r\n"));
  }
}

TEST_F(ReplicaTest, ThatStandsStillFailsWritesThatWaitForItAndNothingElse) {
  Client client(WaitingFor(1));
  redis_->replica().Pause();
  absl::Status status;
  EXPECT_LT(TimeOf([&] { status = client.Eval(set_, {"k"}, {"v"}).status(); }),
            absl::Seconds(1) + kSlack);
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("0 of 1 replicas"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("may have run"));
  EXPECT_EQ(client.Eval(get_, {"k"}, {})->text(), "v");  // it has
  EXPECT_TRUE(client.Run({"SET", "other", "v"}).ok());
  EXPECT_EQ(client.Run({"GET", "k"}, absl::InfiniteFuture(), Ack::kServer)->text(), "v");
  // An error of the command itself is the caller's answer.
  const Script wrong("return redis.call('LPUSH', KEYS[1], 'v')", Ack::kReplicas);
  EXPECT_THAT(std::string(client.Eval(wrong, {"k"}, {}).status().message()),
              HasSubstr("WRONGTYPE"));
  redis_->replica().Resume();
  const absl::Time limit = absl::Now() + absl::Seconds(20);
  do {
    status = client.Eval(set_, {"k"}, {"w"}).status();
  } while (!status.ok() && absl::Now() < limit);
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_THAT(redis_->replica().Ask("GET k"), HasSubstr("w"));
}

TEST_F(ReplicaTest, IsNotWaitedForLongerThanTheCallMayTake) {
  Options options = WaitingFor(2);
  options.replica_timeout = absl::Seconds(60);
  options.command_timeout = absl::Seconds(1);
  Client client(options);
  absl::Status status;
  EXPECT_LT(TimeOf([&] { status = client.Eval(set_, {"k"}, {"v"}).status(); }),
            absl::Seconds(1) + kSlack);
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("1 of 2 replicas"));
}

TEST(ClusterReplicaTest, EachMastersReplicaIsWaitedFor) {
  const auto cluster = RedisCluster::Start();
  ASSERT_TRUE(cluster.ok()) << cluster.status();
  Client client({.mode = Mode::kCluster,
                 .addresses = (*cluster)->addresses(),
                 .wait_for_replicas = 1,
                 .replica_timeout = absl::Seconds(1)});
  const Script set("return redis.call('SET', KEYS[1], ARGV[1])", Ack::kReplicas);
  std::map<RedisServer*, std::string> keys;  // one of each master
  for (int i = 0; keys.size() < 3; ++i) {
    keys.emplace((*cluster)->MasterOf(HashSlot(absl::StrCat("k", i))), absl::StrCat("k", i));
  }
  for (const auto& [master, key] : keys) {
    EXPECT_TRUE(client.Eval(set, {key}, {"v"}).ok());
  }
  // The replica of server i is server 3 + i.
  (*cluster)->server(3).Pause();
  for (const auto& [master, key] : keys) {
    const absl::Status status = client.Eval(set, {key}, {"w"}).status();
    const bool is_its = master == &(*cluster)->server(0);
    EXPECT_EQ(status.code(), is_its ? absl::StatusCode::kUnavailable : absl::StatusCode::kOk)
        << status;
  }
  (*cluster)->server(3).Resume();
}

}  // namespace
}  // namespace mneme::redis
