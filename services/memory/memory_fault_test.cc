// The real mneme-memory and a real redis-server, killed, stopped still and started again.
#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <functional>
#include <thread>

#include "absl/strings/str_cat.h"
#include "common/config/config.h"
#include "common/rpc/client.h"
#include "common/rpc/grpc_status.h"
#include "common/status/annotate.h"
#include "gmock/gmock.h"
#include "google/protobuf/empty.pb.h"
#include "grpcpp/impl/codegen/client_unary_call.h"
#include "gtest/gtest.h"
#include "mneme/memory/v1/config.pb.h"
#include "mneme/memory/v1/memory.grpc.pb.h"
#include "nlohmann/json.hpp"
#include "services/memory/store_fixture.h"
#include "tests/support/free_port.h"

namespace mneme::memory {
namespace {

using ::mneme::testing::FreePort;
using ::mneme::testing::RedisServer;
using ::mneme::testing::TempFolder;
using ::testing::HasSubstr;

// One mneme-memory process. It ends with this object, or with the test's main thread.
class ServiceProcess {
 public:
  explicit ServiceProcess(v1::MemoryConfig config) : config_(std::move(config)) {}
  ~ServiceProcess() { End(SIGKILL); }

  void Start() {
    if (config_.master_key_file().empty()) {
      config_.set_master_key_file(folder_.File("master.key"));
      ASSERT_TRUE(
          config::WriteFileAtomically(config_.master_key_file(), std::string(64, 'a'), 0600).ok());
    }
    config_.set_address_file(folder_.File("address"));
    unlink(config_.address_file().c_str());
    const std::string path = folder_.File("config.json");
    ASSERT_TRUE(config::WriteFileAtomically(path, config::ToJson(config_)).ok());
    const std::string binary = absl::StrCat(std::getenv("MNEME_BIN"), "/mneme-memory");
    const std::string log = folder_.File("log");
    const char* const arguments[] = {binary.c_str(), "--config", path.c_str(), nullptr};
    pid_ = fork();
    if (pid_ == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      const int fd = open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
      dup2(fd, 2);
      close_range(3, ~0U, 0);
      execv(arguments[0], const_cast<char* const*>(arguments));
      _exit(127);
    }
  }

  // Returns the exit code, or minus the signal.
  int End(int signal) {
    if (pid_ <= 0) return 0;
    kill(pid_, signal);
    return Wait();
  }

  int Wait() {
    int status = 0;
    waitpid(pid_, &status, 0);
    pid_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }

  bool IsAlive() { return pid_ > 0 && waitpid(pid_, nullptr, WNOHANG) == 0; }

  // Waits for the address file and returns what it says of `name`.
  std::string Address(const std::string& name = "grpc") {
    const absl::Time deadline = absl::Now() + absl::Seconds(20);
    while (absl::Now() < deadline) {
      const auto text = config::ReadFile(config_.address_file());
      if (text.ok()) return nlohmann::json::parse(*text).value(name, "");
      absl::SleepFor(absl::Milliseconds(5));
    }
    ADD_FAILURE() << "not ready within 20 s: " << Log();
    return "";
  }

  std::string Log() { return config::ReadFile(folder_.File("log")).value_or(""); }

 private:
  TempFolder folder_;
  v1::MemoryConfig config_;
  pid_t pid_ = -1;
};

v1::MemoryConfig ConfigFor(const std::string& redis_address) {
  v1::MemoryConfig config;
  config.set_listen("127.0.0.1:0");
  config.set_metrics_listen("127.0.0.1:0");
  config.mutable_redis()->set_address(redis_address);
  config.mutable_redis()->set_command_timeout_ms(1000);
  config.mutable_redis()->set_connect_timeout_ms(300);
  return config;
}

// Calls one service; every call has its own deadline. Thread-safe.
class Caller {
 public:
  explicit Caller(const std::string& address)
      : channel_(rpc::ConnectTo(address)), stub_(v1::MemoryService::NewStub(channel_)) {
    EXPECT_TRUE(rpc::WaitForConnection(*channel_, absl::Seconds(10)));
  }

  absl::StatusOr<v1::AcquireLeaseResponse> Acquire(const v1::AcquireLeaseRequest& request,
                                                   absl::Duration timeout = absl::Seconds(3)) {
    v1::AcquireLeaseResponse response;
    return Finish(Send(timeout,
                       [&](grpc::ClientContext* context) {
                         return stub_->AcquireLease(context, request, &response);
                       }),
                  response);
  }
  absl::StatusOr<v1::CommitTurnResponse> Commit(const v1::CommitTurnRequest& request,
                                                absl::Duration timeout = absl::Seconds(3)) {
    v1::CommitTurnResponse response;
    return Finish(Send(timeout,
                       [&](grpc::ClientContext* context) {
                         return stub_->CommitTurn(context, request, &response);
                       }),
                  response);
  }
  absl::StatusOr<v1::GetSessionResponse> Get(const std::string& session_id,
                                             absl::Duration timeout = absl::Seconds(3)) {
    v1::GetSessionResponse response;
    return Finish(Send(timeout,
                       [&](grpc::ClientContext* context) {
                         return stub_->GetSession(context, GetOf(session_id), &response);
                       }),
                  response);
  }

  absl::StatusOr<v1::RewindSessionResponse> Rewind(const std::string& session_id,
                                                   uint64_t version) {
    v1::RewindSessionRequest request;
    request.set_tenant("t");
    request.set_session_id(session_id);
    request.set_version(version);
    v1::RewindSessionResponse response;
    return Finish(Send(absl::Seconds(3),
                       [&](grpc::ClientContext* context) {
                         return stub_->RewindSession(context, request, &response);
                       }),
                  response);
  }

  // Stages a snapshot of these chunks; `pause` is called after half of them are sent.
  absl::StatusOr<v1::StageSnapshotResponse> Stage(
      const std::string& session_id, uint64_t lease_token, const std::vector<std::string>& payloads,
      absl::Duration timeout = absl::Seconds(20), const std::function<void()>& pause = [] {}) {
    v1::StageSnapshotResponse response;
    return Finish(Send(timeout,
                       [&](grpc::ClientContext* context) {
                         const auto writer = stub_->StageSnapshot(context, &response);
                         v1::StageSnapshotRequest part;
                         part.mutable_header()->set_tenant("t");
                         part.mutable_header()->set_session_id(session_id);
                         part.mutable_header()->set_lease_token(lease_token);
                         writer->Write(part);
                         snapshot::v1::Manifest manifest;
                         manifest.set_format_version(1);
                         manifest.set_num_tokens(10);
                         for (size_t i = 0; i < payloads.size(); ++i) {
                           if (i == payloads.size() / 2) pause();
                           *part.mutable_chunk() = ChunkOf(payloads[i], 10 * i);
                           *manifest.add_chunks() = part.chunk().chunk();
                           if (!writer->Write(part)) break;
                         }
                         *part.mutable_manifest() = manifest;
                         writer->Write(part);
                         writer->WritesDone();
                         return writer->Finish();
                       }),
                  response);
  }
  absl::StatusOr<std::vector<std::string>> Fetch(const std::string& session_id,
                                                 absl::Duration timeout = absl::Seconds(20)) {
    std::vector<std::string> payloads;
    return Finish(Send(timeout,
                       [&](grpc::ClientContext* context) {
                         v1::FetchSnapshotRequest request;
                         request.set_tenant("t");
                         request.set_session_id(session_id);
                         const auto reader = stub_->FetchSnapshot(context, request);
                         v1::FetchSnapshotResponse part;
                         while (reader->Read(&part)) {
                           if (part.has_chunk()) payloads.push_back(part.chunk().payload());
                         }
                         return reader->Finish();
                       }),
                  payloads);
  }

  // Asks grpc.health.v1 by its wire form: an empty request; the answer's field 1 is 1 for SERVING.
  bool IsServing() {
    grpc::ClientContext context;
    rpc::Prepare(trace::ContextFrom("", ""), absl::Now() + absl::Seconds(3), &context);
    const grpc::internal::RpcMethod method("/grpc.health.v1.Health/Check",
                                           grpc::internal::RpcMethod::NORMAL_RPC);
    google::protobuf::Empty request;
    google::protobuf::Empty response;
    const grpc::Status status =
        grpc::internal::BlockingUnaryCall<google::protobuf::Empty, google::protobuf::Empty>(
            channel_.get(), method, &context, request, &response);
    return status.ok() && response.SerializeAsString() == std::string("\x08\x01", 2);
  }

  // Returns how long it takes until health says `serving`.
  absl::Duration TimeUntilServing(bool serving) {
    const absl::Time start = absl::Now();
    while (IsServing() != serving) {
      if (absl::Now() - start > absl::Seconds(20)) return absl::InfiniteDuration();
      absl::SleepFor(absl::Milliseconds(10));
    }
    return absl::Now() - start;
  }

 private:
  template <typename Method>
  absl::Status Send(absl::Duration timeout, Method method) {
    grpc::ClientContext context;
    rpc::Prepare(trace::ContextFrom("", ""), absl::Now() + timeout, &context);
    return rpc::FromGrpc(method(&context));
  }
  template <typename Response>
  absl::StatusOr<Response> Finish(const absl::Status& status, const Response& response) {
    if (!status.ok()) return status;
    return response;
  }

  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::MemoryService::Stub> stub_;
};

std::unique_ptr<RedisServer> StartRedis() {
  auto redis = RedisServer::Start({.append_fsync = "always"});
  EXPECT_TRUE(redis.ok()) << redis.status();
  return *std::move(redis);
}

// Whether a retry makes sense: the outcome of the call is not known, or it did not happen.
bool MayRetry(const absl::Status& status) {
  return absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status);
}

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
      const absl::Time deadline = absl::Now() + absl::Seconds(20);
      while (num_acknowledged < before + 50 && absl::Now() < deadline) {
        absl::SleepFor(absl::Milliseconds(1));
      }
      EXPECT_GE(num_acknowledged, before + 50);
      redis->Kill();
      absl::SleepFor(absl::Milliseconds(100));
      ASSERT_TRUE(redis->Restart().ok());
    }
    const int before = num_acknowledged;
    const absl::Time deadline = absl::Now() + absl::Seconds(20);
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
    EXPECT_LT(absl::Now() - start, absl::Milliseconds(700));
  }
  EXPECT_LT(caller.TimeUntilServing(false), absl::Seconds(5));
  const absl::Time start = absl::Now();
  EXPECT_EQ(caller.Get("s", absl::Seconds(10)).status().code(), absl::StatusCode::kUnavailable);
  EXPECT_LT(absl::Now() - start, absl::Milliseconds(1500));

  redis->Resume();
  EXPECT_LT(caller.TimeUntilServing(true), absl::Seconds(5));
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
  EXPECT_LT(caller.TimeUntilServing(true), absl::Seconds(5));
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
    const absl::Time deadline = absl::Now() + absl::Seconds(10);
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
  // A server that was found down is left alone for up to a second.
  auto staged = caller.Stage("s", lease->lease_token(), payloads);
  for (const absl::Time until = absl::Now() + absl::Seconds(5);
       absl::IsUnavailable(staged.status()) && absl::Now() < until;) {
    absl::SleepFor(absl::Milliseconds(50));
    staged = caller.Stage("s", lease->lease_token(), payloads);
  }
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
  EXPECT_LT(absl::Now() - start, absl::Seconds(10));
  redis->Resume();
  EXPECT_LT(caller.TimeUntilServing(true), absl::Seconds(5));
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
  const absl::Time deadline = absl::Now() + absl::Seconds(10);
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
  EXPECT_LT(caller.TimeUntilServing(true), absl::Seconds(5));
  EXPECT_EQ(service.Address(), config.listen());
  EXPECT_TRUE(caller.Acquire(AcquireOf("s")).ok());
  redis->Kill();
  EXPECT_LT(caller.TimeUntilServing(false), absl::Seconds(5));
  ASSERT_TRUE(redis->Restart().ok());
  EXPECT_LT(caller.TimeUntilServing(true), absl::Seconds(5));
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
  EXPECT_LT(absl::Now() - start, absl::Seconds(4));
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
      {[](v1::MemoryConfig* c) { c->mutable_tiers()->set_disk_path("/x"); }, "tiers.disk_path"},
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
