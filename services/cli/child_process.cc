#include "services/cli/child_process.h"

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

extern char** environ;

namespace mneme::cli {
namespace {

// What the forked child needs, made before the fork: only async-signal-safe calls come after it.
struct Prepared {
  std::vector<char*> arguments;
  std::vector<char*> environment;
  int null_fd = -1;
  int output_fd = -1;
  int stdout_fd = -1;
  int error_fd = -1;  // close-on-exec: the parent reads errno from it, or the end of file
  pid_t parent = 0;
  int parent_death_signal = 0;
};

[[noreturn]] void Fail(int error_fd) {
  const int error = errno;
  const ssize_t written = write(error_fd, &error, sizeof(error));
  (void)written;
  _exit(127);
}

[[noreturn]] void RunChild(const Prepared& prepared) {
  if (prctl(PR_SET_PDEATHSIG, prepared.parent_death_signal) != 0) Fail(prepared.error_fd);
  // The parent may have died before prctl: then no signal comes.
  if (getppid() != prepared.parent) _exit(127);
  setpgid(0, 0);
  for (int signal = 1; signal < NSIG; ++signal) std::signal(signal, SIG_DFL);
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  if (dup2(prepared.null_fd, STDIN_FILENO) < 0 || dup2(prepared.stdout_fd, STDOUT_FILENO) < 0 ||
      dup2(prepared.output_fd, STDERR_FILENO) < 0) {
    Fail(prepared.error_fd);
  }
  // error_fd is close-on-exec and must survive until then; what else was inherited must not.
  const unsigned error_fd = prepared.error_fd;
  if (error_fd > 3) syscall(SYS_close_range, 3u, error_fd - 1, 0u);
  syscall(SYS_close_range, error_fd + 1, ~0u, 0u);
  execve(prepared.arguments[0], prepared.arguments.data(), prepared.environment.data());
  Fail(prepared.error_fd);
}

// Both ends close-on-exec, the reading one non-blocking.
bool MakePipe(int ends[2]) {
  if (pipe2(ends, O_CLOEXEC) != 0) return false;
  fcntl(ends[0], F_SETFL, O_NONBLOCK);
  return true;
}

void Close(int fd) {
  if (fd >= 0) close(fd);
}

}  // namespace

std::string ChildExit::ToString() const {
  if (!ended) return "still running";
  if (!by_signal) return absl::StrCat("exit code ", code);
  return absl::StrCat("signal ", code, " (", strsignal(code), ")");
}

absl::StatusOr<ChildProcess> ChildProcess::Start(const ChildOptions& options) {
  Prepared prepared;
  for (const std::string& word : options.command) {
    prepared.arguments.push_back(const_cast<char*>(word.c_str()));
  }
  prepared.arguments.push_back(nullptr);
  for (char** entry = environ; *entry != nullptr; ++entry) prepared.environment.push_back(*entry);
  // The first of two equal names wins in getenv.
  for (const std::string& entry : options.environment) {
    prepared.environment.insert(prepared.environment.begin(), const_cast<char*>(entry.c_str()));
  }
  prepared.environment.push_back(nullptr);
  prepared.parent = getpid();
  prepared.parent_death_signal = options.parent_death_signal;

  int output[2] = {-1, -1};
  int standard[2] = {-1, -1};
  int error[2] = {-1, -1};
  prepared.null_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
  const bool files = prepared.null_fd >= 0 && MakePipe(output) &&
                     (!options.pipe_stdout || MakePipe(standard)) && pipe2(error, O_CLOEXEC) == 0;
  const int files_error = errno;
  prepared.output_fd = output[1];
  prepared.stdout_fd = options.pipe_stdout ? standard[1] : output[1];
  prepared.error_fd = error[1];

  ChildProcess child;
  child.output_fd_ = output[0];
  child.stdout_fd_ = standard[0];
  const pid_t pid = files ? fork() : -1;
  if (pid == 0) RunChild(prepared);
  const int fork_error = files ? errno : files_error;
  Close(prepared.null_fd);
  Close(output[1]);
  Close(standard[1]);
  Close(error[1]);
  if (pid < 0) {
    Close(error[0]);
    return absl::ResourceExhaustedError(absl::StrCat(
        "cannot start a process for ", options.command[0], ": ", std::strerror(fork_error)));
  }
  child.pid_ = pid;
  int exec_error = 0;
  ssize_t count = 0;
  do {
    count = read(error[0], &exec_error, sizeof(exec_error));
  } while (count < 0 && errno == EINTR);
  Close(error[0]);
  if (count == sizeof(exec_error)) {
    child.Wait();
    const std::string message =
        absl::StrCat("cannot start ", options.command[0], ": ", std::strerror(exec_error));
    if (exec_error == ENOENT) return absl::NotFoundError(message);
    return absl::PermissionDeniedError(message);
  }
  return child;
}

ChildProcess& ChildProcess::operator=(ChildProcess&& other) noexcept {
  if (this == &other) return *this;
  if (running()) {
    Signal(SIGKILL);
    Wait();
  }
  CloseFiles();
  pid_ = std::exchange(other.pid_, -1);
  output_fd_ = std::exchange(other.output_fd_, -1);
  stdout_fd_ = std::exchange(other.stdout_fd_, -1);
  return *this;
}

ChildProcess::~ChildProcess() {
  if (running()) {
    Signal(SIGKILL);
    Wait();
  }
  CloseFiles();
}

void ChildProcess::CloseOutput() { Close(std::exchange(output_fd_, -1)); }

void ChildProcess::CloseFiles() {
  Close(std::exchange(output_fd_, -1));
  Close(std::exchange(stdout_fd_, -1));
}

void ChildProcess::Signal(int signal) const {
  if (running()) kill(pid_, signal);
}

ChildExit ChildProcess::Poll() { return Reap(WNOHANG); }

ChildExit ChildProcess::Wait() { return Reap(0); }

ChildExit ChildProcess::Reap(int flags) {
  ChildExit exit;
  if (!running()) return exit;
  int status = 0;
  pid_t reaped = 0;
  do {
    reaped = waitpid(pid_, &status, flags);
  } while (reaped < 0 && errno == EINTR);
  if (reaped != pid_) return exit;
  pid_ = -1;
  exit.ended = true;
  exit.by_signal = WIFSIGNALED(status);
  exit.code = exit.by_signal ? WTERMSIG(status) : WEXITSTATUS(status);
  return exit;
}

std::string FindInPath(const std::string& program) {
  const char* path = std::getenv("PATH");
  for (const absl::string_view folder : absl::StrSplit(path == nullptr ? "" : path, ':')) {
    if (folder.empty()) continue;
    const std::string candidate = absl::StrCat(folder, "/", program);
    if (access(candidate.c_str(), X_OK) == 0) return candidate;
  }
  return "";
}

std::string OwnFolder() {
  char path[4096];
  const ssize_t length = readlink("/proc/self/exe", path, sizeof(path));
  if (length <= 0) return ".";
  const std::string whole(path, length);
  return whole.substr(0, whole.rfind('/'));
}

}  // namespace mneme::cli
