// The stores behind one face for tests that run on all of them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "common/clock/fake_clock.h"
#include "common/crypto/aead.h"
#include "common/crypto/crc32c.h"
#include "common/metrics/metrics.h"
#include "common/redis/client.h"
#include "common/status/status_macros.h"
#include "gtest/gtest.h"
#include "services/memory/in_memory_session_store.h"
#include "services/memory/redis_session_store.h"
#include "services/memory/store_options.h"
#include "services/memory/tenant_keys.h"
#include "tests/support/redis_cluster.h"
#include "tests/support/redis_server.h"
#include "tests/support/temp_folder.h"

namespace mneme::memory {

// A store and a way to let time pass for it.
class StoreUnderTest {
 public:
  virtual ~StoreUnderTest() = default;
  virtual SessionStore& store() = 0;
  virtual void Advance(absl::Duration duration) = 0;
  // Names everything outside this process that the store has put there.
  virtual std::vector<std::string> AllThatIsThere() { return {}; }
};

class InMemoryUnderTest final : public StoreUnderTest {
 public:
  explicit InMemoryUnderTest(StoreOptions options = {},
                             std::optional<int64_t> disk_budget_bytes = std::nullopt)
      : store_(clock_, std::move(options), disk_budget_bytes) {}
  SessionStore& store() override { return store_; }
  void Advance(absl::Duration duration) override { clock_.Advance(duration); }

 private:
  clock::FakeClock clock_;
  InMemorySessionStore store_;
};

// Returns the paths of all that a disk tier's folder holds beside its marker.
inline std::vector<std::string> FilesIn(const std::string& folder) {
  std::vector<std::string> paths;
  std::error_code error;
  std::filesystem::recursive_directory_iterator at(folder, error);
  for (; at != std::filesystem::recursive_directory_iterator(); at.increment(error)) {
    if (at->path().filename() != "mneme-disk-tier") paths.push_back(at->path().string());
    if (error) break;
  }
  std::sort(paths.begin(), paths.end());
  return paths;
}

// A store in an emptied database of a real redis-server, whose clock cannot be set: Advance waits.
class RedisUnderTest final : public StoreUnderTest {
 public:
  // With `disk_budget_bytes` (0: no bound) it has a disk tier, in a folder of its own.
  explicit RedisUnderTest(redis::Options redis, StoreOptions options = {},
                          std::optional<int64_t> disk_budget_bytes = std::nullopt)
      : client_(std::move(redis)),
        disk_({.path = folder_.File("disk"),
               .budget_bytes = disk_budget_bytes.value_or(0),
               .store_id = "store of the test"},
              metrics_),
        store_(client_, keys_, std::move(options), metrics_,
               disk_budget_bytes.has_value() ? &disk_ : nullptr) {
    EXPECT_TRUE(client_.RunOnEveryMaster({"FLUSHALL"}).ok());
  }
  explicit RedisUnderTest(const std::string& address, StoreOptions options = {},
                          std::optional<int64_t> disk_budget_bytes = std::nullopt)
      : RedisUnderTest(redis::Options{.address = address}, std::move(options), disk_budget_bytes) {}
  SessionStore& store() override { return store_; }
  void Advance(absl::Duration duration) override { absl::SleepFor(duration); }
  redis::Client& client() { return client_; }
  DiskTier& disk() { return disk_; }
  // What is left in Redis, and of the disk tier beside its marker.
  std::vector<std::string> AllThatIsThere() override {
    std::vector<std::string> all = FilesIn(disk_.path());
    const auto masters = client_.RunOnEveryMaster({"KEYS", "*"});
    EXPECT_TRUE(masters.ok()) << masters.status();
    for (const redis::Reply& keys : *masters) {
      for (const redis::Reply& key : keys.elements()) all.push_back(key.text());
    }
    return all;
  }
  TenantKeys& keys() { return keys_; }
  const crypto::Key& master_key() const { return master_key_; }
  MemoryMetrics& metrics() { return metrics_; }
  metrics::Registry& registry() { return registry_; }
  metrics::Counter& errors() { return metrics_.redis_errors(); }

 private:
  metrics::Registry registry_;
  MemoryMetrics metrics_{registry_};
  redis::Client client_;
  const crypto::Key master_key_ = crypto::Key::Random();
  TenantKeys keys_{client_, master_key_, "(the test's own key)"};
  testing::TempFolder folder_;
  DiskTier disk_;
  RedisSessionStore store_;
};

enum class StoreKind { kInMemory, kRedis, kCluster };

inline std::string StoreKindName(const ::testing::TestParamInfo<StoreKind>& info) {
  switch (info.param) {
    case StoreKind::kInMemory:
      return "InMemory";
    case StoreKind::kRedis:
      return "Redis";
    case StoreKind::kCluster:
      return "Cluster";
  }
  return "";
}

// A suite that runs on every store. Servers are started when a test first needs them, once for the
// suite; stores are emptied before each test.
class StoreTest : public ::testing::TestWithParam<StoreKind> {
 protected:
  static void TearDownTestSuite() {
    server_.reset();
    cluster_.reset();
  }

  void SetUp() override { UseOptions({}); }

  // With `disk_budget_bytes` (0: no bound) the store has a disk tier.
  void UseOptions(StoreOptions options, std::optional<int64_t> disk_budget_bytes = std::nullopt) {
    under_test_.reset();
    switch (GetParam()) {
      case StoreKind::kInMemory:
        under_test_ = std::make_unique<InMemoryUnderTest>(std::move(options), disk_budget_bytes);
        return;
      case StoreKind::kRedis:
        if (server_ == nullptr) {
          auto started = testing::RedisServer::Start({.append_fsync = "no"});
          ASSERT_TRUE(started.ok()) << started.status();
          server_ = *std::move(started);
        }
        under_test_ = std::make_unique<RedisUnderTest>(server_->address(), std::move(options),
                                                       disk_budget_bytes);
        return;
      case StoreKind::kCluster:
        if (cluster_ == nullptr) {
          auto started = testing::RedisCluster::Start({.has_replicas = false});
          ASSERT_TRUE(started.ok()) << started.status();
          cluster_ = *std::move(started);
        }
        under_test_ = std::make_unique<RedisUnderTest>(
            redis::Options{.mode = redis::Mode::kCluster, .address = cluster_->server(0).address()},
            std::move(options), disk_budget_bytes);
        return;
    }
  }

  SessionStore& store() { return under_test_->store(); }
  void Advance(absl::Duration duration) { under_test_->Advance(duration); }
  std::vector<std::string> AllThatIsThere() { return under_test_->AllThatIsThere(); }

  static inline std::unique_ptr<testing::RedisServer> server_;
  static inline std::unique_ptr<testing::RedisCluster> cluster_;
  std::unique_ptr<StoreUnderTest> under_test_;
};

inline absl::Time Soon() { return absl::Now() + absl::Seconds(10); }

// Requests as they come after Normalize.
inline v1::CreateSessionRequest CreateOf(const std::string& session_id,
                                         const std::string& tenant = "t") {
  v1::CreateSessionRequest request;
  request.set_tenant(tenant);
  request.set_session_id(session_id);
  request.set_model("m");
  return request;
}

inline v1::GetSessionRequest GetOf(const std::string& session_id, const std::string& tenant = "t") {
  v1::GetSessionRequest request;
  request.set_tenant(tenant);
  request.set_session_id(session_id);
  request.set_with_messages(true);
  request.set_with_tokens(true);
  return request;
}

inline v1::AcquireLeaseRequest AcquireOf(const std::string& session_id,
                                         const std::string& tenant = "t") {
  v1::AcquireLeaseRequest request;
  request.set_tenant(tenant);
  request.set_session_id(session_id);
  request.set_holder("h");
  request.set_ttl_ms(60'000);
  request.set_create(true);
  request.set_model("m");
  return request;
}

// A turn of one question, one answer and two tokens, all of them made of `text`.
inline v1::CommitTurnRequest CommitOf(const std::string& session_id, uint64_t lease_token,
                                      uint64_t parent_version, const std::string& text,
                                      const std::string& request_id = "") {
  v1::CommitTurnRequest request;
  request.set_tenant("t");
  request.set_session_id(session_id);
  request.set_lease_token(lease_token);
  request.set_parent_version(parent_version);
  auto* question = request.mutable_turn()->add_messages();
  question->set_role("user");
  question->set_content(text);
  auto* answer = request.mutable_turn()->add_messages();
  answer->set_role("assistant");
  answer->set_content("answer to " + text);
  request.mutable_turn()->add_token_ids(static_cast<int32_t>(parent_version));
  request.mutable_turn()->add_token_ids(static_cast<int32_t>(text.size()));
  request.mutable_turn()->set_request_id(request_id);
  return request;
}

// A payload of `size` bytes that begins with `text`.
inline std::string PayloadOf(const std::string& text, size_t size = 1000) {
  std::string payload = text + "|";
  // Not the same bytes again and again: a chunk that is cut or mixed up shows.
  uint64_t state = 88172645463325252ULL + text.size();
  while (payload.size() < size) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    payload.push_back(static_cast<char>(state));
  }
  return payload;
}

inline constexpr uint64_t kSerialsPerChunk = 10;

// A chunk of one layer and so many serials as an executor sends it.
inline v1::ChunkPayload ChunkOf(const std::string& payload, uint64_t first_serial) {
  v1::ChunkPayload chunk;
  chunk.mutable_chunk()->set_num_bytes(payload.size());
  chunk.mutable_chunk()->set_encoding(snapshot::v1::ENCODING_BFLOAT16);
  chunk.mutable_chunk()->set_num_layers(1);
  chunk.mutable_chunk()->set_first_serial(first_serial);
  chunk.mutable_chunk()->set_num_serials(kSerialsPerChunk);
  chunk.mutable_chunk()->set_crc32c(crypto::Crc32c(payload));
  chunk.set_payload(payload);
  return chunk;
}

// Stages a snapshot that has the parent's chunks and these.
inline absl::StatusOr<v1::StageSnapshotResponse> Stage(SessionStore& store,
                                                       const std::string& session_id,
                                                       uint64_t lease_token,
                                                       const std::vector<std::string>& payloads,
                                                       const snapshot::v1::Manifest& parent = {},
                                                       const std::string& tenant = "t") {
  v1::StageSnapshotRequest::Header header;
  header.set_tenant(tenant);
  header.set_session_id(session_id);
  header.set_lease_token(lease_token);
  ASSIGN_OR_RETURN(const auto staging, store.StageSnapshot(header, Soon()));
  snapshot::v1::Manifest manifest = parent;
  manifest.set_format_version(1);
  manifest.mutable_lineage()->set_model_fingerprint("fingerprint-of-m");
  for (const std::string& payload : payloads) {
    v1::ChunkPayload chunk = ChunkOf(payload, kSerialsPerChunk * manifest.chunks_size());
    *manifest.add_chunks() = chunk.chunk();
    RETURN_IF_ERROR(staging->Add(std::move(chunk)));
  }
  manifest.set_num_tokens(kSerialsPerChunk * std::max(manifest.chunks_size(), 1));
  return staging->Finish(std::move(manifest));
}

// What a turn with a snapshot has become; version 0: it failed.
struct StagedTurn {
  uint64_t version = 0;
  snapshot::v1::Manifest manifest;
};

// Takes the lease, stages, commits and gives the lease back.
inline StagedTurn CommitWithSnapshot(SessionStore& store, const std::string& session_id,
                                     const std::vector<std::string>& payloads,
                                     const snapshot::v1::Manifest& parent = {},
                                     uint64_t parent_version = 0) {
  const auto lease = store.AcquireLease(AcquireOf(session_id), Soon());
  EXPECT_TRUE(lease.ok()) << lease.status();
  if (!lease.ok()) return {};
  const auto staged = Stage(store, session_id, lease->lease_token(), payloads, parent);
  EXPECT_TRUE(staged.ok()) << staged.status();
  if (!staged.ok()) return {};
  v1::CommitTurnRequest commit =
      CommitOf(session_id, lease->lease_token(), parent_version, "turn with a snapshot");
  commit.set_snapshot_id(staged->snapshot_id());
  commit.set_executor("executor-1");
  commit.set_release(true);
  const auto committed = store.CommitTurn(commit, Soon());
  EXPECT_TRUE(committed.ok()) << committed.status();
  if (!committed.ok()) return {};
  EXPECT_EQ(committed->snapshot_lost_reason(), "");
  return {.version = committed->version(), .manifest = staged->manifest()};
}

// A snapshot as it was fetched.
struct Fetched {
  uint64_t version = 0;
  snapshot::v1::Manifest manifest;
  std::vector<int> positions;
  std::vector<std::string> payloads;
  std::vector<std::string> tiers;
};

inline absl::StatusOr<Fetched> Fetch(SessionStore& store, const v1::FetchSnapshotRequest& request) {
  Fetched fetched;
  const auto take = [&fetched](v1::FetchSnapshotResponse part) {
    if (part.has_found()) {
      fetched.version = part.found().version();
      fetched.manifest = part.found().manifest();
    } else {
      fetched.positions.push_back(part.chunk().index());
      fetched.tiers.push_back(part.chunk().tier());
      fetched.payloads.push_back(std::move(*part.mutable_chunk()->mutable_payload()));
    }
    return absl::OkStatus();
  };
  RETURN_IF_ERROR(store.FetchSnapshot(request, take, Soon()));
  return fetched;
}

inline absl::StatusOr<Fetched> Fetch(SessionStore& store, const std::string& session_id,
                                     uint64_t version = 0) {
  v1::FetchSnapshotRequest request;
  request.set_tenant("t");
  request.set_session_id(session_id);
  request.set_version(version);
  return Fetch(store, request);
}

}  // namespace mneme::memory
