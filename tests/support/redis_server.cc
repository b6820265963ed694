#include "tests/support/redis_server.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/config/config.h"
#include "common/status/status_macros.h"
#include "tests/support/free_port.h"
#include "tests/support/time_limit.h"

namespace mneme::testing {
namespace {

constexpr int kStartAttempts = 5;

// Returns how long the reply is that `answer` begins with, 0 while that cannot be known.
size_t ReplySize(absl::string_view answer) {
  const size_t line = answer.find("\r\n");
  if (line == absl::string_view::npos) return 0;
  int64_t bulk = 0;
  if (answer[0] != '$' || !absl::SimpleAtoi(answer.substr(1, line - 1), &bulk) || bulk < 0) {
    return line + 2;
  }
  return line + 2 + static_cast<size_t>(bulk) + 2;
}

// Returns what the server on `port` answers to a line, as it came; "" if there is no answer.
std::string AnswerTo(absl::string_view line, int port) {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const timeval timeout{.tv_sec = 1, .tv_usec = 0};
  setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  const std::string request = absl::StrCat(line, "\r\n");
  std::string answer;
  if (connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0 &&
      send(fd, request.data(), request.size(), MSG_NOSIGNAL) ==
          static_cast<ssize_t>(request.size())) {
    while (ReplySize(answer) == 0 || answer.size() < ReplySize(answer)) {
      char buffer[4096];
      const ssize_t count = recv(fd, buffer, sizeof(buffer), 0);
      if (count <= 0) break;
      answer.append(buffer, count);
    }
  }
  close(fd);
  return answer;
}

std::string ConfigOf(const RedisServerOptions& options, int port, const std::string& folder) {
  std::string config = absl::StrCat("bind 127.0.0.1\ndir ", folder, "\nlogfile redis.log\n");
  if (options.tls.has_value()) {
    absl::StrAppend(&config, "port 0\ntls-port ", port, "\ntls-ca-cert-file ", options.tls->ca_file,
                    "\ntls-cert-file ", options.tls->certificate, "\ntls-key-file ",
                    options.tls->key, "\ntls-auth-clients ",
                    options.tls->wants_client_certificate ? "yes" : "no", "\n");
  } else {
    absl::StrAppend(&config, "port ", port, "\n");
  }
  if (options.is_sentinel) return config;
  absl::StrAppend(&config, "save \"\"\nappendonly yes\nappendfsync ", options.append_fsync, "\n");
  if (!options.password.empty()) absl::StrAppend(&config, "requirepass ", options.password, "\n");
  return config;
}

}  // namespace

absl::StatusOr<std::unique_ptr<RedisServer>> RedisServer::Start(const RedisServerOptions& options) {
  absl::Status status;
  // Another process can take the free port before the server does.
  for (int attempt = 0; attempt < kStartAttempts; ++attempt) {
    std::unique_ptr<RedisServer> server(new RedisServer);
    ASSIGN_OR_RETURN(server->port_, FreePort());
    server->address_ = absl::StrCat("127.0.0.1:", server->port_);
    server->has_tls_ = options.tls.has_value();
    server->is_sentinel_ = options.is_sentinel;
    std::string config = ConfigOf(options, server->port_, server->folder());
    absl::StrAppend(&config, absl::StrJoin(options.config_lines, "\n"), "\n");
    RETURN_IF_ERROR(
        config::WriteFileAtomically(server->folder_.File("redis.conf"), config, /*mode=*/0600));
    status = server->Launch();
    if (status.ok()) return server;
  }
  return status;
}

RedisServer::~RedisServer() { Kill(); }

std::string RedisServer::Ask(absl::string_view line) const { return AnswerTo(line, port_); }

void RedisServer::Stop() { End(SIGTERM); }

void RedisServer::Kill() { End(SIGKILL); }

void RedisServer::Pause() {
  if (pid_ > 0) kill(pid_, SIGSTOP);
}

void RedisServer::Resume() {
  if (pid_ > 0) kill(pid_, SIGCONT);
}

absl::Status RedisServer::Restart() {
  Kill();
  return Launch();
}

void RedisServer::End(int signal) {
  if (pid_ <= 0) return;
  kill(pid_, signal);
  while (waitpid(pid_, nullptr, 0) < 0 && errno == EINTR) {
  }
  pid_ = -1;
}

absl::Status RedisServer::Launch() {
  const std::string config_path = folder_.File("redis.conf");
  const char* const arguments[] = {MNEME_REDIS_SERVER, config_path.c_str(),
                                   is_sentinel_ ? "--sentinel" : nullptr, nullptr};
  // What an earlier run said is not taken for this one's.
  std::remove(folder_.File("redis.log").c_str());
  const pid_t parent = getpid();
  pid_ = fork();
  if (pid_ < 0) return absl::InternalError(absl::StrCat("cannot fork: ", std::strerror(errno)));
  if (pid_ == 0) {
    // Other threads' locks may be held: only system calls until exec.
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(127);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, nullptr);
    const int null = open("/dev/null", O_RDWR);
    dup2(null, 0);
    dup2(null, 1);
    dup2(null, 2);
    close_range(3, ~0U, 0);
    execv(arguments[0], const_cast<char* const*>(arguments));
    _exit(127);
  }
  return WaitUntilLoaded();
}

bool RedisServer::HasLoaded() const {
  if (has_tls_) {
    return absl::StrContains(config::ReadFile(folder_.File("redis.log")).value_or(""),
                             "Ready to accept connections");
  }
  // A server with a password answers NOAUTH, one that still reads its file LOADING.
  const std::string answer = AnswerTo("PING", port_);
  return absl::StartsWith(answer, "+PONG") || absl::StartsWith(answer, "-NOAUTH");
}

absl::Status RedisServer::WaitUntilLoaded() {
  const absl::Time deadline = absl::Now() + TimeLimit(absl::Seconds(30));
  while (absl::Now() < deadline) {
    if (waitpid(pid_, nullptr, WNOHANG) == pid_) {
      pid_ = -1;
      return absl::UnavailableError(
          absl::StrCat("redis-server ended at once: ",
                       config::ReadFile(folder_.File("redis.log")).value_or("it left no log")));
    }
    if (HasLoaded()) return absl::OkStatus();
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  Kill();
  return absl::DeadlineExceededError("redis-server did not answer within 30 s");
}

}  // namespace mneme::testing
