#include "services/cli/background_up.h"

#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "common/config/config.h"
#include "common/status/status_macros.h"

namespace mneme::cli {
namespace {

// Returns false at the end of the file.
bool ReadAvailable(int fd, std::string* text) {
  char buffer[4096];
  while (true) {
    const ssize_t count = read(fd, buffer, sizeof(buffer));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return true;
    if (count == 0) return false;
    text->append(buffer, count);
  }
}

// Passes whole text on to our own standard error.
void PassOn(int fd) {
  std::string text;
  ReadAvailable(fd, &text);
  std::fwrite(text.data(), 1, text.size(), stderr);
}

}  // namespace

absl::StatusOr<BackgroundUp> BackgroundUp::Start(const std::vector<std::string>& arguments,
                                                 const Interrupt& interrupt) {
  ChildOptions options;
  options.command = {absl::StrCat(OwnFolder(), "/mneme"), "up", "--json"};
  options.command.insert(options.command.end(), arguments.begin(), arguments.end());
  options.parent_death_signal = SIGTERM;
  options.pipe_stdout = true;
  ASSIGN_OR_RETURN(ChildProcess child, ChildProcess::Start(options));
  BackgroundUp up(std::move(child));
  std::string line;
  while (line.find('\n') == std::string::npos) {
    pollfd files[] = {{up.child_.stdout_fd(), POLLIN, 0},
                      {up.child_.output_fd(), POLLIN, 0},
                      {interrupt.fd(), POLLIN, 0}};
    poll(files, 3, -1);
    PassOn(up.child_.output_fd());
    if (interrupt.Take()) return absl::CancelledError("stopped before the server was ready");
    if (!ReadAvailable(up.child_.stdout_fd(), &line)) {
      up.child_.Wait();
      PassOn(up.child_.output_fd());
      return absl::FailedPreconditionError("the server could not be started (see above)");
    }
  }
  RETURN_IF_ERROR(config::FromJson(line, &up.state_));
  // What it says later is in logs/mneme.log; a pipe that nobody reads would block it one day.
  up.child_.CloseOutput();
  return up;
}

BackgroundUp::~BackgroundUp() {
  if (!child_.running()) return;
  child_.Signal(SIGTERM);
  child_.Wait();
}

}  // namespace mneme::cli
