// A whole Mneme for a test: `mneme up` with the real services on free ports and a folder of its
// own.
//
//   absl::StatusOr<std::unique_ptr<MnemeUp>> up = MnemeUp::Start();
//   auto chat = gateway::v1::ChatService::NewStub((*up)->channel());
//   ...
//   ASSERT_TRUE((*up)->KillAndWait("executor").ok());   // kill -9, restarted, healthy again
#pragma once

#include <grpcpp/channel.h>

#include <csignal>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "mneme/cli/v1/state.pb.h"
#include "services/cli/child_process.h"
#include "tests/support/temp_folder.h"

namespace mneme::testing {

struct MnemeUpOptions {
  std::string model;                   // name or path; "": the default model
  std::string config_json;             // content of --config (mneme.cli.v1.UpConfig); may be empty
  std::vector<std::string> arguments;  // more of `mneme up`
  std::string data;                    // "": a temporary folder
  absl::Duration start_timeout = absl::Minutes(3);
};

// Not thread-safe. Start it from a thread that outlives its use: the kernel kills what it runs when
// that thread ends. The destructor stops everything.
class MnemeUp {
 public:
  // Returns once everything is ready. An error holds what `mneme up` said.
  static absl::StatusOr<std::unique_ptr<MnemeUp>> Start(const MnemeUpOptions& options = {});
  ~MnemeUp();
  MnemeUp(const MnemeUp&) = delete;
  MnemeUp& operator=(const MnemeUp&) = delete;

  const std::string& http() const { return state_.http(); }  // host:port
  const std::string& grpc() const { return state_.grpc(); }  // host:port
  const std::string& data() const { return data_; }
  pid_t pid() const { return child_.pid(); }  // of the supervisor
  const std::string& model() const { return state_.model(); }
  // Of the gateway's gRPC front; the same one each time.
  std::shared_ptr<grpc::Channel> channel();

  // The line that `mneme up --json` printed.
  const cli::v1::UpState& first_state() const { return state_; }
  // What it says now.
  absl::StatusOr<cli::v1::UpState> State() const;
  // "redis" or the name of a service; NOT_FOUND.
  absl::StatusOr<cli::v1::ServiceState> ServiceOf(const std::string& name) const;
  // Process ids of everything, the supervisor included.
  absl::StatusOr<std::vector<pid_t>> Pids() const;

  absl::Status Signal(const std::string& service, int signal = SIGKILL) const;
  // Waits until the service runs as another process than `old_pid` and is ready.
  absl::Status WaitForRestart(const std::string& service, pid_t old_pid,
                              absl::Duration timeout = absl::Minutes(1)) const;
  // kill -9, then waits until it is back.
  absl::Status KillAndWait(const std::string& service,
                           absl::Duration timeout = absl::Minutes(1)) const;

  // SIGTERM, and waits. Returns how the supervisor ended.
  cli::ChildExit Stop();
  // kill -9 of the supervisor itself.
  void KillSupervisor();

 private:
  MnemeUp() = default;

  TempFolder folder_;
  std::string data_;
  cli::ChildProcess child_;
  cli::v1::UpState state_;
  std::shared_ptr<grpc::Channel> channel_;
};

// Returns whether a process exists and is not merely waiting to be reaped.
bool IsRunning(pid_t pid);

}  // namespace mneme::testing
