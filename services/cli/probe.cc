#include "services/cli/probe.h"

#include <netdb.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace mneme::cli {
namespace {

constexpr size_t kMaxAnswerBytes = 16384;

// Returns a non-blocking socket that is connecting, or -1. `resolve` may ask the name service.
int Connect(const std::string& address) {
  const size_t colon = address.rfind(':');
  if (colon == std::string::npos) return -1;
  std::string host = address.substr(0, colon);
  if (host.size() > 2 && host.front() == '[') host = host.substr(1, host.size() - 2);
  addrinfo hints = {};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (getaddrinfo(host.c_str(), address.substr(colon + 1).c_str(), &hints, &found) != 0) return -1;
  int fd = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd >= 0 && connect(fd, found->ai_addr, found->ai_addrlen) != 0 && errno != EINPROGRESS) {
    close(fd);
    fd = -1;
  }
  freeaddrinfo(found);
  return fd;
}

// Redis' own form of a command: no quoting to get wrong.
std::string RedisCommand(const std::vector<std::string>& words) {
  std::string command = absl::StrCat("*", words.size(), "\r\n");
  for (const std::string& word : words) {
    absl::StrAppend(&command, "$", word.size(), "\r\n", word, "\r\n");
  }
  return command;
}

}  // namespace

ProbeTarget HealthzOf(const std::string& metrics_address) {
  return {metrics_address,
          absl::StrCat("GET /healthz HTTP/1.1\r\nHost: ", metrics_address,
                       "\r\nConnection: close\r\n\r\n"),
          "HTTP/1.1 200 "};
}

ProbeTarget PingOf(const std::string& redis_address, const std::string& username,
                   const std::string& password) {
  std::string request;
  if (!username.empty()) {
    request = RedisCommand({"AUTH", username, password});
  } else if (!password.empty()) {
    request = RedisCommand({"AUTH", password});
  }
  return {redis_address, request + RedisCommand({"PING"}), "+PONG\r\n"};
}

Probe::Probe(const ProbeTarget& target, absl::Time deadline)
    : target_(target), deadline_(deadline), fd_(Connect(target.address)), failed_(fd_ < 0) {}

Probe& Probe::operator=(Probe&& other) noexcept {
  if (this == &other) return *this;
  if (fd_ >= 0) close(fd_);
  target_ = std::move(other.target_);
  deadline_ = other.deadline_;
  fd_ = std::exchange(other.fd_, -1);
  sent_ = other.sent_;
  answer_ = std::move(other.answer_);
  failed_ = other.failed_;
  return *this;
}

Probe::~Probe() {
  if (fd_ >= 0) close(fd_);
}

short Probe::poll_events() const { return sent_ < target_.request.size() ? POLLOUT : POLLIN; }

Probe::Outcome Probe::End(Outcome outcome) {
  if (fd_ >= 0) close(std::exchange(fd_, -1));
  return outcome;
}

Probe::Outcome Probe::Step(absl::Time now) {
  if (failed_ || now >= deadline_) return End(Outcome::kNoAnswer);
  while (sent_ < target_.request.size()) {
    const ssize_t count =
        send(fd_, target_.request.data() + sent_, target_.request.size() - sent_, MSG_NOSIGNAL);
    // Not connected yet counts as "later" too.
    if (count < 0 && (errno == EAGAIN || errno == EINTR)) return Outcome::kPending;
    if (count < 0) return End(Outcome::kNoAnswer);
    sent_ += count;
  }
  char buffer[2048];
  while (true) {
    const ssize_t count = recv(fd_, buffer, sizeof(buffer), 0);
    if (count < 0 && (errno == EAGAIN || errno == EINTR)) return Outcome::kPending;
    if (count < 0) return End(Outcome::kNoAnswer);
    if (count == 0) return End(answer_.empty() ? Outcome::kNoAnswer : Outcome::kBad);
    answer_.append(buffer, count);
    if (absl::StrContains(answer_, target_.expected)) return End(Outcome::kGood);
    if (answer_.size() > kMaxAnswerBytes) return End(Outcome::kBad);
    // Redis keeps the connection open after an error.
    if (absl::StartsWith(answer_, "-") && absl::EndsWith(answer_, "\r\n")) {
      return End(Outcome::kBad);
    }
  }
}

Probe::Outcome Ask(const ProbeTarget& target, absl::Duration timeout) {
  Probe probe(target, absl::Now() + timeout);
  while (true) {
    const Probe::Outcome outcome = probe.Step(absl::Now());
    if (outcome != Probe::Outcome::kPending) return outcome;
    pollfd file = {probe.fd(), probe.poll_events(), 0};
    poll(&file, 1,
         1 + static_cast<int>(
                 std::max<int64_t>(0, absl::ToInt64Milliseconds(probe.deadline() - absl::Now()))));
  }
}

}  // namespace mneme::cli
