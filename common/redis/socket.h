// A TCP connection whose every call ends by a deadline, which a timeout per system call cannot
// promise.
#pragma once

#include <cstddef>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "common/redis/transport.h"

namespace mneme::redis {

// A server's address, taken apart.
struct HostPort {
  std::string host;  // an IPv6 address without its brackets
  std::string port;
};

// Reads host:port or [ipv6]:port. FAILED_PRECONDITION: it is neither.
absl::StatusOr<HostPort> SplitAddress(const std::string& address);
// The opposite of SplitAddress.
std::string JoinAddress(absl::string_view host, absl::string_view port);

// Movable; closes in the destructor.
class Socket final : public Transport {
 public:
  // `address` is as SplitAddress reads it. Looking up a name may take longer than the deadline.
  // UNAVAILABLE: refused.
  static absl::StatusOr<Socket> Connect(const std::string& address, absl::Time deadline);
  Socket(Socket&& other) noexcept;
  Socket& operator=(Socket&& other) noexcept;
  ~Socket() override;

  absl::Status Write(absl::Span<const absl::string_view> pieces, absl::Time deadline) override;
  absl::StatusOr<size_t> Read(char* buffer, size_t size, absl::Time deadline) override;
  bool IsQuiet() override;

  // For what is layered on it: the descriptor does not block.
  int fd() const { return fd_; }
  // Waits for POLLIN or POLLOUT.
  absl::Status WaitFor(short events, absl::Time deadline) const;

 private:
  explicit Socket(int fd) : fd_(fd) {}

  int fd_;
};

}  // namespace mneme::redis
