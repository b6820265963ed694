// What only the Redis store has: its keys and an index that heals itself.
#include "services/memory/redis_session_store.h"

#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "services/memory/store_fixture.h"

namespace mneme::memory {
namespace {

using ::mneme::testing::RedisServer;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::UnorderedElementsAre;

constexpr char kIndex[] = "mneme:1:{t}:sessions";

class RedisSessionStoreTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    auto started = RedisServer::Start({.append_fsync = "no"});
    ASSERT_TRUE(started.ok()) << started.status();
    server_ = *std::move(started);
  }
  static void TearDownTestSuite() { server_.reset(); }

  SessionStore& store() { return under_test_.store(); }

  redis::Reply Redis(const redis::Command& command) {
    const auto reply = under_test_.client().Run(command);
    EXPECT_TRUE(reply.ok()) << reply.status();
    return reply.value_or(redis::Reply());
  }

  std::vector<std::string> Keys(const std::string& pattern) {
    std::vector<std::string> keys;
    const redis::Reply reply = Redis({"KEYS", pattern});
    for (const auto& key : reply.elements()) keys.push_back(key.text());
    return keys;
  }

  // Commits one turn under a request id, so that a session has all its keys.
  void FillSession(const std::string& session_id) {
    const auto lease = store().AcquireLease(AcquireOf(session_id), Soon());
    ASSERT_TRUE(lease.ok()) << lease.status();
    v1::CommitTurnRequest commit = CommitOf(session_id, lease->lease_token(), 0, "x", "r");
    commit.set_release(true);
    ASSERT_TRUE(store().CommitTurn(commit, Soon()).ok());
  }

  std::vector<std::string> List() {
    v1::ListSessionsRequest request;
    request.set_tenant("t");
    request.set_page_size(100);
    const auto page = store().ListSessions(request, Soon());
    EXPECT_TRUE(page.ok()) << page.status();
    std::vector<std::string> ids;
    for (const auto& session : page->sessions()) ids.push_back(session.session_id());
    return ids;
  }

  static inline std::unique_ptr<RedisServer> server_;
  RedisUnderTest under_test_{server_->address()};
};

TEST_F(RedisSessionStoreTest, AllKeysOfASessionAreOfOneSlotAndBeginWithTheVersion) {
  FillSession("s");
  const std::vector<std::string> keys = Keys("*");
  EXPECT_THAT(keys, UnorderedElementsAre("mneme:1:{t/s}:head", "mneme:1:{t/s}:turns",
                                         "mneme:1:{t/s}:requests", "mneme:1:{t/s}:fence", kIndex));
  // Redis Cluster hashes what is between the first braces only.
  std::set<std::string> slots;
  for (const std::string& key : Keys("mneme:1:{t/s}:*")) {
    slots.insert(key.substr(key.find('{'), key.find('}') - key.find('{')));
  }
  EXPECT_EQ(slots.size(), 1u);
}

TEST_F(RedisSessionStoreTest, EveryKeyOfASessionWithATtlHasOne) {
  v1::CreateSessionRequest request = CreateOf("s");
  request.set_ttl_seconds(1000);
  ASSERT_TRUE(store().CreateSession(request, Soon()).ok());
  FillSession("s");
  std::set<int64_t> expiries;
  for (const char* name : {"head", "turns", "requests"}) {
    expiries.insert(*Redis({"PEXPIRETIME", absl::StrCat("mneme:1:{t/s}:", name)}).Integer());
  }
  ASSERT_EQ(expiries.size(), 1u);
  const int64_t left_ms = *expiries.begin() - absl::ToUnixMillis(absl::Now());
  EXPECT_GT(left_ms, 900'000);
  EXPECT_LE(left_ms, 1'000'000);
  const int64_t fence = *Redis({"PEXPIRETIME", "mneme:1:{t/s}:fence"}).Integer();
  EXPECT_EQ(fence - *expiries.begin(), 86'400'000);
}

TEST_F(RedisSessionStoreTest, DeletedSessionLeavesOnlyAFenceThatExpires) {
  FillSession("s");
  v1::DeleteSessionRequest request;
  request.set_tenant("t");
  request.set_session_id("s");
  ASSERT_TRUE(store().DeleteSession(request, Soon()).ok());
  EXPECT_THAT(Keys("*"), ElementsAre("mneme:1:{t/s}:fence"));
  EXPECT_GT(*Redis({"TTL", "mneme:1:{t/s}:fence"}).Integer(), 80'000);
}

TEST_F(RedisSessionStoreTest, TokensRiseThoughRedisClockWentBack) {
  // The last lease was granted by a clock that is an hour ahead of this one.
  const int64_t ahead = absl::ToUnixMicros(absl::Now() + absl::Hours(1));
  Redis({"SET", "mneme:1:{t/s}:fence", absl::StrCat(ahead)});
  const auto lease = store().AcquireLease(AcquireOf("s"), Soon());
  ASSERT_TRUE(lease.ok()) << lease.status();
  EXPECT_EQ(lease->lease_token(), static_cast<uint64_t>(ahead + 1));
  EXPECT_TRUE(store().CommitTurn(CommitOf("s", lease->lease_token(), 0, "x"), Soon()).ok());
}

TEST_F(RedisSessionStoreTest, IndexEntryWithoutASessionIsDroppedWhenItIsNotNew) {
  FillSession("s");
  Redis({"ZADD", kIndex, "1", "gone"});
  const int64_t now = absl::ToUnixMicros(absl::Now());
  Redis({"ZADD", kIndex, absl::StrCat(now), "being-made"});
  EXPECT_THAT(List(), ElementsAre("s"));
  EXPECT_TRUE(Redis({"ZSCORE", kIndex, "gone"}).is_nil());
  EXPECT_FALSE(Redis({"ZSCORE", kIndex, "being-made"}).is_nil());
}

TEST_F(RedisSessionStoreTest, SessionMissingFromTheIndexComesBackWithItsNextUse) {
  FillSession("s");
  Redis({"DEL", kIndex});
  EXPECT_THAT(List(), IsEmpty());
  ASSERT_TRUE(store().AcquireLease(AcquireOf("s"), Soon()).ok());
  EXPECT_THAT(List(), ElementsAre("s"));
}

TEST_F(RedisSessionStoreTest, CreationsKeepTheIndexFreeOfDeadEntriesWithoutAnyListing) {
  for (int i = 0; i < 100; ++i) Redis({"ZADD", kIndex, "1", absl::StrCat("gone", i)});
  for (int i = 0; i < 200; ++i) {
    const std::string id = absl::StrCat("s", i);
    ASSERT_TRUE(store().CreateSession(CreateOf(id), Soon()).ok());
  }
  EXPECT_LT(*Redis({"ZCOUNT", kIndex, "-inf", "100"}).Integer(), 60);
}

TEST_F(RedisSessionStoreTest, DamagedSessionIsDataLossAndNotAShorterHistory) {
  FillSession("s");
  Redis({"DEL", "mneme:1:{t/s}:turns"});
  const absl::Status status = store().GetSession(GetOf("s"), Soon()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()), HasSubstr("noeviction"));
  v1::AcquireLeaseRequest acquire = AcquireOf("s");
  acquire.set_with_history(true);
  EXPECT_EQ(store().AcquireLease(acquire, Soon()).status().code(), absl::StatusCode::kDataLoss);
}

TEST_F(RedisSessionStoreTest, FullRedisRefusesWritesAndStillDeletes) {
  FillSession("s");
  Redis({"CONFIG", "SET", "maxmemory", "1"});
  EXPECT_EQ(store().CreateSession(CreateOf("new"), Soon()).status().code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(store().AcquireLease(AcquireOf("s"), Soon()).status().code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(store().GetSession(GetOf("s"), Soon())->messages_size(), 2);
  v1::DeleteSessionRequest request;
  request.set_tenant("t");
  request.set_session_id("s");
  EXPECT_TRUE(store().DeleteSession(request, Soon()).ok());
  Redis({"CONFIG", "SET", "maxmemory", "0"});
  EXPECT_TRUE(store().CreateSession(CreateOf("new"), Soon()).ok());
}

}  // namespace
}  // namespace mneme::memory
