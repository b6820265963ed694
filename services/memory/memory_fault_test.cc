// The real mneme-memory and a real redis-server, killed, stopped still and started again.
#include <atomic>
#include <functional>
#include <thread>

#include "absl/strings/str_cat.h"
#include "common/config/config.h"
#include "common/status/annotate.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "services/memory/service_process_fixture.h"
#include "services/memory/store_fixture.h"
#include "tests/support/free_port.h"
#include "tests/support/time_limit.h"

namespace mneme::memory {
namespace {

using ::mneme::testing::FreePort;
using ::mneme::testing::RedisServer;
using ::mneme::testing::TempFolder;
using ::testing::HasSubstr;

TEST(MemoryFaultTest, EveryAcknowledgedCommitIsThereOnceThoughRedisIsKilledAgainAndAgain) {
  constexpr int kThreads = 8;
  const auto redis = StartRedis();
  ServiceProcess service(ConfigFor(redis->address()));
  service.Start();
  Caller caller(service.Address());

  std::atomic<bool> is_over = false;
  std::atomic<int> num_retries = 0;
  std::atomic<int> num_acknowledged = 0;
  std::vector<std::vector<std::string>> acknowledged(kThreads);  // text of version i at i-1
  std::vector<std::string> problems(kThreads);
  {
    std::vector<std::jthread> threads;
    for (int t = 0; t < kThreads; ++t) {
      threads.emplace_back([&, t] {
        const std::string id = absl::StrCat("s", t);
        for (int i = 0; !is_over; ++i) {
          // Half of the clients name their turns; the others rely on lease and parent.
          const std::string request_id = t % 2 == 0 ? absl::StrCat("r-", t, "-", i) : "";
          v1::AcquireLeaseRequest acquire = AcquireOf(id);
          acquire.set_holder(id);
          acquire.set_request_id(absl::StrCat("turn-", i));
          absl::StatusOr<v1::AcquireLeaseResponse> lease;
          while (!(lease = caller.Acquire(acquire)).ok()) {
            if (!MayRetry(lease.status())) {
              problems[t] = lease.status().ToString();
              return;
            }
            absl::SleepFor(absl::Milliseconds(5));
          }
          const std::string text = absl::StrCat("turn ", t, "/", i);
          v1::CommitTurnRequest commit =
              CommitOf(id, lease->lease_token(), lease->session().version(), text, request_id);
          commit.set_release(true);
          absl::StatusOr<v1::CommitTurnResponse> committed;
          while (!(committed = caller.Commit(commit)).ok()) {
            if (!MayRetry(committed.status())) {
              problems[t] = committed.status().ToString();
              return;
            }
            ++num_retries;
            absl::SleepFor(absl::Milliseconds(5));
          }
          acknowledged[t].push_back(text);
          ++num_acknowledged;
          if (committed->version() != acknowledged[t].size()) {
            problems[t] = absl::StrCat("version ", committed->version(), " for ", text);
            return;
          }
        }
      });
    }
    for (int kill = 0; kill < 4; ++kill) {
      const int before = num_acknowledged;
      const absl::Time deadline = absl::Now() + testing::TimeLimit(absl::Seconds(20));
      while (num_acknowledged < before + 50 && absl::Now() < deadline) {
        absl::SleepFor(absl::Milliseconds(1));
      }
      EXPECT_GE(num_acknowledged, before + 50);
      redis->Kill();
      absl::SleepFor(absl::Milliseconds(100));
      ASSERT_TRUE(redis->Restart().ok());
    }
    const int before = num_acknowledged;
    const absl::Time deadline = absl::Now() + testing::TimeLimit(absl::Seconds(20));
    while (num_acknowledged < before + 50 && absl::Now() < deadline) {
      absl::SleepFor(absl::Milliseconds(1));
    }
    is_over = true;
  }
  EXPECT_GT(num_retries, 0);
  RecordProperty("acknowledged", num_acknowledged);
  for (int t = 0; t < kThreads; ++t) {
    SCOPED_TRACE(t);
    EXPECT_EQ(problems[t], "");
    const auto history = caller.Get(absl::StrCat("s", t));
    ASSERT_TRUE(history.ok()) << history.status();
    std::vector<std::string> questions;
    for (int i = 0; i < history->messages_size(); i += 2) {
      questions.push_back(history->messages(i).content());
    }
    EXPECT_EQ(questions, acknowledged[t]);
    EXPECT_EQ(history->session().version(), acknowledged[t].size());
  }
}

TEST(MemoryFaultTest, StoppedRedisMakesCallsFailInTimeAndComesBackByItself) {
  const auto redis = StartRedis();
  ServiceProcess service(ConfigFor(redis->address()));
  service.Start();
  Caller caller(service.Address());
  const auto lease = caller.Acquire(AcquireOf("s"));
  ASSERT_TRUE(lease.ok()) << lease.status();
  const v1::CommitTurnRequest commit = CommitOf("s", lease->lease_token(), 0, "x", "r");

  redis->Pause();
  for (int i = 0; i < 10; ++i) {
    const absl::Time start = absl::Now();
    const absl::Status status = caller.Commit(commit, absl::Milliseconds(400)).status();
    EXPECT_TRUE(MayRetry(status)) << status;
    EXPECT_LT(absl::Now() - start, testing::TimeLimit(absl::Milliseconds(700)));
  }
  EXPECT_LT(caller.TimeUntilServing(false), testing::TimeLimit(absl::Seconds(5)));
  const absl::Time start = absl::Now();
  EXPECT_EQ(caller.Get("s", absl::Seconds(10)).status().code(), absl::StatusCode::kUnavailable);
  EXPECT_LT(absl::Now() - start, testing::TimeLimit(absl::Milliseconds(1500)));

  redis->Resume();
  EXPECT_LT(caller.TimeUntilServing(true), testing::TimeLimit(absl::Seconds(5)));
  // The commits that ran out of time may have reached Redis: the turn is there once.
  const auto committed = caller.Commit(commit);
  ASSERT_TRUE(committed.ok()) << committed.status();
  EXPECT_EQ(committed->version(), 1u);
  EXPECT_EQ(caller.Get("s")->messages_size(), 2);
}

TEST(MemoryFaultTest, KilledServiceKeepsSessionsAndLeasesForItsSuccessor) {
  const auto redis = StartRedis();
  ServiceProcess service(ConfigFor(redis->address()));
  service.Start();
  uint64_t token = 0;
  {
    Caller caller(service.Address());
    const auto lease = caller.Acquire(AcquireOf("s"));
    ASSERT_TRUE(lease.ok()) << lease.status();
    token = lease->lease_token();
    ASSERT_TRUE(caller.Commit(CommitOf("s", token, 0, "one", "r1")).ok());
  }
  EXPECT_EQ(service.End(SIGKILL), -SIGKILL);
  service.Start();
  Caller caller(service.Address());
  const auto history = caller.Get("s");
  ASSERT_TRUE(history.ok()) << history.status();
  EXPECT_EQ(history->messages(1).content(), "answer to one");
  const absl::Status busy = caller.Acquire(AcquireOf("s")).status();
  EXPECT_EQ(status::PayloadOf(busy, status::kReasonPayload), "SESSION_BUSY");
  EXPECT_EQ(caller.Commit(CommitOf("s", token, 1, "two"))->version(), 2u);
  EXPECT_EQ(caller.Commit(CommitOf("s", token, 0, "one", "r1"))->version(), 1u);
}

std::vector<std::string> LargePayloads(int count) {
  std::vector<std::string> payloads;
  for (int i = 0; i < count; ++i) payloads.push_back(PayloadOf(absl::StrCat(i), 1 << 20));
  return payloads;
}

// What staged data is worth after everything was killed between the staging and the commit: all of
// it, since Redis had acknowledged it.
TEST(MemoryFaultTest, SnapshotStagedBeforeRedisAndServiceAreKilledIsCommittedAfterwards) {
  const auto redis = StartRedis();
  ServiceProcess service(ConfigFor(redis->address()));
  service.Start();
  const std::vector<std::string> payloads = LargePayloads(12);
  v1::CommitTurnRequest commit;
  {
    Caller caller(service.Address());
    const auto lease = caller.Acquire(AcquireOf("s"));
    ASSERT_TRUE(lease.ok()) << lease.status();
    const auto staged = caller.Stage("s", lease->lease_token(), payloads);
    ASSERT_TRUE(staged.ok()) << staged.status();
    commit = CommitOf("s", lease->lease_token(), 0, "x");
    commit.set_snapshot_id(staged->snapshot_id());
  }
  EXPECT_EQ(service.End(SIGKILL), -SIGKILL);
  redis->Kill();
  ASSERT_TRUE(redis->Restart().ok());
  service.Start();
  Caller caller(service.Address());
  const auto committed = caller.Commit(commit);
  ASSERT_TRUE(committed.ok()) << committed.status();
  EXPECT_EQ(committed->snapshot_lost_reason(), "");
  redis->Kill();
  ASSERT_TRUE(redis->Restart().ok());
  EXPECT_LT(caller.TimeUntilServing(true), testing::TimeLimit(absl::Seconds(5)));
  const auto fetched = caller.Fetch("s");
  ASSERT_TRUE(fetched.ok()) << fetched.status();
  EXPECT_EQ(*fetched, payloads);
}

TEST(MemoryFaultTest, RedisKilledWhileASnapshotIsOnItsWayFailsItAndTheNextTryWorks) {
  const auto redis = StartRedis();
  ServiceProcess service(ConfigFor(redis->address()));
  service.Start();
  Caller caller(service.Address());
  const std::vector<std::string> payloads = LargePayloads(32);
  const auto lease = caller.Acquire(AcquireOf("s"));
  ASSERT_TRUE(lease.ok()) << lease.status();
  redis::Client client({.address = redis->address()});
  const auto kill_once_chunks_are_there = [&] {
    const absl::Time deadline = absl::Now() + testing::TimeLimit(absl::Seconds(10));
    while (client.Run({"KEYS", "*:c:*"})->elements().empty() && absl::Now() < deadline) {
      absl::SleepFor(absl::Milliseconds(1));
    }
    redis->Kill();
  };
  const absl::Status failed =
      caller
          .Stage("s", lease->lease_token(), payloads, absl::Seconds(20), kill_once_chunks_are_there)
          .status();
  EXPECT_EQ(failed.code(), absl::StatusCode::kUnavailable) << failed;
  ASSERT_TRUE(redis->Restart().ok());
  EXPECT_LT(caller.TimeUntilServing(true), absl::Seconds(5));
  const auto staged = caller.Stage("s", lease->lease_token(), payloads);
  ASSERT_TRUE(staged.ok()) << staged.status();
  EXPECT_LT(staged->bytes_stored(), 32 << 20);  // what had been stored before is not stored again
  v1::CommitTurnRequest commit = CommitOf("s", lease->lease_token(), 0, "x");
  commit.set_snapshot_id(staged->snapshot_id());
  EXPECT_EQ(caller.Commit(commit)->snapshot_lost_reason(), "");
  EXPECT_EQ(*caller.Fetch("s"), payloads);
}

TEST(MemoryFaultTest, StoppedRedisEndsAStagingInTimeAndTheTurnIsCommittedWithoutIt) {
  const auto redis = StartRedis();
  ServiceProcess service(ConfigFor(redis->address()));
  service.Start();
  Caller caller(service.Address());
  const auto lease = caller.Acquire(AcquireOf("s"));
  ASSERT_TRUE(lease.ok()) << lease.status();
  const absl::Time start = absl::Now();
  const absl::Status stopped = caller
                                   .Stage("s", lease->lease_token(), LargePayloads(32),
                                          absl::Seconds(20), [&] { redis->Pause(); })
                                   .status();
  EXPECT_TRUE(MayRetry(stopped)) << stopped;
  EXPECT_LT(absl::Now() - start, testing::TimeLimit(absl::Seconds(10)));
  redis->Resume();
  EXPECT_LT(caller.TimeUntilServing(true), testing::TimeLimit(absl::Seconds(5)));
  EXPECT_EQ(caller.Commit(CommitOf("s", lease->lease_token(), 0, "x"))->version(), 1u);
  EXPECT_EQ(caller.Get("s")->messages_size(), 2);
}

TEST(MemoryFaultTest, LeaseThatRunsOutWhileASnapshotIsOnItsWayStagesNothing) {
  const auto redis = StartRedis();
  ServiceProcess service(ConfigFor(redis->address()));
  service.Start();
  Caller caller(service.Address());
  v1::AcquireLeaseRequest acquire = AcquireOf("s");
  acquire.set_ttl_ms(1000);
  const auto lease = caller.Acquire(acquire);
  ASSERT_TRUE(lease.ok()) << lease.status();
  const absl::Status lost =
      caller
          .Stage("s", lease->lease_token(), LargePayloads(16), absl::Seconds(20),
                 [] { absl::SleepFor(absl::Milliseconds(1100)); })
          .status();
  EXPECT_EQ(status::PayloadOf(lost, status::kReasonPayload), "LEASE_LOST") << lost;
  const auto next = caller.Acquire(acquire);
  ASSERT_TRUE(next.ok()) << next.status();
  EXPECT_EQ(next->snapshot_version(), 0u);
}

TEST(MemoryFaultTest, SweeperOfTheServiceRemovesWhatARewindLeft) {
  const auto redis = StartRedis();
  v1::MemoryConfig config = ConfigFor(redis->address());
  config.set_sweep_interval_ms(50);
  ServiceProcess service(config);
  service.Start();
  Caller caller(service.Address());
  const auto lease = caller.Acquire(AcquireOf("s"));
  const auto staged = caller.Stage("s", lease->lease_token(), {PayloadOf("a")});
  ASSERT_TRUE(staged.ok()) << staged.status();
  v1::CommitTurnRequest commit = CommitOf("s", lease->lease_token(), 0, "x");
  commit.set_snapshot_id(staged->snapshot_id());
  commit.set_release(true);
  ASSERT_TRUE(caller.Commit(commit).ok());
  redis::Client client({.address = redis->address()});
  EXPECT_EQ(client.Run({"KEYS", "*:c:*"})->elements().size(), 1u);
  ASSERT_TRUE(caller.Rewind("s", 0).ok());
  const absl::Time deadline = absl::Now() + testing::TimeLimit(absl::Seconds(10));
  while (!client.Run({"KEYS", "*:c:*"})->elements().empty() && absl::Now() < deadline) {
    absl::SleepFor(absl::Milliseconds(10));
  }
  EXPECT_EQ(client.Run({"KEYS", "*:c:*"})->elements().size(), 0u);
}

TEST(MemoryFaultTest, OtherMasterKeyEndsTheServiceWithTheNameOfItsFile) {
  const auto redis = StartRedis();
  ServiceProcess service(ConfigFor(redis->address()));
  service.Start();
  EXPECT_TRUE(Caller(service.Address()).Acquire(AcquireOf("s")).ok());
  EXPECT_EQ(service.End(SIGTERM), 0);
  TempFolder folder;
  v1::MemoryConfig config = ConfigFor(redis->address());
  config.set_master_key_file(folder.File("other.key"));
  ASSERT_TRUE(
      config::WriteFileAtomically(config.master_key_file(), std::string(64, 'b'), 0600).ok());
  ServiceProcess other(config);
  other.Start();
  EXPECT_EQ(other.Wait(), 1);
  EXPECT_THAT(other.Log(), HasSubstr("other.key"));
}

TEST(MemoryFaultTest, UnusableMasterKeyFileIsToldWithWhatToDo) {
  struct Case {
    std::string content;
    int mode;
    const char* words;
  };
  const Case cases[] = {{std::string(64, 'a'), 0644, "chmod 600"},
                        {std::string(31, 'a'), 0600, "32 bytes or 64 hexadecimal digits"},
                        {std::string(63, 'a') + "x", 0600, "32 bytes or 64 hexadecimal digits"}};
  for (const Case& bad : cases) {
    TempFolder folder;
    v1::MemoryConfig config = ConfigFor("127.0.0.1:1");
    config.set_master_key_file(folder.File("the.key"));
    ASSERT_TRUE(config::WriteFileAtomically(config.master_key_file(), bad.content, bad.mode).ok());
    ServiceProcess service(config);
    service.Start();
    EXPECT_EQ(service.Wait(), 1);
    EXPECT_THAT(service.Log(), HasSubstr(bad.words));
    EXPECT_THAT(service.Log(), HasSubstr("the.key"));
  }
}

TEST(MemoryFaultTest, ServiceStartsWithoutRedisAndIsReadyOnceRedisIs) {
  const auto redis = StartRedis();
  redis->Stop();
  const auto port = FreePort();
  ASSERT_TRUE(port.ok());
  v1::MemoryConfig config = ConfigFor(redis->address());
  config.set_listen(absl::StrCat("127.0.0.1:", *port));
  ServiceProcess service(config);
  service.Start();
  Caller caller(config.listen());
  EXPECT_FALSE(caller.IsServing());
  const absl::Status status = caller.Get("s").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(redis->address()));
  EXPECT_TRUE(service.IsAlive());
  EXPECT_THAT(service.Log(), HasSubstr("Redis cannot be reached"));
  ASSERT_TRUE(redis->Restart().ok());
  EXPECT_LT(caller.TimeUntilServing(true), testing::TimeLimit(absl::Seconds(5)));
  EXPECT_EQ(service.Address(), config.listen());
  EXPECT_TRUE(caller.Acquire(AcquireOf("s")).ok());
  redis->Kill();
  EXPECT_LT(caller.TimeUntilServing(false), testing::TimeLimit(absl::Seconds(5)));
  ASSERT_TRUE(redis->Restart().ok());
  EXPECT_LT(caller.TimeUntilServing(true), testing::TimeLimit(absl::Seconds(5)));
  // One line for each change, however often Redis was asked.
  const std::string log = service.Log();
  int num_lines = 0;
  for (size_t at = 0; (at = log.find("\"message\":", at)) != std::string::npos; ++at) ++num_lines;
  EXPECT_GE(num_lines, 4) << log;
  EXPECT_LE(num_lines, 8) << log;
}

TEST(MemoryFaultTest, WrongPasswordIsToldByTheNameOfItsField) {
  auto redis = RedisServer::Start({.append_fsync = "no", .password = "right"});
  ASSERT_TRUE(redis.ok()) << redis.status();
  const auto port = FreePort();
  ASSERT_TRUE(port.ok());
  TempFolder folder;
  const std::string password_file = folder.File("password");
  v1::MemoryConfig config = ConfigFor((*redis)->address());
  config.set_listen(absl::StrCat("127.0.0.1:", *port));
  config.mutable_redis()->set_password_file(password_file);
  ServiceProcess service(config);
  ASSERT_TRUE(config::WriteFileAtomically(password_file, "not-right\n").ok());
  service.Start();
  {
    Caller caller(config.listen());
    const absl::Status status = caller.Get("s").status();
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("redis.password_file"));
    EXPECT_FALSE(caller.IsServing());
    EXPECT_THAT(service.Log(), ::testing::Not(HasSubstr("not-right")));
  }
  EXPECT_EQ(service.End(SIGTERM), 0);
  ASSERT_TRUE(config::WriteFileAtomically(password_file, "right\n").ok());
  service.Start();
  EXPECT_NE(service.Address("metrics"), "");
  EXPECT_TRUE(Caller(service.Address()).Acquire(AcquireOf("s")).ok());
}

TEST(MemoryFaultTest, TerminatedServiceEndsCleanlyAlsoWhileRedisIsStopped) {
  const auto redis = StartRedis();
  ServiceProcess service(ConfigFor(redis->address()));
  service.Start();
  service.Address();
  EXPECT_EQ(service.End(SIGTERM), 0);
  service.Start();
  service.Address();
  redis->Pause();
  const absl::Time start = absl::Now();
  EXPECT_EQ(service.End(SIGTERM), 0);
  EXPECT_LT(absl::Now() - start, testing::TimeLimit(absl::Seconds(4)));
  redis->Resume();
}

TEST(MemoryFaultTest, BadSettingsEndTheServiceWithTheirName) {
  struct Case {
    std::function<void(v1::MemoryConfig*)> spoil;
    const char* words;
  };
  const Case cases[] = {
      {[](v1::MemoryConfig* c) { c->mutable_redis()->clear_address(); }, "redis.address"},
      {[](v1::MemoryConfig* c) { c->mutable_redis()->set_password_file("/no/such"); },
       "redis.password_file"},
      {[](v1::MemoryConfig* c) { c->mutable_redis()->set_pool_size(-1); }, "negative"},
      {[](v1::MemoryConfig* c) { c->set_default_ttl_seconds(-1); }, "default_ttl_seconds"},
      {[](v1::MemoryConfig* c) { c->set_sweep_interval_ms(-1); }, "sweep_interval_ms"},
      {[](v1::MemoryConfig* c) { c->mutable_tiers()->set_disk_budget_bytes(1); },
       "tiers.disk_path"},
      {[](v1::MemoryConfig* c) { c->mutable_tiers()->set_disk_path("/proc/self"); },
       "tiers.disk_path: /proc/self"},
      {[](v1::MemoryConfig* c) { c->set_master_key_file("/no/such"); }, "/no/such"},
  };
  for (const Case& bad : cases) {
    v1::MemoryConfig config = ConfigFor("127.0.0.1:1");
    bad.spoil(&config);
    ServiceProcess service(config);
    service.Start();
    EXPECT_EQ(service.Wait(), 1);
    EXPECT_THAT(service.Log(), HasSubstr(bad.words));
  }
}

}  // namespace
}  // namespace mneme::memory
