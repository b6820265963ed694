// Sessions on a Redis with a replica that must have each turn (redis.wait_for_replicas).
#include <memory>
#include <utility>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "services/memory/redis_session_store.h"
#include "services/memory/store_fixture.h"
#include "tests/support/replicated_redis.h"

namespace mneme::memory {
namespace {

using ::mneme::testing::ReplicatedRedis;
using ::testing::HasSubstr;

class ReplicatedStoreTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto redis = ReplicatedRedis::Start();
    ASSERT_TRUE(redis.ok()) << redis.status();
    redis_ = *std::move(redis);
    under_test_ = std::make_unique<RedisUnderTest>(WaitingForOne());
    // It has emptied the store.
    ASSERT_TRUE(redis_->WaitUntilInStep().ok());
  }

  redis::Options WaitingForOne() const {
    return {.address = redis_->master().address(),
            .wait_for_replicas = 1,
            .replica_timeout = absl::Seconds(1)};
  }
  SessionStore& store() { return under_test_->store(); }
  void ResumeReplica() {
    redis_->replica().Resume();
    const absl::Status status = redis_->WaitUntilInStep();
    EXPECT_TRUE(status.ok()) << status;
  }

  std::unique_ptr<ReplicatedRedis> redis_;
  std::unique_ptr<RedisUnderTest> under_test_;
};

TEST_F(ReplicatedStoreTest, TurnIsAcknowledgedOnceTheReplicaHasIt) {
  const auto lease = store().AcquireLease(AcquireOf("s"), Soon());
  ASSERT_TRUE(lease.ok()) << lease.status();
  redis_->replica().Pause();
  const v1::CommitTurnRequest commit = CommitOf("s", lease->lease_token(), 0, "x", "request");
  const absl::Status status = store().CommitTurn(commit, Soon()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("redis.wait_for_replicas"));
  // It was written, and can be read; it is not acknowledged, whoever asks again: connections of
  // another process have written nothing yet that they could wait for.
  EXPECT_EQ(store().GetSession(GetOf("s"), Soon())->session().version(), 1u);
  redis::Client client(WaitingForOne());
  TenantKeys keys(client, under_test_->master_key(), "");
  RedisSessionStore other(client, keys, {}, under_test_->metrics());
  EXPECT_TRUE(absl::IsUnavailable(other.CommitTurn(commit, Soon()).status()));
  v1::AcquireLeaseRequest again = AcquireOf("s");
  again.set_request_id("request");
  EXPECT_TRUE(absl::IsUnavailable(other.AcquireLease(again, Soon()).status()));
  // No turn begins that could not be committed.
  EXPECT_TRUE(absl::IsUnavailable(store().AcquireLease(AcquireOf("s2"), Soon()).status()));
  ResumeReplica();
  const auto committed = other.CommitTurn(commit, Soon());
  ASSERT_TRUE(committed.ok()) << committed.status();
  EXPECT_EQ(committed->version(), 1u);
  const auto known = store().AcquireLease(again, Soon());
  ASSERT_TRUE(known.ok()) << known.status();
  EXPECT_EQ(known->committed().version(), 1u);

  // The master is lost, and the replica is all that is left.
  redis_->master().Kill();
  ASSERT_EQ(redis_->replica().Ask("REPLICAOF NO ONE"), "+OK\r\n");
  redis::Client promoted({.address = redis_->replica().address()});
  TenantKeys promoted_keys(promoted, under_test_->master_key(), "");
  RedisSessionStore survivor(promoted, promoted_keys, {}, under_test_->metrics());
  const auto session = survivor.GetSession(GetOf("s"), Soon());
  ASSERT_TRUE(session.ok()) << session.status();
  EXPECT_EQ(session->session().version(), 1u);
  ASSERT_EQ(session->messages_size(), 2);
  EXPECT_EQ(session->messages(1).content(), "answer to x");
}

// A repeated creation or fork writes nothing anew; a session that never expires stays one.
TEST_F(ReplicatedStoreTest, RepeatedCreationAndForkWaitToo) {
  v1::CreateSessionRequest create = CreateOf("s");
  create.set_request_id("made");
  v1::ForkSessionRequest fork;
  fork.set_tenant("t");
  fork.set_session_id("s");
  fork.set_new_session_id("f");
  fork.set_request_id("forked");
  ASSERT_TRUE(store().CreateSession(create, Soon()).ok());
  ASSERT_TRUE(store().ForkSession(fork, Soon()).ok());
  redis::Client client(WaitingForOne());
  TenantKeys keys(client, under_test_->master_key(), "");
  RedisSessionStore other(client, keys, {}, under_test_->metrics());
  redis_->replica().Pause();
  EXPECT_TRUE(absl::IsUnavailable(other.CreateSession(create, Soon()).status()));
  EXPECT_TRUE(absl::IsUnavailable(other.ForkSession(fork, Soon()).status()));
  ResumeReplica();
  EXPECT_TRUE(other.CreateSession(create, Soon()).ok());
  EXPECT_TRUE(other.ForkSession(fork, Soon()).ok());
  const auto heads = client.Run({"KEYS", "*}:s:*"});
  ASSERT_TRUE(heads.ok()) << heads.status();
  EXPECT_EQ(heads->elements().size(), 2u);
  for (const redis::Reply& head : heads->elements()) {
    EXPECT_EQ(*client.Run({"PTTL", head.text()})->Integer(), -1) << head.text();
  }
}

// In a cluster a tenant's key and what it seals are on different servers: waiting for the one says
// nothing of the other.
TEST_F(ReplicatedStoreTest, TenantsKeyIsUsedOnceTheReplicaHasItWhoeverMadeIt) {
  redis::Client client(WaitingForOne());
  TenantKeys other(client, under_test_->master_key(), "");
  redis_->replica().Pause();
  EXPECT_TRUE(absl::IsUnavailable(under_test_->keys().FindOrMake("new", Soon()).status()));
  // It is in Redis now.
  EXPECT_TRUE(other.Find("new", /*again=*/false, Soon()).ok());
  EXPECT_TRUE(absl::IsUnavailable(under_test_->keys().FindOrMake("new", Soon()).status()));
  EXPECT_TRUE(absl::IsUnavailable(other.FindOrMake("new", Soon()).status()));
  ResumeReplica();
  const auto key = other.FindOrMake("new", Soon());
  ASSERT_TRUE(key.ok()) << key.status();
  const auto same = under_test_->keys().FindOrMake("new", Soon());
  ASSERT_TRUE(same.ok()) << same.status();
  EXPECT_EQ((*key)->id, (*same)->id);
  // What was made sure of once is not waited for again.
  redis_->replica().Pause();
  EXPECT_TRUE(other.FindOrMake("new", Soon()).ok());
  ResumeReplica();
}

}  // namespace
}  // namespace mneme::memory
