// The disk tier's folder under a real Redis: what files tell, whose they are, what becomes of
// damaged ones, and the states that a process killed between two steps leaves.
#include "services/memory/disk_tier.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <functional>
#include <map>
#include <thread>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/config/config.h"
#include "common/status/annotate.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "services/memory/chunk_codec.h"
#include "services/memory/session_errors.h"
#include "services/memory/store_fixture.h"
#include "tests/support/time_limit.h"

namespace mneme::memory {
namespace {

using ::mneme::testing::RedisServer;
using ::mneme::testing::TempFolder;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::SizeIs;

StoreOptions WithBudget(int64_t redis_bytes) {
  StoreOptions options;
  options.redis_budget_bytes = redis_bytes;
  return options;
}

class DiskTierTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    auto started = RedisServer::Start({.append_fsync = "no"});
    ASSERT_TRUE(started.ok()) << started.status();
    server_ = *std::move(started);
  }
  static void TearDownTestSuite() { server_.reset(); }

  SessionStore& store() { return under_test_.store(); }
  const std::string& folder() { return under_test_.disk().path(); }

  redis::Reply Redis(const redis::Command& command) {
    const auto reply = under_test_.client().Run(command);
    EXPECT_TRUE(reply.ok()) << reply.status();
    return reply.value_or(redis::Reply());
  }

  // A key of the family of session `s`.
  std::string KeyOf(const std::string& name) {
    const std::string family = Redis({"HGET", "mneme:2:{t}:families", "s"}).text();
    return absl::StrCat("mneme:2:{t/", family, "}:", name);
  }

  // The chunks' records of session `s`, by field.
  std::map<std::string, std::string> Records() {
    std::map<std::string, std::string> records;
    const redis::Reply all = Redis({"HGETALL", KeyOf("f")});
    for (size_t i = 0; i + 1 < all.elements().size(); i += 2) {
      if (absl::StartsWith(all.elements()[i].text(), "c:")) {
        records[all.elements()[i].text()] = all.elements()[i + 1].text();
      }
    }
    return records;
  }

  void Sweep() {
    const absl::Status status = store().Sweep(Soon());
    EXPECT_TRUE(status.ok()) << status;
  }

  // Commits a snapshot of these payloads as turn 1 of session `s`, and has it on disk.
  StagedTurn Demoted(const std::vector<std::string>& payloads) {
    StagedTurn turn = CommitWithSnapshot(store(), "s", payloads);
    Sweep();
    EXPECT_THAT(Files(), SizeIs(payloads.size()));
    return turn;
  }

  // Of chunks.
  std::vector<std::string> Files() {
    std::vector<std::string> files;
    for (const std::string& path : FilesIn(folder())) {
      if (!std::filesystem::is_directory(path)) files.push_back(path);
    }
    return files;
  }

  int DiskErrors(const std::string& operation) {
    const std::string line =
        absl::StrCat("mneme_memory_disk_errors_total{operation=\"", operation, "\"} ");
    const std::string text = under_test_.registry().Text();
    const size_t at = text.find(line);
    return at == std::string::npos ? -1 : std::atoi(text.c_str() + at + line.size());
  }

  static inline std::unique_ptr<RedisServer> server_;
  RedisUnderTest under_test_{server_->address(), WithBudget(1), 0};
};

TEST(ChunkCodecTest, WhatIsPackedComesBackAndNothingElseDoes) {
  const std::string repeated(100'000, 'x');
  EXPECT_LT(PackChunk(repeated).size(), 1000u);
  const std::string random = PayloadOf("random", 10'000);
  EXPECT_EQ(PackChunk(random).size(), random.size() + 1);
  for (const std::string& payload : {repeated, random, std::string("a"), std::string()}) {
    EXPECT_EQ(*UnpackChunk(PackChunk(payload), 100'000), payload);
  }
  EXPECT_TRUE(absl::IsDataLoss(UnpackChunk(PackChunk(repeated), 99'999).status()));
  EXPECT_TRUE(absl::IsDataLoss(UnpackChunk(PackChunk(random), 9'999).status()));
  EXPECT_TRUE(absl::IsDataLoss(UnpackChunk("", 10).status()));
  EXPECT_TRUE(absl::IsDataLoss(UnpackChunk("\x02 other", 10).status()));
  std::string cut = PackChunk(repeated);
  cut.pop_back();
  EXPECT_TRUE(absl::IsDataLoss(UnpackChunk(cut, 100'000).status()));
}

TEST_F(DiskTierTest, FilesAndNamesTellNothing) {
  const StagedTurn turn = Demoted({PayloadOf("payload-of-the-user"), std::string(5000, 'x')});
  std::string all;
  for (const std::string& path : Files()) {
    absl::StrAppend(&all, path, "\n", *config::ReadFile(path));
    struct stat info {};
    ASSERT_EQ(stat(path.c_str(), &info), 0);
    EXPECT_EQ(info.st_mode & 0777, 0600u);
  }
  EXPECT_THAT(all, Not(HasSubstr("of-the-user")));
  EXPECT_THAT(all, Not(HasSubstr("xxxxxxxx")));
  const std::string digest = turn.manifest.chunks(0).digest();
  EXPECT_THAT(all, Not(HasSubstr(digest)));
  EXPECT_THAT(all, Not(HasSubstr(absl::BytesToHexString(digest))));
  // Zstandard did its work on the second.
  EXPECT_LT(all.size(), 2000u);
  EXPECT_THAT(Redis({"KEYS", KeyOf("c:*")}).elements(), IsEmpty());
  EXPECT_EQ(Redis({"HGET", KeyOf("f"), "disk"}).text(), "6000");
}

TEST_F(DiskTierTest, DamagedFileIsNamedAndWhoSendsItAgainHealsTheSnapshot) {
  const std::vector<std::string> payloads = {PayloadOf("a"), PayloadOf("b")};
  const auto flip = [](const std::string& path) {
    std::string bytes = *config::ReadFile(path);
    bytes[bytes.size() / 2] ^= 1;
    ASSERT_TRUE(config::WriteFileAtomically(path, bytes).ok());
  };
  const auto cut = [](const std::string& path) { ASSERT_EQ(truncate(path.c_str(), 500), 0); };
  const auto empty = [](const std::string& path) { ASSERT_EQ(truncate(path.c_str(), 0), 0); };
  const auto remove = [](const std::string& path) { ASSERT_EQ(unlink(path.c_str()), 0); };
  const auto exchange = [this](const std::string& path) {
    const std::vector<std::string> files = Files();
    const std::string& other = files[0] == path ? files[1] : files[0];
    ASSERT_TRUE(config::WriteFileAtomically(path, *config::ReadFile(other)).ok());
  };
  Demoted(payloads);
  uint64_t version = 1;
  const std::vector<std::function<void(const std::string&)>> damages = {flip, cut, empty, remove,
                                                                        exchange};
  for (size_t i = 0; i < damages.size(); ++i) {
    ASSERT_THAT(Files(), SizeIs(2)) << i;
    damages[i](Files()[0]);
    const absl::Status status = Fetch(store(), "s").status();
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << i << ": " << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("chunk "));
    EXPECT_EQ(store().GetSession(GetOf("s"), Soon())->messages_size(), 2 * version);
    // What is damaged is gone, so that it is told the same way again.
    EXPECT_THAT(Files(), SizeIs(1)) << i;
    EXPECT_EQ(Fetch(store(), "s").status().code(), absl::StatusCode::kDataLoss);
    ASSERT_EQ(CommitWithSnapshot(store(), "s", payloads, {}, version).version, version + 1);
    ++version;
    for (uint64_t v = 1; v <= version; ++v) {
      const auto fetched = Fetch(store(), "s", v);
      ASSERT_TRUE(fetched.ok()) << i << ": " << fetched.status();
      EXPECT_EQ(fetched->payloads, payloads);
    }
    Sweep();
  }
  EXPECT_EQ(DiskErrors("damaged"), 4);
  EXPECT_EQ(DiskErrors("missing"), 1);
  EXPECT_EQ(Redis({"HGET", KeyOf("f"), "disk"}).text(), "2000");
  EXPECT_EQ(Redis({"HGET", KeyOf("f"), "kv"}).text(), "2000");
}

TEST_F(DiskTierTest, WhatAKilledProcessLeavesIsFoundAndNothingIsLost) {
  const std::vector<std::string> payloads = {PayloadOf("a"), PayloadOf("b")};
  Demoted(payloads);
  const std::vector<std::string> live = Files();
  const std::string family = std::filesystem::path(live[0]).parent_path().string();

  // Killed after the rename and before Redis heard of it: another file of a chunk that has one.
  const std::string orphan =
      absl::StrCat(live[0].substr(0, live[0].size() - 16), "0123456789abcdef");
  ASSERT_EQ(link(live[0].c_str(), orphan.c_str()), 0);
  // The same of a family that is gone since.
  const std::string gone = absl::StrCat(folder(), "/t-t/00112233445566778899");
  ASSERT_TRUE(std::filesystem::create_directory(gone));
  ASSERT_EQ(
      link(live[0].c_str(), absl::StrCat(gone, "/", live[0].substr(family.size() + 1)).c_str()), 0);
  // Killed while it wrote, long ago and just now.
  const std::string old_unfinished = family + "/.00000000000000aa.tmp";
  const std::string new_unfinished = family + "/.00000000000000bb.tmp";
  for (const std::string& path : {old_unfinished, new_unfinished}) {
    ASSERT_TRUE(config::WriteFileAtomically(path, "half").ok());
  }
  const timespec hour_ago = absl::ToTimespec(absl::Now() - absl::Hours(1));
  const timespec times[] = {hour_ago, hour_ago};
  ASSERT_EQ(utimensat(AT_FDCWD, old_unfinished.c_str(), times, 0), 0);
  // Not ours.
  const std::string foreign = family + "/notes.txt";
  ASSERT_TRUE(config::WriteFileAtomically(foreign, "x").ok());

  Sweep();
  std::vector<std::string> left = live;
  left.push_back(new_unfinished);
  left.push_back(foreign);
  std::sort(left.begin(), left.end());
  EXPECT_EQ(Files(), left);
  EXPECT_FALSE(std::filesystem::exists(gone));
  EXPECT_EQ(Fetch(store(), "s")->payloads, payloads);
  // A family that was found in order is looked at again when another file appears.
  ASSERT_EQ(link(live[0].c_str(), orphan.c_str()), 0);
  Sweep();
  EXPECT_EQ(Files(), left);
}

TEST_F(DiskTierTest, ProcessKilledBetweenFileAndRecordHasLostNothing) {
  // Redis has the chunk and no record of a file: the state after the rename.
  ASSERT_EQ(CommitWithSnapshot(store(), "s", {PayloadOf("a")}).version, 1u);
  const auto key = under_test_.keys().Find("t", false, Soon());
  ASSERT_TRUE(key.ok()) << key.status();
  const Family family(*key, "t", Redis({"HGET", "mneme:2:{t}:families", "s"}).text());
  const std::string name = Records().begin()->first.substr(2);
  const auto places = under_test_.disk().Write(family, {{.name = name, .payload = PayloadOf("a")}});
  ASSERT_TRUE(places.ok()) << places.status();
  EXPECT_EQ(Fetch(store(), "s")->tiers, std::vector<std::string>{"redis"});
  Sweep();
  // It was demoted into another file, and the first one was removed.
  ASSERT_THAT(Files(), SizeIs(1));
  EXPECT_THAT(Files()[0], Not(HasSubstr((*places)[0].substr(16))));
  EXPECT_EQ(Fetch(store(), "s")->tiers, std::vector<std::string>{"disk"});
}

TEST_F(DiskTierTest, DemotionOfAFamilyThatChangedMeanwhileMovesNothing) {
  ASSERT_EQ(CommitWithSnapshot(store(), "s", {PayloadOf("a")}).version, 1u);
  const RedisScripts scripts;
  const std::string epoch = Redis({"HGET", KeyOf("f"), "epoch"}).text();
  const std::string name = Records().begin()->first.substr(2);
  const auto demote = [&] {
    const auto reply =
        under_test_.client().Eval(scripts.demote, {KeyOf("f"), KeyOf("b")},
                                  {"*", epoch, "0", name, std::string(32, 'a')}, Soon());
    EXPECT_TRUE(reply.ok()) << reply.status();
    return std::string(Word(*reply));
  };
  v1::ForkSessionRequest fork;
  fork.set_tenant("t");
  fork.set_session_id("s");
  fork.set_new_session_id("f");
  ASSERT_TRUE(store().ForkSession(fork, Soon()).ok());
  EXPECT_EQ(demote(), "moved");
  // A sweep that found the file unused while it was being written.
  Redis({"HSET", KeyOf("f"), "epoch", epoch});
  const auto unused = under_test_.client().Eval(scripts.unused, {KeyOf("f"), KeyOf("b")},
                                                {"*", name, std::string(32, 'a')}, Soon());
  ASSERT_TRUE(unused.ok()) << unused.status();
  EXPECT_THAT(unused->elements()[1].elements(), SizeIs(1));
  EXPECT_EQ(demote(), "moved");
  EXPECT_EQ(Fetch(store(), "s")->tiers, std::vector<std::string>{"redis"});
}

TEST_F(DiskTierTest, FullRedisIsRelievedByTheSweep) {
  std::vector<std::string> payloads;
  for (int i = 0; i < 8; ++i) payloads.push_back(PayloadOf(absl::StrCat(i), 1 << 20));
  ASSERT_EQ(CommitWithSnapshot(store(), "s", payloads).version, 1u);
  Redis({"CONFIG", "SET", "maxmemory", "2000000"});
  EXPECT_EQ(store().CreateSession(CreateOf("new"), Soon()).status().code(),
            absl::StatusCode::kResourceExhausted);
  // It may tell that Redis was full.
  store().Sweep(Soon()).IgnoreError();
  EXPECT_THAT(Files(), SizeIs(8));
  EXPECT_EQ(Fetch(store(), "s")->payloads, payloads);
  // UNLINK frees behind Redis' back.
  const absl::Time deadline = absl::Now() + testing::TimeLimit(absl::Seconds(10));
  while (!store().CreateSession(CreateOf("new"), Soon()).ok() && absl::Now() < deadline) {
    absl::SleepFor(absl::Milliseconds(5));
  }
  EXPECT_TRUE(store().GetSession(GetOf("new"), Soon()).ok());
  Redis({"CONFIG", "SET", "maxmemory", "0"});
}

TEST_F(DiskTierTest, FullRedisFailsNoReadFromDisk) {
  RedisSessionStore unbounded(under_test_.client(), under_test_.keys(), {}, under_test_.metrics(),
                              &under_test_.disk());
  Demoted({PayloadOf("a")});
  Redis({"CONFIG", "SET", "maxmemory", "1"});
  for (int i = 0; i < 3; ++i) {
    const auto fetched = Fetch(unbounded, "s");
    ASSERT_TRUE(fetched.ok()) << fetched.status();
    EXPECT_THAT(fetched->tiers, ElementsAre("disk"));
    absl::SleepFor(absl::Milliseconds(20));
  }
  Redis({"CONFIG", "SET", "maxmemory", "0"});
}

TEST_F(DiskTierTest, ReplicasShareAFolderOrTellEachOtherApart) {
  Demoted({PayloadOf("a")});
  MemoryMetrics& metrics = under_test_.metrics();
  DiskTier shared({.path = folder(), .store_id = "store of the test"}, metrics);
  RedisSessionStore with_the_same(under_test_.client(), under_test_.keys(), WithBudget(1), metrics,
                                  &shared);
  EXPECT_EQ(Fetch(with_the_same, "s")->payloads, std::vector<std::string>{PayloadOf("a")});

  TempFolder own;
  DiskTier other({.path = own.File("disk"), .store_id = "store of the test"}, metrics);
  RedisSessionStore with_its_own(under_test_.client(), under_test_.keys(), WithBudget(1), metrics,
                                 &other);
  RedisSessionStore without(under_test_.client(), under_test_.keys(), {}, metrics);
  for (RedisSessionStore* replica : {&with_its_own, &without}) {
    const absl::Status status = Fetch(*replica, "s").status();
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
    EXPECT_EQ(status::PayloadOf(status, status::kReasonPayload), kChunkElsewhere);
    EXPECT_EQ(replica->GetSession(GetOf("s"), Soon())->messages_size(), 2);
    // Its sweep leaves the other's file alone.
    ASSERT_TRUE(replica->Sweep(Soon()).ok());
    EXPECT_TRUE(Fetch(store(), "s").ok());
  }
  // What it computes itself it has, in its own folder.
  ASSERT_EQ(CommitWithSnapshot(with_its_own, "s", {PayloadOf("a")}, {}, 1).version, 2u);
  ASSERT_TRUE(with_its_own.Sweep(Soon()).ok());
  EXPECT_THAT(Fetch(with_its_own, "s")->tiers, ElementsAre("disk"));
  EXPECT_EQ(Fetch(store(), "s").status().code(), absl::StatusCode::kFailedPrecondition);
  // The first folder's file is of no use any more, and its own service finds that out.
  Sweep();
  EXPECT_THAT(Files(), IsEmpty());
}

TEST_F(DiskTierTest, FolderOfSomebodyElseIsRefused) {
  Demoted({PayloadOf("a")});
  MemoryMetrics& metrics = under_test_.metrics();
  DiskTier other_store({.path = folder(), .store_id = "another"}, metrics);
  EXPECT_EQ(other_store.Open().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(other_store.Open().message()), HasSubstr(folder()));

  TempFolder used;
  ASSERT_TRUE(config::WriteFileAtomically(used.File("thesis.txt"), "x").ok());
  DiskTier no_marker({.path = used.path(), .store_id = "store of the test"}, metrics);
  EXPECT_EQ(no_marker.Open().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(FilesIn(used.path()).size(), 1u);

  TempFolder later;
  ASSERT_TRUE(
      config::WriteFileAtomically(later.File("mneme-disk-tier"), "mneme disk tier, format 2\n")
          .ok());
  DiskTier newer({.path = later.path(), .store_id = "store of the test"}, metrics);
  EXPECT_EQ(newer.Open().code(), absl::StatusCode::kFailedPrecondition);

  DiskTier nowhere({.path = "/proc/no-such-folder", .store_id = "store of the test"}, metrics);
  EXPECT_EQ(nowhere.Open().code(), absl::StatusCode::kUnavailable);
}

TEST_F(DiskTierTest, FolderThatIsAwayForAWhileLosesNothing) {
  Demoted({PayloadOf("a")});
  ASSERT_EQ(CommitWithSnapshot(store(), "new", {PayloadOf("n")}).version, 1u);
  // As when its filesystem is not mounted: an empty folder is in its place.
  const std::string away = folder() + ".away";
  std::filesystem::rename(folder(), away);
  ASSERT_TRUE(std::filesystem::create_directory(folder()));
  const absl::Status status = Fetch(store(), "s").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  Sweep();
  EXPECT_THAT(FilesIn(folder()), IsEmpty());
  EXPECT_THAT(Fetch(store(), "new")->tiers, ElementsAre("redis"));
  EXPECT_GE(DiskErrors("open"), 2);
  ASSERT_TRUE(std::filesystem::remove(folder()));
  std::filesystem::rename(away, folder());
  EXPECT_THAT(Fetch(store(), "s")->tiers, ElementsAre("disk"));
  Sweep();
  EXPECT_THAT(Fetch(store(), "new")->tiers, ElementsAre("disk"));
}

TEST_F(DiskTierTest, FolderThatCannotBeWrittenLeavesChunksInRedis) {
  ASSERT_TRUE(under_test_.disk().Open().ok());
  ASSERT_EQ(CommitWithSnapshot(store(), "s", {PayloadOf("a")}).version, 1u);
  // Permissions do not bind root; a file where the folder should be does.
  ASSERT_TRUE(config::WriteFileAtomically(folder() + "/t-t", "").ok());
  Sweep();
  EXPECT_THAT(Fetch(store(), "s")->tiers, ElementsAre("redis"));
  EXPECT_GE(DiskErrors("write"), 1);
  ASSERT_EQ(unlink((folder() + "/t-t").c_str()), 0);
  Sweep();
  EXPECT_THAT(Fetch(store(), "s")->tiers, ElementsAre("disk"));
}

TEST_F(DiskTierTest, DiskThatDoesNotAnswerHoldsUpFewOfItsReadersAndNobodyElse) {
  constexpr int kReaders = 6;
  constexpr int kAtATime = 4;
  Demoted({PayloadOf("a")});
  ASSERT_EQ(CommitWithSnapshot(store(), "quick", {PayloadOf("q")}).version, 1u);
  // Whoever opens it to read waits for a writer.
  const std::string path = Files()[0];
  ASSERT_EQ(unlink(path.c_str()), 0);
  ASSERT_EQ(mkfifo(path.c_str(), 0600), 0);
  std::atomic<int> num_late = 0;
  std::atomic<int> num_lost = 0;
  {
    std::vector<std::jthread> readers;
    for (int i = 0; i < kReaders; ++i) {
      readers.emplace_back([&] {
        v1::FetchSnapshotRequest request;
        request.set_tenant("t");
        request.set_session_id("s");
        const auto ignore = [](const v1::FetchSnapshotResponse&) { return absl::OkStatus(); };
        const absl::Status status = store().FetchSnapshot(
            request, ignore, absl::Now() + testing::TimeLimit(absl::Seconds(1)));
        num_late += absl::IsDeadlineExceeded(status) ? 1 : 0;
        num_lost += absl::IsDataLoss(status) ? 1 : 0;
      });
    }
    const absl::Time deadline = absl::Now() + testing::TimeLimit(absl::Seconds(10));
    while (num_late < kReaders - kAtATime && absl::Now() < deadline) {
      EXPECT_THAT(Fetch(store(), "quick")->tiers, ElementsAre("redis"));
      absl::SleepFor(absl::Milliseconds(10));
    }
    EXPECT_EQ(num_late, kReaders - kAtATime);
    EXPECT_EQ(num_lost, 0);
    const int writer = open(path.c_str(), O_WRONLY | O_NONBLOCK);
    EXPECT_GE(writer, 0);
    if (writer >= 0) close(writer);
  }
  EXPECT_EQ(num_lost, kAtATime);
}

TEST_F(DiskTierTest, ReadersSeeWholeSnapshotsThoughChunksGoUpAndDownAllTheTime) {
  constexpr int kSessions = 6;
  constexpr int kReads = 60;
  // Room for half of them: each read brings some up, each sweep takes others down.
  StoreOptions options = WithBudget(kSessions * 2000 / 2);
  RedisSessionStore busy(under_test_.client(), under_test_.keys(), options, under_test_.metrics(),
                         &under_test_.disk());
  std::map<std::string, std::vector<std::string>> payloads;
  for (int i = 0; i < kSessions; ++i) {
    const std::string id = absl::StrCat("s", i);
    payloads[id] = {PayloadOf(id + " a"), PayloadOf(id + " b")};
    ASSERT_EQ(CommitWithSnapshot(busy, id, payloads[id]).version, 1u);
  }
  std::atomic<int> num_from_disk = 0;
  const absl::Time deadline = absl::Now() + testing::TimeLimit(absl::Seconds(20));
  {
    std::jthread sweeper([&](const std::stop_token& stop) {
      while (!stop.stop_requested()) {
        const absl::Status swept = busy.Sweep(Soon());
        EXPECT_TRUE(swept.ok()) << swept;
      }
    });
    std::vector<std::jthread> readers;
    for (int t = 0; t < 4; ++t) {
      readers.emplace_back([&, t] {
        for (int i = 0; (i < kReads || num_from_disk < kReads) && absl::Now() < deadline; ++i) {
          const std::string id = absl::StrCat("s", (i * 5 + t) % kSessions);
          const auto fetched = Fetch(busy, id);
          ASSERT_TRUE(fetched.ok()) << fetched.status();
          EXPECT_EQ(fetched->payloads, payloads[id]);
          for (const std::string& tier : fetched->tiers) num_from_disk += tier == "disk" ? 1 : 0;
        }
      });
    }
    readers.clear();
  }
  EXPECT_GE(num_from_disk, kReads);
  EXPECT_EQ(DiskErrors("missing"), 0);
  EXPECT_EQ(DiskErrors("damaged"), 0);
}

}  // namespace
}  // namespace mneme::memory
