#include "services/cli/held_port.h"

#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"

namespace mneme::cli {
namespace {

// "[::1]" is how an address with colons is written before a port.
std::string WithoutBrackets(const std::string& host) {
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') {
    return host.substr(1, host.size() - 2);
  }
  return host;
}

}  // namespace

absl::StatusOr<HeldPort> HeldPort::Take(const std::string& host, int port) {
  addrinfo hints = {};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE;
  addrinfo* found = nullptr;
  const int resolved =
      getaddrinfo(WithoutBrackets(host).c_str(), std::to_string(port).c_str(), &hints, &found);
  if (resolved != 0) {
    return absl::UnavailableError(
        absl::StrCat("cannot find host ", host, ": ", gai_strerror(resolved)));
  }
  const absl::Cleanup free_found = [found] { freeaddrinfo(found); };
  HeldPort held;
  held.fd_ = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const int yes = 1;
  if (held.fd_ < 0 || setsockopt(held.fd_, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes)) != 0 ||
      bind(held.fd_, found->ai_addr, found->ai_addrlen) != 0) {
    const int error = errno;
    const std::string message =
        absl::StrCat("cannot take port ", port, " of ", host, ": ", std::strerror(error));
    if (error == EACCES) return absl::PermissionDeniedError(message);
    return absl::UnavailableError(message);
  }
  sockaddr_storage bound = {};
  socklen_t length = sizeof(bound);
  getsockname(held.fd_, reinterpret_cast<sockaddr*>(&bound), &length);
  held.port_ =
      ntohs(bound.ss_family == AF_INET6 ? reinterpret_cast<const sockaddr_in6*>(&bound)->sin6_port
                                        : reinterpret_cast<const sockaddr_in*>(&bound)->sin_port);
  held.address_ = absl::StrCat(host, ":", held.port_);
  return held;
}

HeldPort& HeldPort::operator=(HeldPort&& other) noexcept {
  if (this == &other) return *this;
  if (fd_ >= 0) close(fd_);
  fd_ = std::exchange(other.fd_, -1);
  port_ = other.port_;
  address_ = std::move(other.address_);
  return *this;
}

HeldPort::~HeldPort() {
  if (fd_ >= 0) close(fd_);
}

}  // namespace mneme::cli
