// A process that ends when its parent does, whatever ends the parent: the kernel kills it
// (PR_SET_PDEATHSIG).
//
// That signal is tied to the *thread* that forked: Start must be called from a thread that lives as
// long as the children may, in practice the main one.
#pragma once

#include <sys/types.h>

#include <csignal>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace mneme::cli {

struct ChildOptions {
  std::vector<std::string> command;      // the path of the program first; PATH is not searched
  std::vector<std::string> environment;  // NAME=value, added to this process's own
  int parent_death_signal = SIGKILL;     // what it gets when the parent is gone
  bool pipe_stdout = false;              // its standard output has a pipe of its own
};

// How a child ended.
struct ChildExit {
  bool ended = false;
  bool by_signal = false;
  int code = 0;  // exit code or signal number

  std::string ToString() const;  // "exit code 1", "signal 9 (Killed)"
};

// A running child. Not thread-safe. Move-only; the destructor kills a child that still runs and
// waits for it.
class ChildProcess {
 public:
  // Starts it in a process group of its own (Ctrl-C in the terminal does not reach it), with
  // /dev/null as input, no other open files, and default signal handling.
  // NOT_FOUND or PERMISSION_DENIED: the program cannot be started.
  static absl::StatusOr<ChildProcess> Start(const ChildOptions& options);

  ChildProcess() = default;
  ChildProcess(ChildProcess&& other) noexcept { *this = std::move(other); }
  ChildProcess& operator=(ChildProcess&& other) noexcept;
  ~ChildProcess();

  pid_t pid() const { return pid_; }
  bool running() const { return pid_ > 0; }
  // Non-blocking reading ends: standard error (and output, unless it has its own); -1: none.
  int output_fd() const { return output_fd_; }
  int stdout_fd() const { return stdout_fd_; }
  void CloseOutput();  // output_fd is -1 afterwards

  // Sends a signal if it still runs.
  void Signal(int signal) const;
  // Returns without waiting; after `ended` the child is reaped and no longer running().
  ChildExit Poll();
  // Waits for the end.
  ChildExit Wait();

 private:
  ChildExit Reap(int flags);
  void CloseFiles();

  pid_t pid_ = -1;
  int output_fd_ = -1;
  int stdout_fd_ = -1;
};

// Returns the path of a program that PATH holds, "" where there is none.
std::string FindInPath(const std::string& program);

// Returns the folder of the running executable.
std::string OwnFolder();

}  // namespace mneme::cli
