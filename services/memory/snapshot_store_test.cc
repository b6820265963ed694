// Snapshots, forks, rewinds, settings and quotas, on both stores.
#include <memory>

#include "absl/strings/str_cat.h"
#include "common/status/annotate.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "services/memory/session_errors.h"
#include "services/memory/session_store.h"
#include "services/memory/store_fixture.h"

namespace mneme::memory {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::UnorderedElementsAre;

class SnapshotStoreTest : public StoreTest {
 protected:
  uint64_t Lease(const std::string& session_id, int64_t ttl_ms = 60'000) {
    v1::AcquireLeaseRequest request = AcquireOf(session_id);
    request.set_ttl_ms(ttl_ms);
    const auto response = store().AcquireLease(request, Soon());
    EXPECT_TRUE(response.ok()) << response.status();
    return response.ok() ? response->lease_token() : 0;
  }

  // Commits a turn without a snapshot and gives the lease back.
  void Turn(const std::string& session_id, uint64_t parent, const std::string& text,
            const std::string& request_id = "") {
    v1::CommitTurnRequest request =
        CommitOf(session_id, Lease(session_id), parent, text, request_id);
    request.set_release(true);
    const auto response = store().CommitTurn(request, Soon());
    ASSERT_TRUE(response.ok()) << response.status();
    ASSERT_EQ(response->version(), parent + 1);
  }

  absl::StatusOr<v1::ForkSessionResponse> Fork(const std::string& session_id,
                                               const std::string& new_id, int64_t version = -1,
                                               const std::string& request_id = "") {
    v1::ForkSessionRequest request;
    request.set_tenant("t");
    request.set_session_id(session_id);
    request.set_new_session_id(new_id);
    request.set_request_id(request_id);
    if (version >= 0) request.set_version(version);
    return store().ForkSession(request, Soon());
  }

  absl::StatusOr<v1::RewindSessionResponse> Rewind(const std::string& session_id,
                                                   uint64_t version) {
    v1::RewindSessionRequest request;
    request.set_tenant("t");
    request.set_session_id(session_id);
    request.set_version(version);
    return store().RewindSession(request, Soon());
  }

  absl::StatusOr<v1::DescribeSessionResponse> Describe(const std::string& session_id) {
    v1::DescribeSessionRequest request;
    request.set_tenant("t");
    request.set_session_id(session_id);
    return store().DescribeSession(request, Soon());
  }

  absl::Status Delete(const std::string& session_id) {
    v1::DeleteSessionRequest request;
    request.set_tenant("t");
    request.set_session_id(session_id);
    return store().DeleteSession(request, Soon()).status();
  }

  std::vector<std::string> Questions(const std::string& session_id) {
    const auto response = store().GetSession(GetOf(session_id), Soon());
    EXPECT_TRUE(response.ok()) << response.status();
    std::vector<std::string> questions;
    for (int i = 0; i < response->messages_size(); i += 2) {
      questions.push_back(response->messages(i).content());
    }
    return questions;
  }

  static std::string ReasonOf(const absl::Status& status) {
    return status::PayloadOf(status, status::kReasonPayload);
  }
};

TEST_P(SnapshotStoreTest, CommittedSnapshotComesBackWhole) {
  const std::vector<std::string> payloads = {PayloadOf("a"), PayloadOf("b", 1 << 20), "c"};
  const StagedTurn turn = CommitWithSnapshot(store(), "s", payloads);
  ASSERT_EQ(turn.version, 1u);
  ASSERT_EQ(turn.manifest.chunks_size(), 3);
  for (const auto& chunk : turn.manifest.chunks()) EXPECT_EQ(chunk.digest().size(), 16u);
  EXPECT_GT(turn.manifest.created_unix_ms(), 1'500'000'000'000);
  const auto fetched = Fetch(store(), "s");
  ASSERT_TRUE(fetched.ok()) << fetched.status();
  EXPECT_EQ(fetched->version, 1u);
  EXPECT_EQ(fetched->manifest.SerializeAsString(), turn.manifest.SerializeAsString());
  EXPECT_THAT(fetched->positions, ElementsAre(0, 1, 2));
  EXPECT_EQ(fetched->payloads, payloads);
  const auto session = store().GetSession(GetOf("s"), Soon());
  EXPECT_EQ(session->session().kv_bytes(), 1000 + (1 << 20) + 1);
}

TEST_P(SnapshotStoreTest, LargeSnapshotComesBackWholeAndInOrder) {
  std::vector<std::string> payloads;
  payloads.reserve(70);
  for (int i = 0; i < 70; ++i) payloads.push_back(PayloadOf(absl::StrCat(i), 300'000 + i));
  ASSERT_EQ(CommitWithSnapshot(store(), "s", payloads).version, 1u);
  const auto fetched = Fetch(store(), "s");
  ASSERT_TRUE(fetched.ok()) << fetched.status();
  EXPECT_EQ(fetched->payloads, payloads);
  for (int i = 0; i < 70; ++i) EXPECT_EQ(fetched->positions[i], i);
}

TEST_P(SnapshotStoreTest, OnlyTheChunksAskedForAreSentInTheirOrder) {
  CommitWithSnapshot(store(), "s", {PayloadOf("a"), PayloadOf("b"), PayloadOf("c")});
  v1::FetchSnapshotRequest request;
  request.set_tenant("t");
  request.set_session_id("s");
  request.add_chunks(2);
  request.add_chunks(0);
  const auto some = Fetch(store(), request);
  EXPECT_THAT(some->positions, ElementsAre(2, 0));
  EXPECT_THAT(some->payloads, ElementsAre(PayloadOf("c"), PayloadOf("a")));
  request.set_manifest_only(true);
  EXPECT_THAT(Fetch(store(), request)->payloads, IsEmpty());
  EXPECT_EQ(Fetch(store(), request)->manifest.chunks_size(), 3);
  for (const int wrong : {-1, 3}) {
    request.set_chunks(0, wrong);
    EXPECT_EQ(Fetch(store(), request).status().code(), absl::StatusCode::kInvalidArgument);
  }
}

TEST_P(SnapshotStoreTest, ReaderThatGoesAwayEndsTheStream) {
  CommitWithSnapshot(store(), "s", {PayloadOf("a"), PayloadOf("b")});
  v1::FetchSnapshotRequest request;
  request.set_tenant("t");
  request.set_session_id("s");
  int num_parts = 0;
  const absl::Status status = store().FetchSnapshot(
      request,
      [&](const v1::FetchSnapshotResponse&) {
        return ++num_parts == 2 ? absl::CancelledError("gone") : absl::OkStatus();
      },
      Soon());
  EXPECT_TRUE(absl::IsCancelled(status));
  EXPECT_EQ(num_parts, 2);
}

TEST_P(SnapshotStoreTest, LatestSnapshotUpToAVersionIsFound) {
  const StagedTurn first = CommitWithSnapshot(store(), "s", {PayloadOf("a")});
  Turn("s", 1, "without");
  const StagedTurn third = CommitWithSnapshot(store(), "s", {PayloadOf("b")}, first.manifest, 2);
  ASSERT_EQ(third.version, 3u);
  EXPECT_EQ(Fetch(store(), "s", 1)->version, 1u);
  EXPECT_EQ(Fetch(store(), "s", 2)->version, 1u);
  EXPECT_EQ(Fetch(store(), "s", 3)->version, 3u);
  EXPECT_EQ(Fetch(store(), "s")->version, 3u);
  EXPECT_THAT(Fetch(store(), "s")->payloads, ElementsAre(PayloadOf("a"), PayloadOf("b")));
  EXPECT_TRUE(absl::IsNotFound(Fetch(store(), "s", 4).status()));
  EXPECT_TRUE(absl::IsNotFound(Fetch(store(), "none").status()));
  Turn("text", 0, "x");
  EXPECT_TRUE(absl::IsNotFound(Fetch(store(), "text").status()));
}

TEST_P(SnapshotStoreTest, LeaseSaysWhoIsHotAndWhichSnapshotThereIs) {
  const auto lease = store().AcquireLease(AcquireOf("s"), Soon());
  EXPECT_EQ(lease->executor(), "");
  EXPECT_EQ(lease->snapshot_version(), 0u);
  const auto staged = Stage(store(), "s", lease->lease_token(), {PayloadOf("a")});
  v1::CommitTurnRequest commit = CommitOf("s", lease->lease_token(), 0, "x");
  commit.set_snapshot_id(staged->snapshot_id());
  commit.set_executor("executor-7");
  commit.set_release(true);
  ASSERT_TRUE(store().CommitTurn(commit, Soon()).ok());
  commit = CommitOf("s", Lease("s"), 1, "y", "r2");
  commit.set_executor("executor-8");
  commit.set_release(true);
  ASSERT_TRUE(store().CommitTurn(commit, Soon()).ok());
  v1::AcquireLeaseRequest acquire = AcquireOf("s");
  acquire.set_request_id("r2");
  EXPECT_EQ(store().AcquireLease(acquire, Soon())->committed().snapshot_tokens(), 0u);
  acquire.clear_request_id();
  const auto next = store().AcquireLease(acquire, Soon());
  EXPECT_EQ(next->executor(), "executor-8");
  EXPECT_EQ(next->snapshot_version(), 1u);
}

TEST_P(SnapshotStoreTest, ChunksOfTheFamilyAreStoredOnce) {
  const StagedTurn first = CommitWithSnapshot(store(), "s", {PayloadOf("a"), PayloadOf("b")});
  ASSERT_TRUE(Fork("s", "f").ok());
  // Both sent again and listed.
  const auto lease = store().AcquireLease(AcquireOf("f"), Soon());
  const auto same = Stage(store(), "f", lease->lease_token(), {PayloadOf("b"), PayloadOf("c")});
  ASSERT_TRUE(same.ok()) << same.status();
  EXPECT_EQ(same->bytes_stored(), 1000);
  const auto listed = Stage(store(), "f", lease->lease_token(), {}, first.manifest);
  ASSERT_TRUE(listed.ok()) << listed.status();
  EXPECT_EQ(listed->bytes_stored(), 0);
}

TEST_P(SnapshotStoreTest, DamageOnTheWayIsNoticed) {
  v1::StageSnapshotRequest::Header header;
  header.set_tenant("t");
  header.set_session_id("s");
  header.set_lease_token(Lease("s"));
  const auto stage = [&](v1::ChunkPayload chunk) -> absl::Status {
    auto staging = store().StageSnapshot(header, Soon());
    if (!staging.ok()) return staging.status();
    snapshot::v1::Manifest manifest;
    manifest.set_format_version(1);
    manifest.set_num_tokens(10);
    *manifest.add_chunks() = chunk.chunk();
    const absl::Status added = (*staging)->Add(std::move(chunk));
    return added.ok() ? (*staging)->Finish(manifest).status() : added;
  };
  EXPECT_TRUE(stage(ChunkOf(PayloadOf("a"), 0)).ok());
  v1::ChunkPayload chunk = ChunkOf(PayloadOf("a"), 0);
  (*chunk.mutable_payload())[500] ^= 1;
  EXPECT_EQ(stage(chunk).code(), absl::StatusCode::kDataLoss);
  chunk = ChunkOf(PayloadOf("a"), 0);
  chunk.mutable_payload()->pop_back();
  EXPECT_EQ(stage(chunk).code(), absl::StatusCode::kDataLoss);
  chunk = ChunkOf(PayloadOf("a"), 0);
  chunk.mutable_chunk()->set_digest(std::string(16, 'x'));
  EXPECT_EQ(stage(chunk).code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(stage(ChunkOf(PayloadOf("a", (1 << 20) + 1), 0)).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(stage(ChunkOf("", 0)).code(), absl::StatusCode::kInvalidArgument);
}

TEST_P(SnapshotStoreTest, ManifestMayListOnlyWhatIsThere) {
  const uint64_t token = Lease("s");
  v1::StageSnapshotRequest::Header header;
  header.set_tenant("t");
  header.set_session_id("s");
  header.set_lease_token(token);
  snapshot::v1::Manifest manifest;
  manifest.set_format_version(1);
  manifest.set_num_tokens(10);
  *manifest.add_chunks() = ChunkOf(PayloadOf("a"), 0).chunk();
  // Without a digest it must have been sent; with one it must be stored.
  EXPECT_EQ((*store().StageSnapshot(header, Soon()))->Finish(manifest).status().code(),
            absl::StatusCode::kInvalidArgument);
  manifest.mutable_chunks(0)->set_digest(std::string(16, 'x'));
  const absl::Status unknown = (*store().StageSnapshot(header, Soon()))->Finish(manifest).status();
  EXPECT_EQ(unknown.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(status::PayloadOf(unknown, status::kFieldPayload), "manifest.chunks");
  manifest.clear_chunks();
  EXPECT_TRUE((*store().StageSnapshot(header, Soon()))->Finish(manifest).ok());
  manifest.set_format_version(2);
  EXPECT_EQ((*store().StageSnapshot(header, Soon()))->Finish(manifest).status().code(),
            absl::StatusCode::kInvalidArgument);
  // Another family's chunk is not there.
  const StagedTurn other = CommitWithSnapshot(store(), "other", {PayloadOf("b")});
  EXPECT_EQ(Stage(store(), "s", token, {}, other.manifest).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_P(SnapshotStoreTest, OnlyWhoHasTheLeaseCanStage) {
  EXPECT_TRUE(absl::IsNotFound(Stage(store(), "s", 1, {PayloadOf("a")}).status()));
  const uint64_t token = Lease("s", 50);
  EXPECT_EQ(ReasonOf(Stage(store(), "s", token + 1, {PayloadOf("a")}).status()), "LEASE_LOST");
  v1::StageSnapshotRequest::Header header;
  header.set_tenant("t");
  header.set_session_id("s");
  header.set_lease_token(token);
  auto staging = store().StageSnapshot(header, Soon());
  ASSERT_TRUE(staging.ok()) << staging.status();
  Advance(absl::Milliseconds(80));
  // The lease ran out while the snapshot was on its way.
  v1::ChunkPayload chunk = ChunkOf(PayloadOf("a"), 0);
  snapshot::v1::Manifest manifest;
  manifest.set_format_version(1);
  manifest.set_num_tokens(10);
  *manifest.add_chunks() = chunk.chunk();
  absl::Status status = (*staging)->Add(std::move(chunk));
  if (status.ok()) status = (*staging)->Finish(manifest).status();
  EXPECT_EQ(ReasonOf(status), "LEASE_LOST") << status;
}

TEST_P(SnapshotStoreTest, TurnWhoseSnapshotIsLostIsCommittedAndSaysSo) {
  StoreOptions options;
  options.orphan_age = absl::Milliseconds(60);
  UseOptions(options);
  uint64_t token = Lease("s");
  const auto staged = Stage(store(), "s", token, {PayloadOf("a")});
  ASSERT_TRUE(staged.ok()) << staged.status();
  Advance(absl::Milliseconds(120));
  v1::CommitTurnRequest commit = CommitOf("s", token, 0, "one");
  commit.set_snapshot_id(staged->snapshot_id());
  auto committed = store().CommitTurn(commit, Soon());
  ASSERT_TRUE(committed.ok()) << committed.status();
  EXPECT_EQ(committed->version(), 1u);
  EXPECT_EQ(committed->snapshot_lost_reason(), std::string(kStagedIsGone));
  EXPECT_TRUE(absl::IsNotFound(Fetch(store(), "s").status()));
  // The same commit again is no second turn.
  committed = store().CommitTurn(commit, Soon());
  EXPECT_EQ(committed->version(), 1u);
}

TEST_P(SnapshotStoreTest, SnapshotIsCommittedOnceAndUnderItsOwnLease) {
  const uint64_t first = Lease("s");
  const auto staged = Stage(store(), "s", first, {PayloadOf("a")});
  v1::ReleaseLeaseRequest release;
  release.set_tenant("t");
  release.set_session_id("s");
  release.set_lease_token(first);
  ASSERT_TRUE(store().ReleaseLease(release, Soon()).ok());
  const uint64_t second = Lease("s");
  v1::CommitTurnRequest commit = CommitOf("s", second, 0, "one");
  commit.set_snapshot_id(staged->snapshot_id());
  EXPECT_EQ(store().CommitTurn(commit, Soon())->snapshot_lost_reason(),
            std::string(kStagedUnderOtherLease));
  const auto again = Stage(store(), "s", second, {PayloadOf("a")});
  commit = CommitOf("s", second, 1, "two");
  commit.set_snapshot_id(again->snapshot_id());
  EXPECT_EQ(store().CommitTurn(commit, Soon())->snapshot_lost_reason(), "");
  commit = CommitOf("s", second, 2, "three");
  commit.set_snapshot_id(again->snapshot_id());
  const auto third = store().CommitTurn(commit, Soon());
  EXPECT_EQ(third->version(), 3u);
  EXPECT_EQ(third->snapshot_lost_reason(), std::string(kStagedIsGone));
  EXPECT_EQ(Fetch(store(), "s")->version, 2u);
}

TEST_P(SnapshotStoreTest, RetriedCommitWithASnapshotIsOneTurn) {
  const uint64_t token = Lease("s");
  const auto staged = Stage(store(), "s", token, {PayloadOf("a")});
  v1::CommitTurnRequest commit = CommitOf("s", token, 0, "one");
  commit.set_snapshot_id(staged->snapshot_id());
  for (int i = 0; i < 3; ++i) {
    const auto committed = store().CommitTurn(commit, Soon());
    ASSERT_TRUE(committed.ok()) << committed.status();
    EXPECT_EQ(committed->version(), 1u);
    EXPECT_EQ(committed->snapshot_lost_reason(), "");
  }
  EXPECT_THAT(Questions("s"), ElementsAre("one"));
}

TEST_P(SnapshotStoreTest, ForkBeginsWithTheParentsTurnsAndBothGoTheirOwnWay) {
  v1::CreateSessionRequest create = CreateOf("s");
  create.set_title("the title");
  create.mutable_memory_policy()->mutable_window()->set_recent(64);
  create.set_ttl_seconds(1000);
  ASSERT_TRUE(store().CreateSession(create, Soon()).ok());
  const StagedTurn first = CommitWithSnapshot(store(), "s", {PayloadOf("a")});
  Turn("s", 1, "two", "r2");
  Turn("s", 2, "three");
  const auto fork = Fork("s", "f", 2);
  ASSERT_TRUE(fork.ok()) << fork.status();
  const v1::Session& session = fork->session();
  EXPECT_EQ(session.session_id(), "f");
  EXPECT_EQ(session.version(), 2u);
  EXPECT_EQ(session.num_messages(), 4);
  EXPECT_EQ(session.num_tokens(), 4);
  EXPECT_EQ(session.model(), "m");
  EXPECT_EQ(session.title(), "the title");
  EXPECT_EQ(session.memory_policy().window().recent(), 64);
  EXPECT_EQ(session.ttl_seconds(), 1000);
  EXPECT_EQ(session.parent_session(), "s");
  EXPECT_EQ(session.parent_session_version(), 2u);
  EXPECT_EQ(session.kv_bytes(), 1000);
  EXPECT_THAT(Fetch(store(), "f")->payloads, ElementsAre(PayloadOf("a")));
  Turn("f", 2, "of the fork", "r2");  // another session's request ids are not its own
  Turn("s", 3, "four");
  EXPECT_THAT(Questions("f"), ElementsAre("turn with a snapshot", "two", "of the fork"));
  EXPECT_THAT(Questions("s"), ElementsAre("turn with a snapshot", "two", "three", "four"));
  ASSERT_TRUE(Delete("s").ok());
  ASSERT_TRUE(store().Sweep(Soon()).ok());
  EXPECT_THAT(Questions("f"), ElementsAre("turn with a snapshot", "two", "of the fork"));
  EXPECT_THAT(Fetch(store(), "f")->payloads, ElementsAre(PayloadOf("a")));
}

TEST_P(SnapshotStoreTest, ForkThatIsAskedForAgainIsTheSame) {
  Turn("s", 0, "one");
  EXPECT_TRUE(Fork("s", "f", -1, "r1").ok());
  EXPECT_TRUE(Fork("s", "f", -1, "r1").ok());
  EXPECT_EQ(Fork("s", "f", -1, "r2").status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(Fork("s", "f").status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(Fork("s", "s").status().code(), absl::StatusCode::kAlreadyExists);
  Turn("other", 0, "x");
  EXPECT_EQ(Fork("s", "other", -1, "r1").status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(Fork("s", "g", 2).status().code(), absl::StatusCode::kOutOfRange);
  EXPECT_TRUE(absl::IsNotFound(Fork("none", "g").status()));
  EXPECT_TRUE(absl::IsNotFound(store().GetSession(GetOf("g"), Soon()).status()));
  EXPECT_EQ(Fork("s", "g", 0)->session().version(), 0u);
}

TEST_P(SnapshotStoreTest, ForkOfAForkSharesWithBoth) {
  CommitWithSnapshot(store(), "s", {PayloadOf("a"), PayloadOf("b")});
  ASSERT_TRUE(Fork("s", "f").ok());
  ASSERT_TRUE(Fork("f", "g").ok());
  const auto described = Describe("g");
  ASSERT_TRUE(described.ok()) << described.status();
  EXPECT_THAT(described->shares_with(), UnorderedElementsAre("f", "s"));
  EXPECT_EQ(described->shared_bytes(), 2000);
  ASSERT_TRUE(Delete("f").ok());
  ASSERT_TRUE(Delete("s").ok());
  EXPECT_EQ(Describe("g")->shared_bytes(), 0);
  EXPECT_TRUE(Fetch(store(), "g").ok());
}

TEST_P(SnapshotStoreTest, RewoundSessionGoesOnFromThere) {
  const StagedTurn first = CommitWithSnapshot(store(), "s", {PayloadOf("a")});
  Turn("s", 1, "two", "r2");
  CommitWithSnapshot(store(), "s", {PayloadOf("b")}, first.manifest, 2);
  EXPECT_EQ(Rewind("s", 4).status().code(), absl::StatusCode::kOutOfRange);
  EXPECT_TRUE(absl::IsNotFound(Rewind("none", 0).status()));
  const auto rewound = Rewind("s", 1);
  ASSERT_TRUE(rewound.ok()) << rewound.status();
  EXPECT_EQ(rewound->session().version(), 1u);
  EXPECT_EQ(rewound->session().num_messages(), 2);
  EXPECT_EQ(rewound->session().num_tokens(), 2);
  EXPECT_EQ(rewound->session().kv_bytes(), 1000);
  EXPECT_EQ(Fetch(store(), "s")->version, 1u);
  // The request id of a turn that does not exist any more can be used again.
  Turn("s", 1, "another two", "r2");
  EXPECT_THAT(Questions("s"), ElementsAre("turn with a snapshot", "another two"));
  ASSERT_TRUE(Rewind("s", 0).ok());
  EXPECT_THAT(Questions("s"), IsEmpty());
  EXPECT_TRUE(absl::IsNotFound(Fetch(store(), "s").status()));
  Turn("s", 0, "anew");
  EXPECT_THAT(Questions("s"), ElementsAre("anew"));
}

TEST_P(SnapshotStoreTest, RewindWaitsForARunningTurnAndEndsOneThatRanOut) {
  Turn("s", 0, "one");
  Turn("s", 1, "two");
  const uint64_t token = Lease("s", 50);
  EXPECT_EQ(ReasonOf(Rewind("s", 1).status()), "SESSION_BUSY");
  Advance(absl::Milliseconds(80));
  ASSERT_TRUE(Rewind("s", 1).ok());
  v1::RenewLeaseRequest renew;
  renew.set_tenant("t");
  renew.set_session_id("s");
  renew.set_lease_token(token);
  renew.set_ttl_ms(60'000);
  EXPECT_EQ(ReasonOf(store().RenewLease(renew, Soon()).status()), "LEASE_LOST");
  EXPECT_EQ(ReasonOf(store().CommitTurn(CommitOf("s", token, 1, "x"), Soon()).status()),
            "LEASE_LOST");
}

TEST_P(SnapshotStoreTest, DescriptionSaysWhatEachVersionHolds) {
  const StagedTurn first = CommitWithSnapshot(store(), "s", {PayloadOf("a"), PayloadOf("b")});
  Turn("s", 1, "two", "r2");
  CommitWithSnapshot(store(), "s", {PayloadOf("c", 500)}, first.manifest, 2);
  ASSERT_TRUE(Fork("s", "f", 1).ok());
  const uint64_t token = Lease("s");
  const auto described = Describe("s");
  ASSERT_TRUE(described.ok()) << described.status();
  EXPECT_TRUE(described->leased());
  EXPECT_EQ(described->executor(), "executor-1");
  ASSERT_EQ(described->versions_size(), 3);
  EXPECT_EQ(described->versions(0).snapshot_tokens(), 20u);
  EXPECT_EQ(described->versions(0).snapshot_bytes(), 2000);
  EXPECT_EQ(described->versions(0).own_bytes(), 2000);
  EXPECT_EQ(described->versions(1).snapshot_tokens(), 0u);
  EXPECT_EQ(described->versions(1).request_id(), "r2");
  EXPECT_EQ(described->versions(1).num_tokens(), 4);
  EXPECT_EQ(described->versions(2).version(), 3u);
  EXPECT_EQ(described->versions(2).snapshot_bytes(), 2500);
  EXPECT_EQ(described->bytes_by_tier().at("redis"), 2500);
  EXPECT_EQ(described->shared_bytes(), 2000);
  EXPECT_THAT(described->shares_with(), ElementsAre("f"));
  EXPECT_EQ(described->session().kv_bytes(), 2500);
  EXPECT_NE(token, 0u);
  EXPECT_TRUE(absl::IsNotFound(Describe("none").status()));
}

TEST_P(SnapshotStoreTest, SettingsChangeWhereTheyAreGiven) {
  Turn("s", 0, "one");
  v1::UpdateSessionRequest request;
  request.set_tenant("t");
  request.set_session_id("s");
  request.set_title("new title");
  request.set_ttl_seconds(500);
  ASSERT_EQ(store().UpdateSession(request, Soon())->session().title(), "new title");
  request.clear_title();
  request.clear_ttl_seconds();
  request.set_pinned(true);
  request.mutable_memory_policy()->mutable_full();
  const auto updated = store().UpdateSession(request, Soon());
  ASSERT_TRUE(updated.ok()) << updated.status();
  EXPECT_EQ(updated->session().title(), "new title");
  EXPECT_EQ(updated->session().ttl_seconds(), 500);
  EXPECT_TRUE(updated->session().pinned());
  EXPECT_TRUE(updated->session().memory_policy().has_full());
  EXPECT_EQ(store().GetSession(GetOf("s"), Soon())->session().SerializeAsString(),
            updated->session().SerializeAsString());
  request.set_session_id("none");
  EXPECT_TRUE(absl::IsNotFound(store().UpdateSession(request, Soon()).status()));
}

TEST_P(SnapshotStoreTest, PinnedSessionDoesNotExpire) {
  for (const char* id : {"pinned", "short"}) {
    v1::CreateSessionRequest create = CreateOf(id);
    create.set_ttl_seconds(1);
    ASSERT_TRUE(store().CreateSession(create, Soon()).ok());
  }
  v1::UpdateSessionRequest request;
  request.set_tenant("t");
  request.set_session_id("pinned");
  request.set_pinned(true);
  ASSERT_TRUE(store().UpdateSession(request, Soon()).ok());
  Advance(absl::Milliseconds(1100));
  EXPECT_TRUE(store().GetSession(GetOf("pinned"), Soon()).ok());
  EXPECT_TRUE(absl::IsNotFound(store().GetSession(GetOf("short"), Soon()).status()));
}

TEST_P(SnapshotStoreTest, TenantsOwnTimeToLiveHoldsForItsSessions) {
  StoreOptions options;
  options.quotas["t"].set_ttl_seconds(1);
  UseOptions(options);
  ASSERT_TRUE(store().CreateSession(CreateOf("s"), Soon()).ok());
  ASSERT_TRUE(store().CreateSession(CreateOf("s", "t2"), Soon()).ok());
  Advance(absl::Milliseconds(1100));
  EXPECT_TRUE(absl::IsNotFound(store().GetSession(GetOf("s"), Soon()).status()));
  EXPECT_TRUE(store().GetSession(GetOf("s", "t2"), Soon()).ok());
}

TEST_P(SnapshotStoreTest, TenantHasNoMoreSessionsThanItsQuota) {
  StoreOptions options;
  options.default_quota.set_max_sessions(2);
  UseOptions(options);
  ASSERT_TRUE(store().CreateSession(CreateOf("a"), Soon()).ok());
  Turn("b", 0, "x");
  for (const absl::Status& status :
       {store().CreateSession(CreateOf("c"), Soon()).status(),
        store().AcquireLease(AcquireOf("c"), Soon()).status(), Fork("b", "c").status()}) {
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
    EXPECT_EQ(status::PayloadOf(status, status::kQuotaPayload), "max_sessions");
  }
  EXPECT_TRUE(store().CreateSession(CreateOf("c", "t2"), Soon()).ok());
  Turn("b", 1, "y");
  ASSERT_TRUE(Delete("a").ok());
  EXPECT_TRUE(store().CreateSession(CreateOf("c"), Soon()).ok());
}

TEST_P(SnapshotStoreTest, TenantHasNoMoreSnapshotBytesThanItsQuota) {
  StoreOptions options;
  options.default_quota.set_max_kv_bytes(2500);
  UseOptions(options);
  const StagedTurn first = CommitWithSnapshot(store(), "s", {PayloadOf("a"), PayloadOf("b")});
  ASSERT_EQ(first.version, 1u);
  const uint64_t token = Lease("s");
  const absl::Status full = Stage(store(), "s", token, {PayloadOf("c")}, first.manifest).status();
  EXPECT_EQ(full.code(), absl::StatusCode::kResourceExhausted) << full;
  EXPECT_EQ(status::PayloadOf(full, status::kQuotaPayload), "max_kv_bytes");
  // What is shared costs nothing, and a turn without a snapshot neither.
  EXPECT_TRUE(Stage(store(), "s", token, {PayloadOf("b")}).ok());
  EXPECT_TRUE(store().CommitTurn(CommitOf("s", token, 1, "two"), Soon()).ok());
  ASSERT_TRUE(Delete("s").ok());
  EXPECT_EQ(CommitWithSnapshot(store(), "s", {PayloadOf("c"), PayloadOf("d")}).version, 1u);
}

TEST_P(SnapshotStoreTest, SnapshotThatIsGivenUpTakesNothingThatAForkHasListedSince) {
  StoreOptions options;
  options.default_quota.set_max_kv_bytes(1'000'000);
  UseOptions(options);
  Turn("s", 0, "x");
  ASSERT_TRUE(Fork("s", "committed").ok());
  ASSERT_TRUE(Fork("s", "staged").ok());
  const std::vector<std::string> shared = {PayloadOf("a"), PayloadOf("b"), PayloadOf("c")};

  v1::StageSnapshotRequest::Header header;
  header.set_tenant("t");
  header.set_session_id("s");
  header.set_lease_token(Lease("s"));
  const auto staging = store().StageSnapshot(header, Soon());
  ASSERT_TRUE(staging.ok()) << staging.status();
  // So many that the first are stored: only a few batches are under way at a time.
  for (uint64_t i = 0; i < 256; ++i) {
    const std::string payload =
        i < 3 ? shared[i] : PayloadOf(absl::StrCat("chunk of the one session only ", i));
    ASSERT_TRUE((*staging)->Add(ChunkOf(payload, kSerialsPerChunk * i)).ok());
  }
  ASSERT_EQ(CommitWithSnapshot(store(), "committed", {shared[0], shared[1]}, {}, 1).version, 2u);
  const uint64_t token = Lease("staged");
  const auto staged = Stage(store(), "staged", token, {shared[2]});
  ASSERT_TRUE(staged.ok()) << staged.status();

  // Over the quota: everything of this snapshot goes.
  absl::Status full = (*staging)->Add(ChunkOf(PayloadOf("large", 1 << 20), kSerialsPerChunk * 256));
  if (full.ok()) full = (*staging)->Finish({}).status();
  EXPECT_EQ(full.code(), absl::StatusCode::kResourceExhausted) << full;
  const auto fetched = Fetch(store(), "committed");
  ASSERT_TRUE(fetched.ok()) << fetched.status();
  EXPECT_THAT(fetched->payloads, ElementsAre(shared[0], shared[1]));
  v1::CommitTurnRequest commit = CommitOf("staged", token, 1, "y");
  commit.set_snapshot_id(staged->snapshot_id());
  EXPECT_EQ(store().CommitTurn(commit, Soon())->snapshot_lost_reason(), "");
  EXPECT_THAT(Fetch(store(), "staged")->payloads, ElementsAre(shared[2]));
}

TEST_P(SnapshotStoreTest, ForgottenTenantHasNothingAndTheOthersAll) {
  CommitWithSnapshot(store(), "a", {PayloadOf("a")});
  Turn("b", 0, "x");
  ASSERT_TRUE(store().CreateSession(CreateOf("a", "t2"), Soon()).ok());
  v1::ForgetTenantRequest request;
  request.set_tenant("t");
  EXPECT_EQ(store().ForgetTenant(request, Soon())->sessions(), 2);
  EXPECT_TRUE(absl::IsNotFound(store().GetSession(GetOf("a"), Soon()).status()));
  EXPECT_TRUE(absl::IsNotFound(Fetch(store(), "a").status()));
  v1::ListSessionsRequest list;
  list.set_tenant("t");
  list.set_page_size(10);
  EXPECT_EQ(store().ListSessions(list, Soon())->sessions_size(), 0);
  EXPECT_TRUE(store().GetSession(GetOf("a", "t2"), Soon()).ok());
  EXPECT_EQ(store().ForgetTenant(request, Soon())->sessions(), 0);
  Turn("a", 0, "again");
  EXPECT_THAT(Questions("a"), ElementsAre("again"));
}

INSTANTIATE_TEST_SUITE_P(Stores, SnapshotStoreTest,
                         ::testing::Values(StoreKind::kInMemory, StoreKind::kRedis,
                                           StoreKind::kCluster),
                         StoreKindName);

}  // namespace
}  // namespace mneme::memory
