// The store on a real Redis Cluster: whatever it does must keep within one hash slot at a time.
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "services/memory/store_fixture.h"
#include "tests/support/redis_cluster.h"

namespace mneme::memory {
namespace {

constexpr int kNumSessions = 30;

TEST(ClusterStoreTest, SessionsLiveAndDieOnAllMasters) {
  const auto cluster = testing::RedisCluster::Start({.has_replicas = false});
  ASSERT_TRUE(cluster.ok()) << cluster.status();
  RedisUnderTest under_test(
      redis::Options{.mode = redis::Mode::kCluster, .address = (*cluster)->server(0).address()});
  SessionStore& store = under_test.store();
  ASSERT_TRUE(store.CheckReady(Soon()).ok());
  for (int i = 0; i < kNumSessions; ++i) {
    const std::string id = absl::StrCat("s", i);
    ASSERT_TRUE(store.CreateSession(CreateOf(id), Soon()).ok());
    const auto lease = store.AcquireLease(AcquireOf(id), Soon());
    ASSERT_TRUE(lease.ok()) << lease.status();
    const auto committed = store.CommitTurn(
        CommitOf(id, lease->lease_token(), 0, absl::StrCat("turn of ", id)), Soon());
    ASSERT_TRUE(committed.ok()) << committed.status();
    EXPECT_EQ(committed->version(), 1u);
  }
  // Families have random names: thirty of them are on all three masters but once in 10^4 runs, so
  // only two are asked for.
  int with_keys = 0;
  const auto sizes = under_test.client().RunOnEveryMaster({"DBSIZE"}, Soon());
  ASSERT_TRUE(sizes.ok()) << sizes.status();
  for (const redis::Reply& size : *sizes) with_keys += size.Integer().value_or(0) > 0 ? 1 : 0;
  EXPECT_GE(with_keys, 2);
  for (int i = 0; i < kNumSessions; ++i) {
    const auto session = store.GetSession(GetOf(absl::StrCat("s", i)), Soon());
    ASSERT_TRUE(session.ok()) << session.status();
    EXPECT_EQ(session->messages(0).content(), absl::StrCat("turn of s", i));
  }
  v1::ListSessionsRequest list;
  list.set_tenant("t");
  list.set_page_size(kNumSessions);
  const auto listed = store.ListSessions(list, Soon());
  ASSERT_TRUE(listed.ok()) << listed.status();
  EXPECT_EQ(listed->sessions_size(), kNumSessions);
  v1::DeleteSessionRequest remove;
  remove.set_tenant("t");
  remove.set_session_id("s7");
  ASSERT_TRUE(store.DeleteSession(remove, Soon()).ok());
  EXPECT_EQ(store.GetSession(GetOf("s7"), Soon()).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(under_test.errors().Value(), 0);
}

}  // namespace
}  // namespace mneme::memory
