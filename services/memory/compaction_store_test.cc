// CompactSession on all stores: what becomes of the stored memory, and that nothing else changes.
#include <cstring>
#include <memory>

#include "absl/strings/str_cat.h"
#include "common/status/annotate.h"
#include "common/stored/recode.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "services/memory/session_compaction.h"
#include "services/memory/session_store.h"
#include "services/memory/store_fixture.h"

namespace mneme::memory {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

namespace sv1 = ::mneme::snapshot::v1;

constexpr int kHeadSize = 8;
constexpr int kLayers = 2;
// A chunk of 32 entries of both layers, in float32.
constexpr int64_t kChunkSerials = 32;
constexpr int64_t kChunkBytes = kChunkSerials * kLayers * 2 * kHeadSize * 4;

class CompactionStoreTest : public StoreTest {
 protected:
  // Numbers in float32, different in each chunk.
  static v1::ChunkPayload NumbersOf(uint64_t first_serial, int64_t num_serials) {
    v1::ChunkPayload chunk;
    for (int64_t i = 0; i < num_serials * kLayers * 2 * kHeadSize; ++i) {
      const float number = static_cast<float>(first_serial) + 0.37F * static_cast<float>(i % 97);
      chunk.mutable_payload()->append(reinterpret_cast<const char*>(&number), sizeof(number));
    }
    chunk.mutable_chunk()->set_num_bytes(chunk.payload().size());
    chunk.mutable_chunk()->set_encoding(sv1::ENCODING_FLOAT32);
    chunk.mutable_chunk()->set_num_layers(kLayers);
    chunk.mutable_chunk()->set_first_serial(first_serial);
    chunk.mutable_chunk()->set_num_serials(num_serials);
    chunk.mutable_chunk()->set_crc32c(crypto::Crc32c(chunk.payload()));
    return chunk;
  }

  // Commits a turn whose snapshot covers `num_tokens`, of which the parent covers the first.
  sv1::Manifest Turn(const std::string& session_id, uint64_t parent_version, int64_t num_tokens,
                     const sv1::Manifest& parent = {}, const std::string& policy = "full",
                     const std::string& request_id = "") {
    const auto lease = store().AcquireLease(AcquireOf(session_id), Soon());
    EXPECT_TRUE(lease.ok()) << lease.status();
    v1::StageSnapshotRequest::Header header;
    header.set_tenant("t");
    header.set_session_id(session_id);
    header.set_lease_token(lease->lease_token());
    auto staging = store().StageSnapshot(header, Soon());
    EXPECT_TRUE(staging.ok()) << staging.status();
    sv1::Manifest manifest = parent;
    manifest.set_format_version(1);
    manifest.mutable_lineage()->set_model_fingerprint("fingerprint-of-m");
    manifest.mutable_lineage()->set_policy(policy);
    manifest.mutable_shape()->set_num_layers(kLayers);
    manifest.mutable_shape()->set_num_kv_heads(1);
    manifest.mutable_shape()->set_head_size(kHeadSize);
    for (int64_t at = parent.num_tokens(); at < num_tokens; at += kChunkSerials) {
      v1::ChunkPayload chunk = NumbersOf(at, std::min(kChunkSerials, num_tokens - at));
      *manifest.add_chunks() = chunk.chunk();
      EXPECT_TRUE((*staging)->Add(std::move(chunk)).ok());
    }
    if (parent.held().empty()) {
      manifest.add_held()->add_lengths(0);
      manifest.mutable_held(0)->add_lengths(num_tokens);
    } else {
      const int last = manifest.held(0).lengths_size() - 1;
      manifest.mutable_held(0)->set_lengths(
          last, manifest.held(0).lengths(last) + num_tokens - parent.num_tokens());
    }
    manifest.set_num_tokens(num_tokens);
    auto staged = (*staging)->Finish(std::move(manifest));
    EXPECT_TRUE(staged.ok()) << staged.status();
    v1::CommitTurnRequest commit = CommitOf(session_id, lease->lease_token(), parent_version,
                                            absl::StrCat("turn ", parent_version + 1), request_id);
    commit.set_snapshot_id(staged->snapshot_id());
    commit.set_executor("executor-1");
    commit.set_release(true);
    const auto committed = store().CommitTurn(commit, Soon());
    EXPECT_TRUE(committed.ok()) << committed.status();
    EXPECT_EQ(committed->snapshot_lost_reason(), "");
    return staged->manifest();
  }

  static v1::CompactSessionRequest CompactOf(const std::string& session_id) {
    v1::CompactSessionRequest request;
    request.set_tenant("t");
    request.set_session_id(session_id);
    return request;
  }
  static v1::CompactSessionRequest ToWindow(const std::string& session_id, int sinks, int recent) {
    v1::CompactSessionRequest request = CompactOf(session_id);
    request.mutable_memory_policy()->mutable_window()->set_sinks(sinks);
    request.mutable_memory_policy()->mutable_window()->set_recent(recent);
    return request;
  }
  static v1::CompactSessionRequest ToInt8(const std::string& session_id) {
    v1::CompactSessionRequest request = CompactOf(session_id);
    request.set_encoding(sv1::ENCODING_INT8);
    return request;
  }
  absl::StatusOr<v1::CompactSessionResponse> Compact(const v1::CompactSessionRequest& request) {
    return CompactSession(store(), request, Soon());
  }

  absl::StatusOr<v1::DescribeSessionResponse> Describe(const std::string& session_id) {
    v1::DescribeSessionRequest request;
    request.set_tenant("t");
    request.set_session_id(session_id);
    return store().DescribeSession(request, Soon());
  }
  std::vector<uint64_t> SnapshotTokens(const std::string& session_id) {
    std::vector<uint64_t> tokens;
    const auto described = Describe(session_id);
    EXPECT_TRUE(described.ok()) << described.status();
    for (const auto& version : described->versions()) tokens.push_back(version.snapshot_tokens());
    return tokens;
  }
  int64_t BytesInRedis(const std::string& session_id) {
    return Describe(session_id)->bytes_by_tier().at("redis");
  }
  // What a client sees of the conversation.
  std::string TextOf(const std::string& session_id) {
    auto found = store().GetSession(GetOf(session_id), Soon());
    EXPECT_TRUE(found.ok()) << found.status();
    found->clear_session();
    return found->SerializeAsString();
  }
  void Fork(const std::string& session_id, const std::string& new_id, int64_t version = -1) {
    v1::ForkSessionRequest fork;
    fork.set_tenant("t");
    fork.set_session_id(session_id);
    fork.set_new_session_id(new_id);
    if (version >= 0) fork.set_version(version);
    ASSERT_TRUE(store().ForkSession(fork, Soon()).ok());
  }
  void Rewind(const std::string& session_id, uint64_t version) {
    v1::RewindSessionRequest rewind;
    rewind.set_tenant("t");
    rewind.set_session_id(session_id);
    rewind.set_version(version);
    ASSERT_TRUE(store().RewindSession(rewind, Soon()).ok());
  }
  static std::string ReasonOf(const absl::Status& status) {
    return status::PayloadOf(status, status::kReasonPayload);
  }
  void ExpectUnleased(const std::string& session_id) {
    EXPECT_FALSE(Describe(session_id)->leased());
  }
};

TEST_P(CompactionStoreTest, FullMemoryIsCutToAWindow) {
  const sv1::Manifest manifest = Turn("s", 0, 200, {}, "full", "r1");
  const std::string text = TextOf("s");
  v1::CompactSessionRequest request = ToWindow("s", 4, 20);
  request.set_parent_version(1);
  const auto compacted = Compact(request);
  ASSERT_TRUE(compacted.ok()) << compacted.status();
  EXPECT_EQ(compacted->entries_before(), 200);
  EXPECT_EQ(compacted->entries_after(), 16 + 24);
  EXPECT_EQ(compacted->kv_bytes_before(), 6 * kChunkBytes + kChunkBytes / 4);
  EXPECT_EQ(compacted->kv_bytes_after(), 2 * kChunkBytes + kChunkBytes / 4);
  EXPECT_EQ(compacted->session().version(), 1u);
  EXPECT_EQ(compacted->session().kv_bytes(), compacted->kv_bytes_after());
  EXPECT_EQ(compacted->session().memory_policy().window().recent(), 20);
  EXPECT_EQ(store().GetSession(GetOf("s"), Soon())->session().SerializeAsString(),
            compacted->session().SerializeAsString());

  const auto fetched = Fetch(store(), "s");
  ASSERT_TRUE(fetched.ok()) << fetched.status();
  EXPECT_EQ(fetched->version, 1u);
  EXPECT_EQ(fetched->manifest.lineage().policy(), "window(sinks=4,recent=20)");
  EXPECT_EQ(fetched->manifest.num_tokens(), 200u);
  ASSERT_EQ(fetched->payloads.size(), 3u);
  EXPECT_EQ(fetched->payloads[0], NumbersOf(0, 32).payload());
  EXPECT_EQ(fetched->payloads[1], NumbersOf(160, 32).payload());
  EXPECT_EQ(fetched->payloads[2], NumbersOf(192, 8).payload());

  // Of the rest nothing has changed.
  EXPECT_EQ(TextOf("s"), text);
  EXPECT_THAT(SnapshotTokens("s"), ElementsAre(200));
  EXPECT_EQ(BytesInRedis("s"), compacted->kv_bytes_after());
  ExpectUnleased("s");
  v1::AcquireLeaseRequest acquire = AcquireOf("s");
  acquire.set_request_id("r1");
  EXPECT_EQ(store().AcquireLease(acquire, Soon())->committed().version(), 1u);
  // The same again finds nothing to do.
  const auto again = Compact(request);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->kv_bytes_before(), compacted->kv_bytes_after());
  EXPECT_EQ(again->kv_bytes_after(), compacted->kv_bytes_after());
}

TEST_P(CompactionStoreTest, NextTurnGoesOnFromWhatIsLeft) {
  Turn("s", 0, 128);
  ASSERT_TRUE(Compact(ToWindow("s", 4, 20)).ok());
  const auto lease = store().AcquireLease(AcquireOf("s"), Soon());
  EXPECT_EQ(lease->snapshot_version(), 1u);
  EXPECT_EQ(lease->session().memory_policy().window().sinks(), 4);
  v1::ReleaseLeaseRequest release;
  release.set_tenant("t");
  release.set_session_id("s");
  release.set_lease_token(lease->lease_token());
  ASSERT_TRUE(store().ReleaseLease(release, Soon()).ok());
  const sv1::Manifest compacted = Fetch(store(), "s")->manifest;
  const sv1::Manifest next = Turn("s", 1, 160, compacted, "window(sinks=4,recent=20)");
  ASSERT_TRUE(store().Sweep(Soon()).ok());
  EXPECT_EQ(Fetch(store(), "s")->manifest.SerializeAsString(), next.SerializeAsString());
  EXPECT_EQ(Fetch(store(), "s", 1)->manifest.SerializeAsString(), compacted.SerializeAsString());
  // Tighter once more, now that the head is another.
  const auto tighter = Compact(ToWindow("s", 0, 8));
  ASSERT_TRUE(tighter.ok()) << tighter.status();
  EXPECT_EQ(tighter->kv_bytes_after(), kChunkBytes);
  EXPECT_EQ(Fetch(store(), "s", 1)->manifest.SerializeAsString(), compacted.SerializeAsString());
}

TEST_P(CompactionStoreTest, NumbersAreRoundedAndDeadEntriesLeftOut) {
  const sv1::Manifest manifest = Turn("s", 0, 200);
  ASSERT_TRUE(Compact(ToWindow("s", 4, 20)).ok());
  const sv1::Manifest window = Fetch(store(), "s")->manifest;
  const auto compacted = Compact(ToInt8("s"));
  ASSERT_TRUE(compacted.ok()) << compacted.status();
  // Pages of 16 entries, an 8-bit number each and a scale per key and value.
  EXPECT_EQ(compacted->kv_bytes_after(), (16 + 24) * kLayers * 2 * (kHeadSize + 4));
  EXPECT_EQ(compacted->entries_after(), 16 + 24);
  EXPECT_EQ(compacted->session().memory_policy().window().recent(), 20);
  const auto fetched = Fetch(store(), "s");
  ASSERT_TRUE(fetched.ok()) << fetched.status();
  ASSERT_EQ(fetched->manifest.chunks_size(), 3);
  const std::vector<stored::EntryRuns> held = {{{0, 16}, {176, 200}}};
  for (int i = 0; i < 3; ++i) {
    const sv1::Chunk& chunk = window.chunks(i);
    const auto kept = stored::HeldRunsOf(chunk, window.shape(), held);
    const auto expected =
        stored::Recode(chunk, NumbersOf(chunk.first_serial(), chunk.num_serials()).payload(),
                       window.shape(), *kept, sv1::ENCODING_INT8);
    ASSERT_TRUE(expected.ok()) << expected.status();
    EXPECT_EQ(fetched->payloads[i], (*expected)->payload);
    EXPECT_EQ(fetched->manifest.chunks(i).encoding(), sv1::ENCODING_INT8);
    EXPECT_EQ(fetched->manifest.chunks(i).digest().size(), 16u);
  }
  ASSERT_TRUE(store().Sweep(Soon()).ok());
  EXPECT_EQ(BytesInRedis("s"), compacted->kv_bytes_after());
  // What is in 8 bits stays as it is.
  v1::CompactSessionRequest other = ToInt8("s");
  other.set_encoding(sv1::ENCODING_FP8_E4M3);
  ASSERT_TRUE(Compact(other).ok());
  EXPECT_EQ(Fetch(store(), "s")->manifest.SerializeAsString(),
            fetched->manifest.SerializeAsString());
}

TEST_P(CompactionStoreTest, BothAtOnceReadOnlyWhatIsKept) {
  Turn("s", 0, 200);
  v1::CompactSessionRequest request = ToWindow("s", 4, 20);
  request.set_encoding(sv1::ENCODING_FP8_E4M3);
  const auto compacted = Compact(request);
  ASSERT_TRUE(compacted.ok()) << compacted.status();
  EXPECT_EQ(compacted->kv_bytes_after(), (16 + 24) * kLayers * 2 * (kHeadSize + 4));
  const auto fetched = Fetch(store(), "s");
  ASSERT_TRUE(fetched.ok()) << fetched.status();
  EXPECT_EQ(fetched->manifest.chunks_size(), 3);
  EXPECT_EQ(fetched->manifest.chunks(2).encoding(), sv1::ENCODING_FP8_E4M3);
}

TEST_P(CompactionStoreTest, ManyChunksAreWrittenAnewInTheirOrder) {
  Turn("s", 0, 300 * kChunkSerials);
  const auto compacted = Compact(ToInt8("s"));
  ASSERT_TRUE(compacted.ok()) << compacted.status();
  const auto fetched = Fetch(store(), "s");
  ASSERT_TRUE(fetched.ok()) << fetched.status();
  ASSERT_EQ(fetched->manifest.chunks_size(), 300);
  for (int i = 0; i < 300; ++i) {
    const auto expected = stored::Recode(
        NumbersOf(i * kChunkSerials, kChunkSerials).chunk(),
        NumbersOf(i * kChunkSerials, kChunkSerials).payload(), fetched->manifest.shape(),
        stored::HeadRuns(2, {{i * kChunkSerials, (i + 1) * kChunkSerials}}), sv1::ENCODING_INT8);
    ASSERT_TRUE(expected.ok()) << expected.status();
    EXPECT_EQ(fetched->payloads[i], (*expected)->payload) << i;
  }
}

TEST_P(CompactionStoreTest, OldChunksGiveTheirRoomBack) {
  StoreOptions options;
  options.default_quota.set_max_kv_bytes(7 * kChunkBytes);
  UseOptions(options);
  Turn("s", 0, 6 * kChunkSerials);
  ASSERT_TRUE(Compact(ToWindow("s", 0, 8)).ok());
  ASSERT_TRUE(store().Sweep(Soon()).ok());
  // One chunk is left: there is room for six others.
  Turn("other", 0, 6 * kChunkSerials);
  EXPECT_EQ(BytesInRedis("other"), 6 * kChunkBytes);
}

TEST_P(CompactionStoreTest, ForksKeepTheirOwnMemory) {
  const sv1::Manifest manifest = Turn("s", 0, 200);
  Fork("s", "f");
  v1::CompactSessionRequest request = ToWindow("s", 4, 20);
  request.set_encoding(sv1::ENCODING_INT8);
  ASSERT_TRUE(Compact(request).ok());
  ASSERT_TRUE(store().Sweep(Soon()).ok());
  const auto fork = Fetch(store(), "f");
  ASSERT_TRUE(fork.ok()) << fork.status();
  EXPECT_EQ(fork->manifest.SerializeAsString(), manifest.SerializeAsString());
  EXPECT_FALSE(store().GetSession(GetOf("f"), Soon())->session().has_memory_policy());
  EXPECT_EQ(TextOf("f"), TextOf("s"));
  // A fork made now has the compacted one.
  Fork("s", "g");
  EXPECT_EQ(Fetch(store(), "g")->manifest.SerializeAsString(),
            Fetch(store(), "s")->manifest.SerializeAsString());
  EXPECT_EQ(store().GetSession(GetOf("g"), Soon())->session().memory_policy().window().recent(),
            20);
  v1::DeleteSessionRequest remove;
  remove.set_tenant("t");
  remove.set_session_id("s");
  ASSERT_TRUE(store().DeleteSession(remove, Soon()).ok());
  ASSERT_TRUE(store().Sweep(Soon()).ok());
  EXPECT_TRUE(Fetch(store(), "f").ok());
  EXPECT_TRUE(Fetch(store(), "g").ok());
}

TEST_P(CompactionStoreTest, OlderSnapshotsStayUnlessTheyAreToGo) {
  const sv1::Manifest first = Turn("s", 0, 64);
  const sv1::Manifest second = Turn("s", 1, 128, first);
  Turn("s", 2, 192, second);
  ASSERT_TRUE(Compact(ToWindow("s", 0, 8)).ok());
  EXPECT_THAT(SnapshotTokens("s"), ElementsAre(64, 128, 192));
  EXPECT_EQ(Fetch(store(), "s", 2)->manifest.SerializeAsString(), second.SerializeAsString());
  v1::CompactSessionRequest request = CompactOf("s");
  request.set_drop_older_snapshots(true);
  const std::string text = TextOf("s");
  const auto dropped = Compact(request);
  ASSERT_TRUE(dropped.ok()) << dropped.status();
  EXPECT_EQ(dropped->snapshots_dropped(), 2);
  EXPECT_EQ(dropped->kv_bytes_before(), dropped->kv_bytes_after());
  EXPECT_THAT(SnapshotTokens("s"), ElementsAre(0, 0, 192));
  ASSERT_TRUE(store().Sweep(Soon()).ok());
  EXPECT_EQ(BytesInRedis("s"), kChunkBytes);
  EXPECT_EQ(TextOf("s"), text);
  EXPECT_TRUE(Fetch(store(), "s").ok());
  EXPECT_TRUE(absl::IsNotFound(Fetch(store(), "s", 2).status()));
  Rewind("s", 2);
  EXPECT_EQ(store().GetSession(GetOf("s"), Soon())->session().kv_bytes(), 0);
  EXPECT_EQ(store().AcquireLease(AcquireOf("s"), Soon())->snapshot_version(), 0u);
}

TEST_P(CompactionStoreTest, OlderSnapshotsThatAForkHasStay) {
  const sv1::Manifest first = Turn("s", 0, 64);
  Fork("s", "f");
  const sv1::Manifest second = Turn("s", 1, 128, first);
  Turn("s", 2, 192, second);
  v1::CompactSessionRequest request = CompactOf("s");
  request.set_drop_older_snapshots(true);
  EXPECT_EQ(Compact(request)->snapshots_dropped(), 1);
  EXPECT_THAT(SnapshotTokens("s"), ElementsAre(64, 0, 192));
  EXPECT_EQ(Fetch(store(), "s", 2)->manifest.SerializeAsString(), first.SerializeAsString());
  EXPECT_EQ(Fetch(store(), "f")->manifest.SerializeAsString(), first.SerializeAsString());
  Rewind("s", 2);
  EXPECT_EQ(store().GetSession(GetOf("s"), Soon())->session().kv_bytes(), 2 * kChunkBytes);
  EXPECT_EQ(store().AcquireLease(AcquireOf("s"), Soon())->snapshot_version(), 1u);
}

TEST_P(CompactionStoreTest, RunningTurnsAndOthersVersionsAreRespected) {
  EXPECT_TRUE(absl::IsNotFound(Compact(ToInt8("s")).status()));
  Turn("s", 0, 64);
  v1::CompactSessionRequest request = ToInt8("s");
  request.set_parent_version(0);
  const absl::Status stale = Compact(request).status();
  EXPECT_EQ(ReasonOf(stale), "STALE_VERSION");
  EXPECT_EQ(status::PayloadOf(stale, status::kVersionPayload), "1");
  const auto lease = store().AcquireLease(AcquireOf("s"), Soon());
  request.set_parent_version(1);
  EXPECT_EQ(ReasonOf(Compact(request).status()), "SESSION_BUSY");
  // The turn that runs can still commit.
  v1::CommitTurnRequest commit = CommitOf("s", lease->lease_token(), 1, "two");
  commit.set_release(true);
  ASSERT_TRUE(store().CommitTurn(commit, Soon()).ok());
  // The head has no snapshot of its own: the latest one is it.
  request.set_parent_version(2);
  const auto compacted = Compact(request);
  ASSERT_TRUE(compacted.ok()) << compacted.status();
  EXPECT_EQ(compacted->session().version(), 2u);
  EXPECT_LT(compacted->kv_bytes_after(), compacted->kv_bytes_before());
  EXPECT_EQ(Fetch(store(), "s")->version, 1u);
  EXPECT_THAT(SnapshotTokens("s"), ElementsAre(64, 0));
}

TEST_P(CompactionStoreTest, WhatCannotBeHadIsRefusedAndNothingChanges) {
  const sv1::Manifest manifest = Turn("s", 0, 200, {}, "window(sinks=4,recent=300)");
  Turn("h2o", 0, 64, {}, "h2o(tokens=64,interval=128,recent=0)");
  const auto refused = [&](const v1::CompactSessionRequest& request, const char* why) {
    const absl::Status status = Compact(request).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(why));
    ExpectUnleased(request.session_id());
  };
  refused(ToWindow("s", 5, 20), "dropped what it needs");
  refused(ToWindow("s", 4, 301), "rebuilds the memory");
  v1::CompactSessionRequest request = CompactOf("s");
  request.mutable_memory_policy()->mutable_full();
  refused(request, "dropped what it needs");
  request.mutable_memory_policy()->mutable_l2norm()->mutable_budget()->set_tokens(8);
  refused(request, "more than their place");
  refused(ToWindow("h2o", 4, 20), "h2o(");
  const auto fetched = Fetch(store(), "s");
  EXPECT_EQ(fetched->manifest.SerializeAsString(), manifest.SerializeAsString());
  EXPECT_FALSE(store().GetSession(GetOf("s"), Soon())->session().has_memory_policy());
  // Fewer bits are to be had under any policy.
  EXPECT_TRUE(Compact(ToInt8("h2o")).ok());

  ASSERT_TRUE(store().CreateSession(CreateOf("empty"), Soon()).ok());
  refused(ToInt8("empty"), "no stored memory");
  // A snapshot that no executor has written.
  ASSERT_EQ(CommitWithSnapshot(store(), "odd", {PayloadOf("a")}).version, 1u);
  refused(ToInt8("odd"), "not one that this version");
}

TEST_P(CompactionStoreTest, ReplacementNeedsTheLeaseTheHeadAndWhatWasStaged) {
  const sv1::Manifest first = Turn("s", 0, 64);
  const std::string text = TextOf("s");
  const auto lease = store().AcquireLease(AcquireOf("s"), Soon());
  v1::StageSnapshotRequest::Header header;
  header.set_tenant("t");
  header.set_session_id("s");
  header.set_lease_token(lease->lease_token());
  SnapshotReplacement request{.tenant = "t",
                              .session_id = "s",
                              .lease_token = lease->lease_token(),
                              .version = 1,
                              .snapshot_version = 1};
  const auto replace = [&] { return store().ReplaceSnapshot(request, Soon()).status(); };
  request.snapshot_id = "00000000000000ff";
  EXPECT_TRUE(absl::IsUnavailable(replace()));
  auto staging = store().StageSnapshot(header, Soon());
  sv1::Manifest manifest = first;
  manifest.mutable_chunks()->RemoveLast();
  request.snapshot_id = (*staging)->Finish(manifest)->snapshot_id();
  request.version = 0;
  EXPECT_EQ(ReasonOf(replace()), "STALE_VERSION");
  request.version = 1;
  request.snapshot_version = 0;
  EXPECT_TRUE(absl::IsUnavailable(replace()));
  request.snapshot_version = 1;
  request.lease_token += 1;
  EXPECT_EQ(ReasonOf(replace()), "LEASE_LOST");
  request.session_id = "none";
  EXPECT_TRUE(absl::IsNotFound(replace()));
  request.session_id = "s";
  EXPECT_EQ(Fetch(store(), "s")->manifest.SerializeAsString(), first.SerializeAsString());
  request.lease_token -= 1;
  EXPECT_TRUE(replace().ok());
  EXPECT_EQ(Fetch(store(), "s")->manifest.SerializeAsString(), manifest.SerializeAsString());
  EXPECT_EQ(TextOf("s"), text);
  // The lease went with it.
  EXPECT_EQ(ReasonOf(replace()), "LEASE_LOST");
  ExpectUnleased("s");
}

TEST_P(CompactionStoreTest, IdleSessionsAreRoundedBeforeAnyIsDropped) {
  StoreOptions options;
  options.redis_budget_bytes = 15 * kChunkBytes;
  options.is_elastic = [](const std::string& tenant, const v1::Session& session) {
    return tenant == "t" && session.model() == "m";
  };
  UseOptions(options);
  const sv1::Manifest first = Turn("a", 0, 3 * kChunkSerials);
  Turn("a", 1, 6 * kChunkSerials, first);
  Advance(absl::Milliseconds(2));
  Turn("b", 0, 6 * kChunkSerials);
  Turn("c", 0, 2 * kChunkSerials);
  ASSERT_TRUE(store().Sweep(Soon()).ok());
  EXPECT_EQ(BytesInRedis("a"), 6 * kChunkBytes);
  const auto before = store().GetSession(GetOf("a"), Soon());
  const std::string text = TextOf("a");

  Advance(absl::Milliseconds(2));
  Turn("d", 0, 2 * kChunkSerials);
  ASSERT_TRUE(store().Sweep(Soon()).ok());
  // Of 32 bytes of a key or value 8 are left, and the scale.
  EXPECT_EQ(BytesInRedis("a"), 6 * kChunkBytes * 12 / 32);
  EXPECT_THAT(SnapshotTokens("a"), ElementsAre(0, 6 * kChunkSerials));
  EXPECT_EQ(Fetch(store(), "a")->manifest.chunks(0).encoding(), sv1::ENCODING_INT8);
  EXPECT_EQ(TextOf("a"), text);
  ExpectUnleased("a");
  for (const char* id : {"b", "c", "d"}) {
    EXPECT_EQ(Fetch(store(), id)->manifest.chunks(0).encoding(), sv1::ENCODING_FLOAT32) << id;
  }
  // That was no use of the session.
  const auto after = store().GetSession(GetOf("a"), Soon());
  EXPECT_EQ(after->session().used_unix_ms(), before->session().used_unix_ms());
  v1::ListSessionsRequest list;
  list.set_tenant("t");
  list.set_page_size(10);
  EXPECT_EQ(store().ListSessions(list, Soon())->sessions(3).session_id(), "a");

  // Neither sessions in use nor pinned ones are touched, and where rounding is not enough, the
  // least used goes.
  v1::UpdateSessionRequest pin;
  pin.set_tenant("t");
  pin.set_session_id("c");
  pin.set_pinned(true);
  ASSERT_TRUE(store().UpdateSession(pin, Soon()).ok());
  ASSERT_TRUE(store().AcquireLease(AcquireOf("b"), Soon()).ok());
  Advance(absl::Milliseconds(2));
  Turn("e", 0, 12 * kChunkSerials);
  ASSERT_TRUE(store().Sweep(Soon()).ok());
  EXPECT_TRUE(absl::IsNotFound(Fetch(store(), "a").status()));
  for (const char* id : {"b", "c"}) {
    EXPECT_EQ(Fetch(store(), id)->manifest.chunks(0).encoding(), sv1::ENCODING_FLOAT32) << id;
  }
}

TEST_P(CompactionStoreTest, OnlyWhatIsElasticIsRounded) {
  StoreOptions options;
  options.redis_budget_bytes = kChunkBytes;
  options.is_elastic = [](const std::string&, const v1::Session& session) {
    return session.model() != "m";
  };
  UseOptions(options);
  Turn("s", 0, 2 * kChunkSerials);
  ASSERT_TRUE(store().Sweep(Soon()).ok());
  EXPECT_TRUE(absl::IsNotFound(Fetch(store(), "s").status()));
}

TEST_P(CompactionStoreTest, WhatADeadProcessHasLeftRunsOut) {
  StoreOptions options;
  options.orphan_age = absl::Milliseconds(600);
  UseOptions(options);
  const sv1::Manifest manifest = Turn("s", 0, 64);
  v1::AcquireLeaseRequest acquire = AcquireOf("s");
  acquire.set_ttl_ms(500);
  const auto lease = store().AcquireLease(acquire, Soon());
  v1::StageSnapshotRequest::Header header;
  header.set_tenant("t");
  header.set_session_id("s");
  header.set_lease_token(lease->lease_token());
  auto staging = store().StageSnapshot(header, Soon());
  ASSERT_TRUE(staging.ok()) << staging.status();
  sv1::Manifest half = manifest;
  v1::ChunkPayload chunk = NumbersOf(64, 32);
  *half.add_chunks() = chunk.chunk();
  ASSERT_TRUE((*staging)->Add(std::move(chunk)).ok());
  SnapshotReplacement request{.tenant = "t",
                              .session_id = "s",
                              .lease_token = lease->lease_token(),
                              .version = 1,
                              .snapshot_version = 1,
                              .snapshot_id = (*staging)->Finish(half)->snapshot_id()};
  Advance(absl::Milliseconds(1200));
  EXPECT_EQ(ReasonOf(store().ReplaceSnapshot(request, Soon()).status()), "LEASE_LOST");
  ASSERT_TRUE(store().Sweep(Soon()).ok());
  EXPECT_EQ(Fetch(store(), "s")->manifest.SerializeAsString(), manifest.SerializeAsString());
  EXPECT_EQ(BytesInRedis("s"), 2 * kChunkBytes);
  EXPECT_TRUE(Compact(ToInt8("s")).ok());
}

TEST_P(CompactionStoreTest, NothingOfACompactedSessionStaysBehind) {
  const sv1::Manifest first = Turn("s", 0, 64);
  Turn("s", 1, 128, first);
  Fork("s", "f");
  v1::CompactSessionRequest request = ToWindow("s", 4, 20);
  request.set_encoding(sv1::ENCODING_INT8);
  request.set_drop_older_snapshots(true);
  ASSERT_TRUE(Compact(request).ok());
  v1::DeleteSessionRequest remove;
  remove.set_tenant("t");
  for (const char* id : {"s", "f"}) {
    remove.set_session_id(id);
    ASSERT_TRUE(store().DeleteSession(remove, Soon()).ok());
  }
  ASSERT_TRUE(store().Sweep(Soon()).ok());
  for (const std::string& key : AllThatIsThere()) EXPECT_EQ(key, "mneme:2:tenants");
}

INSTANTIATE_TEST_SUITE_P(Stores, CompactionStoreTest,
                         ::testing::Values(StoreKind::kInMemory, StoreKind::kRedis,
                                           StoreKind::kCluster),
                         StoreKindName);

}  // namespace
}  // namespace mneme::memory
