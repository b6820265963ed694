// The real mneme-memory as a process of its own, and who calls it, for tests that kill things.
#pragma once

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/config/config.h"
#include "common/rpc/client.h"
#include "common/rpc/grpc_status.h"
#include "google/protobuf/empty.pb.h"
#include "grpcpp/impl/codegen/client_unary_call.h"
#include "gtest/gtest.h"
#include "mneme/memory/v1/config.pb.h"
#include "mneme/memory/v1/memory.grpc.pb.h"
#include "nlohmann/json.hpp"
#include "services/memory/store_fixture.h"
#include "tests/support/time_limit.h"

namespace mneme::memory {

// One mneme-memory process. It ends with this object, or with the test's main thread.
class ServiceProcess {
 public:
  // With `disk_bytes` the disk tier's folder is a filesystem of this size, which the process alone
  // sees and which goes with it.
  explicit ServiceProcess(v1::MemoryConfig config, int64_t disk_bytes = 0)
      : config_(std::move(config)), disk_bytes_(disk_bytes) {}
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
      if (disk_bytes_ > 0 && !MountDisk()) _exit(kCannotMount);
      close_range(3, ~0U, 0);
      execv(arguments[0], const_cast<char* const*>(arguments));
      _exit(127);
    }
  }

  // How a process ends that may not mount a filesystem.
  static constexpr int kCannotMount = 126;

  // Whether it has ended that way.
  bool CouldNotMount() {
    int status = 0;
    if (pid_ <= 0 || waitpid(pid_, &status, WNOHANG) != pid_) return false;
    pid_ = -1;
    return WIFEXITED(status) && WEXITSTATUS(status) == kCannotMount;
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
    const absl::Time deadline = absl::Now() + testing::TimeLimit(absl::Seconds(20));
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
  static bool WriteTo(const char* path, const std::string& text) {
    std::FILE* const file = std::fopen(path, "w");
    if (file == nullptr) return false;
    const bool is_written = std::fputs(text.c_str(), file) >= 0;
    return std::fclose(file) == 0 && is_written;
  }

  // In the child, which has one thread. Who is not root becomes it in a namespace of its own.
  bool MountDisk() const {
    const uid_t user = getuid();
    const gid_t group = getgid();
    if (unshare(CLONE_NEWNS | (user == 0 ? 0 : CLONE_NEWUSER)) != 0) return false;
    if (user != 0) {
      if (!WriteTo("/proc/self/setgroups", "deny") ||
          !WriteTo("/proc/self/uid_map", absl::StrCat("0 ", user, " 1")) ||
          !WriteTo("/proc/self/gid_map", absl::StrCat("0 ", group, " 1"))) {
        return false;
      }
    }
    const std::string& path = config_.tiers().disk_path();
    mkdir(path.c_str(), 0700);
    return mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0 &&
           mount("tmpfs", path.c_str(), "tmpfs", 0, absl::StrCat("size=", disk_bytes_).c_str()) ==
               0;
  }

  testing::TempFolder folder_;
  v1::MemoryConfig config_;
  const int64_t disk_bytes_;
  pid_t pid_ = -1;
};

inline v1::MemoryConfig ConfigFor(const std::string& redis_address) {
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

  absl::Status Delete(const std::string& session_id) {
    v1::DeleteSessionRequest request;
    request.set_tenant("t");
    request.set_session_id(session_id);
    v1::DeleteSessionResponse response;
    return Send(absl::Seconds(3), [&](grpc::ClientContext* context) {
      return stub_->DeleteSession(context, request, &response);
    });
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

inline std::unique_ptr<testing::RedisServer> StartRedis() {
  auto redis = testing::RedisServer::Start({.append_fsync = "always"});
  EXPECT_TRUE(redis.ok()) << redis.status();
  return *std::move(redis);
}

// Whether a retry makes sense: the outcome of the call is not known, or it did not happen.
inline bool MayRetry(const absl::Status& status) {
  return absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status);
}

}  // namespace mneme::memory
