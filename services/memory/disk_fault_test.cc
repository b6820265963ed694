// The disk tier of the real mneme-memory: killed again and again while chunks move, and on a
// filesystem that is full.
#include <fcntl.h>
#include <httplib.h>
#include <sys/stat.h>

#include <cstdlib>
#include <filesystem>
#include <functional>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "services/memory/service_process_fixture.h"
#include "services/memory/store_fixture.h"
#include "tests/support/time_limit.h"

namespace mneme::memory {
namespace {

using ::mneme::testing::TempFolder;
using ::mneme::testing::TimeLimit;
using ::testing::HasSubstr;

v1::MemoryConfig WithDisk(const std::string& redis_address, const std::string& disk_path) {
  v1::MemoryConfig config = ConfigFor(redis_address);
  config.set_sweep_interval_ms(10);
  config.mutable_tiers()->set_redis_budget_bytes(1);
  config.mutable_tiers()->set_disk_path(disk_path);
  return config;
}

std::vector<std::string> PayloadsOf(const std::string& id, size_t bytes) {
  return {PayloadOf(id + " first", bytes), PayloadOf(id + " second", bytes)};
}

// Commits turn `version` of a session with a snapshot of its own; says whether it was done.
bool Commit(Caller& caller, const std::string& id, uint64_t version,
            const std::vector<std::string>& payloads) {
  v1::AcquireLeaseRequest acquire = AcquireOf(id);
  acquire.set_request_id(absl::StrCat("turn-", version));
  const auto lease = caller.Acquire(acquire);
  if (!lease.ok()) return false;
  if (lease->has_committed()) return true;
  const auto staged = caller.Stage(id, lease->lease_token(), payloads);
  if (!staged.ok()) return false;
  v1::CommitTurnRequest commit =
      CommitOf(id, lease->lease_token(), version - 1, id, absl::StrCat("turn-", version));
  commit.set_snapshot_id(staged->snapshot_id());
  commit.set_release(true);
  const auto committed = caller.Commit(commit);
  return committed.ok() && committed->snapshot_lost_reason().empty();
}

double MetricOf(const std::string& address, const std::string& name) {
  httplib::Client client("http://" + address);
  const auto page = client.Get("/metrics");
  if (!page) return -1;
  const size_t at = page->body.find("\n" + name + " ");
  return at == std::string::npos ? -1 : std::atof(page->body.c_str() + at + name.size() + 2);
}

// Waits until `is_so`; returns whether it came to be.
bool Eventually(const std::function<bool()>& is_so) {
  const absl::Time deadline = absl::Now() + TimeLimit(absl::Seconds(20));
  while (!is_so()) {
    if (absl::Now() > deadline) return false;
    absl::SleepFor(absl::Milliseconds(10));
  }
  return true;
}

std::vector<std::string> ChunkFilesIn(const std::string& folder) {
  std::vector<std::string> files;
  for (const std::string& path : FilesIn(folder)) {
    if (!std::filesystem::is_directory(path)) files.push_back(path);
  }
  return files;
}

TEST(DiskFaultTest, ServiceKilledAgainAndAgainWhileChunksMoveLosesNone) {
  constexpr int kSessions = 4;
  constexpr int kKills = 8;
  const auto redis = StartRedis();
  TempFolder disk;
  ServiceProcess service(WithDisk(redis->address(), disk.File("tier")));
  redis::Client client({.address = redis->address()});
  // A sweeper that is killed holds its locks for minutes.
  const auto unlock = [&client] {
    const auto keys = client.Run({"KEYS", "mneme:2:sweeping*"});
    for (const redis::Reply& key : keys->elements()) (void)client.Run({"DEL", key.text()});
  };
  uint64_t version = 0;
  uint64_t seed = 7;
  for (int kill = 0; kill < kKills; ++kill) {
    service.Start();
    Caller caller(service.Address());
    // What the last one was killed over comes back whole, from wherever it is.
    for (int s = 0; s < kSessions && version > 0; ++s) {
      const std::string id = absl::StrCat("s", s);
      const auto fetched = caller.Fetch(id);
      ASSERT_TRUE(fetched.ok()) << fetched.status();
      EXPECT_EQ(*fetched, PayloadsOf(absl::StrCat(id, "/", version), 100'000));
    }
    ++version;
    for (int s = 0; s < kSessions; ++s) {
      const std::string id = absl::StrCat("s", s);
      ASSERT_TRUE(Commit(caller, id, version, PayloadsOf(absl::StrCat(id, "/", version), 100'000)));
    }
    // Sweeps come every 10 ms and take longer than that: each kill is at another step of one.
    seed = seed * 6364136223846793005ULL + 1442695040888963407ULL;
    absl::SleepFor(absl::Milliseconds(seed >> 58));
    EXPECT_EQ(service.End(SIGKILL), -SIGKILL);
    unlock();
  }
  // What was being written when its writer died goes once it is old.
  for (const std::string& path : ChunkFilesIn(disk.File("tier"))) {
    if (!absl::EndsWith(path, ".tmp")) continue;
    const timespec long_ago = absl::ToTimespec(absl::Now() - absl::Hours(1));
    const timespec times[] = {long_ago, long_ago};
    ASSERT_EQ(utimensat(AT_FDCWD, path.c_str(), times, 0), 0);
  }
  service.Start();
  Caller caller(service.Address());
  const size_t num_chunks = 2 * kSessions * version;
  EXPECT_TRUE(Eventually([&] {
    return ChunkFilesIn(disk.File("tier")).size() == num_chunks &&
           client.Run({"KEYS", "*:c:*"})->elements().empty();
  })) << ChunkFilesIn(disk.File("tier")).size()
      << " files for " << num_chunks << " chunks";
  for (int s = 0; s < kSessions; ++s) {
    const std::string id = absl::StrCat("s", s);
    const auto fetched = caller.Fetch(id);
    ASSERT_TRUE(fetched.ok()) << fetched.status();
    EXPECT_EQ(*fetched, PayloadsOf(absl::StrCat(id, "/", version), 100'000));
    ASSERT_TRUE(caller.Delete(id).ok());
  }
  EXPECT_TRUE(Eventually([&] { return FilesIn(disk.File("tier")).empty(); }));
  EXPECT_EQ(service.End(SIGTERM), 0);
  unlock();
  const auto left = client.Run({"KEYS", "*"});
  ASSERT_EQ(left->elements().size(), 1u);
  EXPECT_EQ(left->elements()[0].text(), "mneme:2:tenants");
}

TEST(DiskFaultTest, FullDiskDropsTheLeastUsedSnapshotsAndNeverTextAndWorksAgainOnceThereIsRoom) {
  constexpr size_t kBytes = 500'000;
  constexpr int kSessions = 8;
  const auto redis = StartRedis();
  TempFolder disk;
  // Room for three snapshots of two chunks.
  ServiceProcess service(WithDisk(redis->address(), disk.File("tier")), 3'400'000);
  service.Start();
  absl::SleepFor(absl::Milliseconds(50));
  if (service.CouldNotMount()) GTEST_SKIP() << "no filesystem can be mounted here";
  Caller caller(service.Address());
  const std::string metrics = service.Address("metrics");
  redis::Client client({.address = redis->address()});
  const auto chunks_in_redis = [&] { return client.Run({"KEYS", "*:c:*"})->elements().size(); };
  for (int s = 0; s < kSessions; ++s) {
    const std::string id = absl::StrCat("s", s);
    ASSERT_TRUE(Commit(caller, id, 1, PayloadsOf(id, kBytes)));
    EXPECT_TRUE(Eventually([&] { return chunks_in_redis() == 0; })) << id;
    // The newest always has its place.
    const auto newest = caller.Fetch(id);
    ASSERT_TRUE(newest.ok()) << newest.status();
    EXPECT_EQ(*newest, PayloadsOf(id, kBytes));
  }
  EXPECT_GT(MetricOf(metrics, "mneme_memory_disk_errors_total{operation=\"write\"}"), 0);
  EXPECT_GT(MetricOf(metrics, "mneme_memory_dropped_bytes_total"), 0);
  EXPECT_THAT(service.Log(), HasSubstr("No space left on device"));
  int num_whole = 0;
  for (int s = 0; s < kSessions; ++s) {
    const std::string id = absl::StrCat("s", s);
    EXPECT_EQ(caller.Get(id)->messages_size(), 2);
    const auto fetched = caller.Fetch(id);
    if (absl::IsNotFound(fetched.status())) {
      EXPECT_EQ(num_whole, 0) << "a snapshot was dropped before one that was used less: " << id;
      continue;
    }
    ASSERT_TRUE(fetched.ok()) << fetched.status();
    EXPECT_EQ(*fetched, PayloadsOf(id, kBytes));
    ++num_whole;
  }
  EXPECT_GE(num_whole, 2);
  EXPECT_LE(num_whole, 3);
  // Room comes back with deletions, and the tier takes chunks again.
  for (int s = 0; s < kSessions; ++s) ASSERT_TRUE(caller.Delete(absl::StrCat("s", s)).ok());
  for (const char* id : {"n0", "n1", "n2"}) {
    ASSERT_TRUE(Commit(caller, id, 1, PayloadsOf(id, kBytes)));
  }
  EXPECT_TRUE(Eventually([&] { return chunks_in_redis() == 0; }));
  for (const char* id : {"n0", "n1", "n2"}) {
    const auto fetched = caller.Fetch(id);
    ASSERT_TRUE(fetched.ok()) << fetched.status();
    EXPECT_EQ(*fetched, PayloadsOf(id, kBytes));
  }
}

}  // namespace
}  // namespace mneme::memory
