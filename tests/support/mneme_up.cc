#include "tests/support/mneme_up.h"

#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/config/config.h"
#include "common/rpc/client.h"
#include "common/status/status_macros.h"
#include "services/cli/data_folder.h"
#include "tests/support/run_command.h"
#include "tests/support/time_limit.h"

namespace mneme::testing {
namespace {

constexpr absl::Duration kPollInterval = absl::Milliseconds(20);

// Appends what there is; false at the end of the file.
bool Drain(int fd, std::string* text) {
  char buffer[1 << 14];
  while (true) {
    const ssize_t count = read(fd, buffer, sizeof(buffer));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return true;
    if (count == 0) return false;
    text->append(buffer, count);
  }
}

}  // namespace

bool IsRunning(pid_t pid) {
  const absl::StatusOr<std::string> stat = config::ReadFile(absl::StrCat("/proc/", pid, "/stat"));
  if (!stat.ok()) return false;
  const size_t end = stat->rfind(')');
  return end != std::string::npos && end + 2 < stat->size() && (*stat)[end + 2] != 'Z';
}

absl::StatusOr<std::unique_ptr<MnemeUp>> MnemeUp::Start(const MnemeUpOptions& options) {
  std::unique_ptr<MnemeUp> up(new MnemeUp());
  up->data_ = options.data.empty() ? up->folder_.File("data") : options.data;
  cli::ChildOptions child;
  child.command = {BinaryPath("mneme"), "up", "--json",      "--data", up->data_,
                   "--http-port",       "0",  "--grpc-port", "0"};
  if (!options.model.empty()) child.command.insert(child.command.end(), {"--model", options.model});
  if (!options.config_json.empty()) {
    const std::string path = up->folder_.File("config.json");
    RETURN_IF_ERROR(config::WriteFileAtomically(path, options.config_json));
    child.command.insert(child.command.end(), {"--config", path});
  }
  child.command.insert(child.command.end(), options.arguments.begin(), options.arguments.end());
  child.pipe_stdout = true;
  ASSIGN_OR_RETURN(up->child_, cli::ChildProcess::Start(child));
  const absl::Time deadline = absl::Now() + TimeLimit(options.start_timeout);
  std::string line;
  std::string said;
  while (!absl::StrContains(line, "\n")) {
    pollfd files[] = {{up->child_.stdout_fd(), POLLIN, 0}, {up->child_.output_fd(), POLLIN, 0}};
    poll(files, 2, 1000);
    Drain(up->child_.output_fd(), &said);
    if (!Drain(up->child_.stdout_fd(), &line)) {
      up->child_.Wait();
      Drain(up->child_.output_fd(), &said);
      return absl::FailedPreconditionError(absl::StrCat("mneme up ended: ", said));
    }
    if (absl::Now() > deadline) {
      return absl::DeadlineExceededError(absl::StrCat("mneme up is not ready: ", said));
    }
  }
  RETURN_IF_ERROR(config::FromJson(line, &up->state_));
  // What it says from now on is in logs/mneme.log.
  up->child_.CloseOutput();
  return up;
}

MnemeUp::~MnemeUp() { Stop(); }

std::shared_ptr<grpc::Channel> MnemeUp::channel() {
  if (channel_ == nullptr) channel_ = rpc::ConnectTo(grpc());
  return channel_;
}

absl::StatusOr<cli::v1::UpState> MnemeUp::State() const {
  return cli::DataFolder(data_).ReadState();
}

absl::StatusOr<cli::v1::ServiceState> MnemeUp::ServiceOf(const std::string& name) const {
  ASSIGN_OR_RETURN(const cli::v1::UpState state, State());
  if (name == "redis") return state.redis();
  const auto found = state.services().find(name);
  if (found == state.services().end()) {
    return absl::NotFoundError(absl::StrCat("no such service: ", name));
  }
  return found->second;
}

absl::StatusOr<std::vector<pid_t>> MnemeUp::Pids() const {
  ASSIGN_OR_RETURN(const cli::v1::UpState state, State());
  std::vector<pid_t> pids = {state.pid()};
  if (state.redis().pid() != 0) pids.push_back(state.redis().pid());
  for (const auto& [name, service] : state.services()) pids.push_back(service.pid());
  return pids;
}

absl::Status MnemeUp::Signal(const std::string& service, int signal) const {
  ASSIGN_OR_RETURN(const cli::v1::ServiceState state, ServiceOf(service));
  if (state.pid() == 0) {
    return absl::FailedPreconditionError(absl::StrCat("does not run: ", service));
  }
  kill(state.pid(), signal);
  return absl::OkStatus();
}

absl::Status MnemeUp::WaitForRestart(const std::string& service, pid_t old_pid,
                                     absl::Duration timeout) const {
  const absl::Time deadline = absl::Now() + TimeLimit(timeout);
  while (true) {
    ASSIGN_OR_RETURN(const cli::v1::ServiceState state, ServiceOf(service));
    if (state.pid() != 0 && state.pid() != old_pid && state.state() == "ready") {
      return absl::OkStatus();
    }
    if (absl::Now() > deadline) {
      return absl::DeadlineExceededError(
          absl::StrCat(service, " did not come back: ", state.state(), "; log: ", state.log()));
    }
    absl::SleepFor(kPollInterval);
  }
}

absl::Status MnemeUp::KillAndWait(const std::string& service, absl::Duration timeout) const {
  ASSIGN_OR_RETURN(const cli::v1::ServiceState state, ServiceOf(service));
  RETURN_IF_ERROR(Signal(service, SIGKILL));
  return WaitForRestart(service, state.pid(), timeout);
}

cli::ChildExit MnemeUp::Stop() {
  child_.Signal(SIGTERM);
  return child_.Wait();
}

void MnemeUp::KillSupervisor() {
  child_.Signal(SIGKILL);
  child_.Wait();
}

}  // namespace mneme::testing
