// Redis above disk, on all stores: what moves when, and that nothing stays behind.
#include <map>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "services/memory/session_store.h"
#include "services/memory/store_fixture.h"
#include "tests/support/time_limit.h"

namespace mneme::memory {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::Pair;
using ::testing::UnorderedElementsAre;

// A session's snapshot here: two chunks, of 1000 bytes each.
constexpr int64_t kSnapshotBytes = 2000;

class TierStoreTest : public StoreTest {
 protected:
  static std::vector<std::string> PayloadsOf(const std::string& id) {
    return {PayloadOf(absl::StrCat(id, " first")), PayloadOf(absl::StrCat(id, " second"))};
  }

  void UseBudgets(int64_t redis_bytes, std::optional<int64_t> disk_bytes) {
    StoreOptions options;
    options.redis_budget_bytes = redis_bytes;
    UseOptions(options, disk_bytes);
  }

  void Fill(const std::vector<std::string>& ids) {
    for (const std::string& id : ids) {
      ASSERT_EQ(CommitWithSnapshot(store(), id, PayloadsOf(id)).version, 1u);
    }
  }

  void Sweep() {
    const absl::Status status = store().Sweep(Soon());
    EXPECT_TRUE(status.ok()) << status;
  }

  void Pin(const std::string& id) {
    v1::UpdateSessionRequest pin;
    pin.set_tenant("t");
    pin.set_session_id(id);
    pin.set_pinned(true);
    ASSERT_TRUE(store().UpdateSession(pin, Soon()).ok());
  }

  void Delete(const std::string& id) {
    v1::DeleteSessionRequest request;
    request.set_tenant("t");
    request.set_session_id(id);
    ASSERT_TRUE(store().DeleteSession(request, Soon()).ok());
  }

  void Fork(const std::string& id, const std::string& new_id) {
    v1::ForkSessionRequest fork;
    fork.set_tenant("t");
    fork.set_session_id(id);
    fork.set_new_session_id(new_id);
    ASSERT_TRUE(store().ForkSession(fork, Soon()).ok());
  }

  std::map<std::string, int64_t> BytesByTier(const std::string& id) {
    v1::DescribeSessionRequest request;
    request.set_tenant("t");
    request.set_session_id(id);
    const auto described = store().DescribeSession(request, Soon());
    EXPECT_TRUE(described.ok()) << described.status();
    if (!described.ok()) return {};
    return {described->bytes_by_tier().begin(), described->bytes_by_tier().end()};
  }

  // Promotion runs behind the reader's back.
  bool IsInRedisSoon(const std::string& id) {
    const absl::Time deadline = absl::Now() + testing::TimeLimit(absl::Seconds(10));
    while (BytesByTier(id) != std::map<std::string, int64_t>{{"redis", kSnapshotBytes}}) {
      if (absl::Now() > deadline) return false;
      absl::SleepFor(absl::Milliseconds(2));
    }
    return true;
  }

  void ExpectWhole(const std::string& id, const std::string& tier) {
    const auto fetched = Fetch(store(), id);
    ASSERT_TRUE(fetched.ok()) << id << ": " << fetched.status();
    EXPECT_EQ(fetched->payloads, PayloadsOf(id));
    EXPECT_THAT(fetched->tiers, Each(tier)) << id;
  }
};

TEST_P(TierStoreTest, LeastUsedSnapshotsGoToDiskAndComeBackWithTheirUse) {
  UseBudgets(3 * kSnapshotBytes, 0);
  Fill({"a", "b", "c", "d"});
  Sweep();
  // An eighth of the budget is to be free afterwards.
  EXPECT_THAT(BytesByTier("a"), ElementsAre(Pair("disk", kSnapshotBytes)));
  EXPECT_THAT(BytesByTier("b"), ElementsAre(Pair("disk", kSnapshotBytes)));
  for (const char* id : {"c", "d"}) {
    EXPECT_THAT(BytesByTier(id), ElementsAre(Pair("redis", kSnapshotBytes)));
    ExpectWhole(id, "redis");
  }
  ExpectWhole("a", "disk");
  EXPECT_TRUE(IsInRedisSoon("a"));
  ExpectWhole("a", "redis");
  // There is no room for b as long as nothing has left.
  ExpectWhole("b", "disk");
  ExpectWhole("b", "disk");
  EXPECT_THAT(BytesByTier("b"), ElementsAre(Pair("disk", kSnapshotBytes)));
  Delete("c");
  Sweep();
  ExpectWhole("b", "disk");
  EXPECT_TRUE(IsInRedisSoon("b"));
}

TEST_P(TierStoreTest, WithinTheBudgetNothingMoves) {
  UseBudgets(2 * kSnapshotBytes, 0);
  Fill({"a", "b"});
  Sweep();
  ExpectWhole("a", "redis");
  ExpectWhole("b", "redis");
}

TEST_P(TierStoreTest, TurnGoesOnFromASnapshotOnDisk) {
  UseBudgets(1, 0);
  const StagedTurn first = CommitWithSnapshot(store(), "s", PayloadsOf("s"));
  Sweep();
  EXPECT_THAT(BytesByTier("s"), ElementsAre(Pair("disk", kSnapshotBytes)));
  // It lists the two on disk and sends a third.
  ASSERT_EQ(CommitWithSnapshot(store(), "s", {PayloadOf("third")}, first.manifest, 1).version, 2u);
  EXPECT_THAT(BytesByTier("s"),
              UnorderedElementsAre(Pair("disk", kSnapshotBytes), Pair("redis", 1000)));
  const auto fetched = Fetch(store(), "s");
  ASSERT_TRUE(fetched.ok()) << fetched.status();
  EXPECT_THAT(fetched->tiers, ElementsAre("disk", "disk", "redis"));
  EXPECT_EQ(fetched->payloads[2], PayloadOf("third"));
}

TEST_P(TierStoreTest, ChunkThatIsSentAgainIsInRedisAgain) {
  UseBudgets(1, 0);
  Fill({"s"});
  Sweep();
  ASSERT_EQ(CommitWithSnapshot(store(), "s", PayloadsOf("s"), {}, 1).version, 2u);
  EXPECT_THAT(BytesByTier("s"), ElementsAre(Pair("redis", kSnapshotBytes)));
  ExpectWhole("s", "redis");
  Sweep();
  ExpectWhole("s", "disk");
}

TEST_P(TierStoreTest, RunningTurnsStayAndPinnedSessionsAreTheLastToGo) {
  UseBudgets(kSnapshotBytes, 0);
  Fill({"pinned", "a", "leased"});
  Pin("pinned");
  v1::AcquireLeaseRequest acquire = AcquireOf("leased");
  acquire.set_ttl_ms(60'000);
  const auto lease = store().AcquireLease(acquire, Soon());
  ASSERT_TRUE(lease.ok()) << lease.status();
  Sweep();
  ExpectWhole("leased", "redis");
  EXPECT_THAT(BytesByTier("a"), ElementsAre(Pair("disk", kSnapshotBytes)));
  EXPECT_THAT(BytesByTier("pinned"), ElementsAre(Pair("disk", kSnapshotBytes)));

  UseBudgets(2 * kSnapshotBytes, 0);
  Fill({"pinned", "a", "b"});
  Pin("pinned");
  Sweep();
  ExpectWhole("pinned", "redis");
  EXPECT_THAT(BytesByTier("a"), ElementsAre(Pair("disk", kSnapshotBytes)));
  EXPECT_THAT(BytesByTier("b"), ElementsAre(Pair("disk", kSnapshotBytes)));
}

TEST_P(TierStoreTest, ForksShareWhatIsOnDisk) {
  UseBudgets(1, 0);
  Fill({"s"});
  Fork("s", "f");
  Sweep();
  ExpectWhole("s", "disk");
  Delete("s");
  Sweep();
  const auto fetched = Fetch(store(), "f");
  ASSERT_TRUE(fetched.ok()) << fetched.status();
  EXPECT_EQ(fetched->payloads, PayloadsOf("s"));
  EXPECT_THAT(fetched->tiers, Each("disk"));
}

TEST_P(TierStoreTest, BeyondTheDisksBudgetTheLeastUsedSnapshotsAreDroppedAndNeverText) {
  // Files are a little larger than what they hold.
  UseBudgets(1, 2 * kSnapshotBytes + 500);
  Fill({"pinned", "a", "b", "c"});
  Pin("pinned");
  Sweep();
  for (const char* id : {"a", "b"}) {
    EXPECT_TRUE(absl::IsNotFound(Fetch(store(), id).status())) << id;
    EXPECT_EQ(store().GetSession(GetOf(id), Soon())->messages_size(), 2);
    EXPECT_EQ(store().AcquireLease(AcquireOf(id), Soon())->snapshot_version(), 0u);
  }
  ExpectWhole("pinned", "disk");
  ExpectWhole("c", "disk");
}

TEST_P(TierStoreTest, WithoutADiskTheLeastUsedSnapshotsAreDroppedAndNeverText) {
  UseBudgets(2 * kSnapshotBytes, std::nullopt);
  Fill({"a", "b", "c"});
  Sweep();
  EXPECT_TRUE(absl::IsNotFound(Fetch(store(), "a").status()));
  EXPECT_EQ(store().GetSession(GetOf("a"), Soon())->messages_size(), 2);
  ExpectWhole("b", "redis");
  ExpectWhole("c", "redis");
}

TEST_P(TierStoreTest, QuotaCountsBothTiers) {
  StoreOptions options;
  options.redis_budget_bytes = 1;
  options.default_quota.set_max_kv_bytes(2 * kSnapshotBytes);
  UseOptions(options, 0);
  Fill({"a", "b"});
  Sweep();
  const auto lease = store().AcquireLease(AcquireOf("c"), Soon());
  EXPECT_EQ(Stage(store(), "c", lease->lease_token(), {PayloadOf("c")}).status().code(),
            absl::StatusCode::kResourceExhausted);
  Delete("a");
  Sweep();
  EXPECT_TRUE(Stage(store(), "c", lease->lease_token(), {PayloadOf("c")}).ok());
}

TEST_P(TierStoreTest, AfterEverythingIsDeletedAndSweptNothingIsLeftButTheTenantList) {
  UseBudgets(kSnapshotBytes, 0);
  Fill({"a", "b", "c"});
  Fork("a", "f");
  Sweep();
  ExpectWhole("a", "disk");
  // Rewound, so that its chunks on disk are of no use.
  v1::RewindSessionRequest rewind;
  rewind.set_tenant("t");
  rewind.set_session_id("b");
  ASSERT_TRUE(store().RewindSession(rewind, Soon()).ok());
  for (const char* id : {"a", "b", "c", "f"}) Delete(id);
  Sweep();
  for (const std::string& left : AllThatIsThere()) EXPECT_EQ(left, "mneme:2:tenants");
}

TEST_P(TierStoreTest, ForgottenTenantHasNothingOnDisk) {
  UseBudgets(1, 0);
  Fill({"a", "b"});
  Sweep();
  v1::ForgetTenantRequest request;
  request.set_tenant("t");
  EXPECT_EQ(store().ForgetTenant(request, Soon())->sessions(), 2);
  EXPECT_THAT(AllThatIsThere(), ElementsAre());
  Fill({"a"});
  Sweep();
  ExpectWhole("a", "disk");
}

INSTANTIATE_TEST_SUITE_P(Stores, TierStoreTest,
                         ::testing::Values(StoreKind::kInMemory, StoreKind::kRedis,
                                           StoreKind::kCluster),
                         StoreKindName);

}  // namespace
}  // namespace mneme::memory
