#include "common/redis/socket.h"

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/status/status_macros.h"

namespace mneme::redis {
namespace {

absl::Status SocketError(int error) { return absl::UnavailableError(std::strerror(error)); }

absl::Status TooLate() { return absl::DeadlineExceededError("no answer in time"); }

struct AddressListDeleter {
  void operator()(addrinfo* list) const { freeaddrinfo(list); }
};
using AddressList = std::unique_ptr<addrinfo, AddressListDeleter>;

absl::StatusOr<AddressList> Resolve(const std::string& address) {
  ASSIGN_OR_RETURN(const HostPort parts, SplitAddress(address));
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* list = nullptr;
  const int error = getaddrinfo(parts.host.c_str(), parts.port.c_str(), &hints, &list);
  if (error != 0) return absl::UnavailableError(gai_strerror(error));
  return AddressList(list);
}

// Takes `count` bytes off the front of what is still to be written.
void Advance(std::vector<iovec>& blocks, size_t& first, size_t count) {
  while (first < blocks.size() && count >= blocks[first].iov_len) count -= blocks[first++].iov_len;
  if (count == 0) return;
  blocks[first].iov_base = static_cast<char*>(blocks[first].iov_base) + count;
  blocks[first].iov_len -= count;
}

}  // namespace

absl::StatusOr<HostPort> SplitAddress(const std::string& address) {
  const size_t colon = address.rfind(':');
  if (colon == std::string::npos || colon == 0 || colon + 1 == address.size()) {
    return absl::FailedPreconditionError("redis.address is not host:port");
  }
  HostPort parts{address.substr(0, colon), address.substr(colon + 1)};
  if (parts.host.front() == '[' && parts.host.back() == ']') {
    parts.host = parts.host.substr(1, parts.host.size() - 2);
  }
  return parts;
}

std::string JoinAddress(absl::string_view host, absl::string_view port) {
  if (absl::StrContains(host, ':')) return absl::StrCat("[", host, "]:", port);
  return absl::StrCat(host, ":", port);
}

absl::StatusOr<Socket> Socket::Connect(const std::string& address, absl::Time deadline) {
  ASSIGN_OR_RETURN(const AddressList list, Resolve(address));
  absl::Status status = absl::UnavailableError("the name has no address");
  for (const addrinfo* entry = list.get(); entry != nullptr; entry = entry->ai_next) {
    Socket connection(
        socket(entry->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, entry->ai_protocol));
    if (connection.fd_ < 0) return SocketError(errno);
    const int yes = 1;
    setsockopt(connection.fd_, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof(yes));
    setsockopt(connection.fd_, SOL_SOCKET, SO_KEEPALIVE, &yes, sizeof(yes));
    if (connect(connection.fd_, entry->ai_addr, entry->ai_addrlen) == 0) return connection;
    if (errno != EINPROGRESS) {
      status = SocketError(errno);
      continue;
    }
    status = connection.WaitFor(POLLOUT, deadline);
    if (!status.ok()) continue;
    int error = 0;
    socklen_t size = sizeof(error);
    getsockopt(connection.fd_, SOL_SOCKET, SO_ERROR, &error, &size);
    if (error == 0) return connection;
    status = SocketError(error);
  }
  return status;
}

Socket::Socket(Socket&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}

Socket& Socket::operator=(Socket&& other) noexcept {
  std::swap(fd_, other.fd_);
  return *this;
}

Socket::~Socket() {
  if (fd_ >= 0) close(fd_);
}

absl::Status Socket::WaitFor(short events, absl::Time deadline) const {
  while (true) {
    const absl::Duration left = deadline - absl::Now();
    if (left <= absl::ZeroDuration()) return TooLate();
    // Rounded up, so that the last millisecond is not spent spinning.
    const int64_t left_ms =
        std::min<int64_t>(absl::ToInt64Milliseconds(left + absl::Milliseconds(1)), 60'000);
    pollfd entry{.fd = fd_, .events = events, .revents = 0};
    const int count = poll(&entry, 1, static_cast<int>(left_ms));
    if (count > 0) return absl::OkStatus();
    if (count < 0 && errno != EINTR) return SocketError(errno);
  }
}

absl::Status Socket::Write(absl::Span<const absl::string_view> pieces, absl::Time deadline) {
  std::vector<iovec> blocks;
  blocks.reserve(pieces.size());
  for (const absl::string_view piece : pieces) {
    if (!piece.empty()) blocks.push_back({const_cast<char*>(piece.data()), piece.size()});
  }
  size_t first = 0;
  while (first < blocks.size()) {
    msghdr message{};
    message.msg_iov = &blocks[first];
    message.msg_iovlen = std::min<size_t>(blocks.size() - first, IOV_MAX);
    const ssize_t count = sendmsg(fd_, &message, MSG_NOSIGNAL);
    if (count >= 0) {
      Advance(blocks, first, static_cast<size_t>(count));
      // A peer that is always ready must not keep us longer than one that is not.
      if (first < blocks.size() && absl::Now() >= deadline) return TooLate();
    } else if (errno == EAGAIN) {
      RETURN_IF_ERROR(WaitFor(POLLOUT, deadline));
    } else if (errno != EINTR) {
      return SocketError(errno);
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<size_t> Socket::Read(char* buffer, size_t size, absl::Time deadline) {
  while (true) {
    const ssize_t count = recv(fd_, buffer, size, 0);
    if (count > 0) return static_cast<size_t>(count);
    if (count == 0) return absl::UnavailableError("the server closed the connection");
    if (errno == EAGAIN) {
      RETURN_IF_ERROR(WaitFor(POLLIN, deadline));
    } else if (errno != EINTR) {
      return SocketError(errno);
    }
  }
}

bool Socket::IsQuiet() {
  char byte;
  return recv(fd_, &byte, 1, MSG_PEEK | MSG_DONTWAIT) < 0 && errno == EAGAIN;
}

}  // namespace mneme::redis
