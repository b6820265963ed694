#include "tests/support/run_command.h"

#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/status/status_macros.h"
#include "services/cli/child_process.h"
#include "tests/support/time_limit.h"

namespace mneme::testing {
namespace {

// Returns false once the other end is closed.
bool Drain(int fd, std::string* text) {
  char buffer[1 << 16];
  while (true) {
    const ssize_t count = read(fd, buffer, sizeof(buffer));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return true;
    if (count == 0) return false;
    text->append(buffer, count);
  }
}

}  // namespace

absl::StatusOr<CommandResult> RunCommand(const std::vector<std::string>& command,
                                         absl::Duration timeout,
                                         const std::vector<std::string>& environment) {
  cli::ChildOptions options;
  options.command = command;
  options.environment = environment;
  options.pipe_stdout = true;
  ASSIGN_OR_RETURN(cli::ChildProcess child, cli::ChildProcess::Start(options));
  const absl::Time deadline = absl::Now() + TimeLimit(timeout);
  CommandResult result;
  cli::ChildExit exit;
  while (!exit.ended) {
    pollfd files[] = {{child.stdout_fd(), POLLIN, 0}, {child.output_fd(), POLLIN, 0}};
    poll(files, 2, 20);
    // Both pipes are closed when it has ended; one that has only closed them is polled.
    const bool open = Drain(child.stdout_fd(), &result.out) | Drain(child.output_fd(), &result.err);
    exit = child.Poll();
    if (exit.ended) break;
    if (!open) absl::SleepFor(absl::Milliseconds(5));
    if (absl::Now() > deadline) {
      return absl::DeadlineExceededError(absl::StrCat("still running after ",
                                                      absl::FormatDuration(TimeLimit(timeout)),
                                                      ": ", command[0], "; it said: ", result.err));
    }
  }
  Drain(child.stdout_fd(), &result.out);
  Drain(child.output_fd(), &result.err);
  result.exit_code = exit.by_signal ? 128 + exit.code : exit.code;
  return result;
}

std::string BinaryPath(const std::string& name) {
  const char* folder = std::getenv("MNEME_BIN");
  return absl::StrCat(folder != nullptr && *folder != '\0' ? folder : cli::OwnFolder(), "/", name);
}

absl::StatusOr<CommandResult> RunMneme(const std::vector<std::string>& arguments,
                                       absl::Duration timeout,
                                       const std::vector<std::string>& environment) {
  std::vector<std::string> command = {BinaryPath("mneme")};
  command.insert(command.end(), arguments.begin(), arguments.end());
  return RunCommand(command, timeout, environment);
}

}  // namespace mneme::testing
