// A TCP connection whose every call ends by a deadline: what hiredis' own blocking mode, with a
// timeout per system call, cannot promise. An encrypted transport would take this class's place.
#pragma once

#include <cstddef>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace mneme::redis {

// Movable; closes in the destructor. Used by one thread at a time. Errors: DEADLINE_EXCEEDED: too
// late; UNAVAILABLE: refused, reset or closed by the peer.
class Socket {
 public:
  // `address` is host:port or [ipv6]:port. Looking up a name may take longer than the deadline.
  static absl::StatusOr<Socket> Connect(const std::string& address, absl::Time deadline);
  Socket(Socket&& other) noexcept;
  Socket& operator=(Socket&& other) noexcept;
  ~Socket();

  absl::Status Write(absl::string_view bytes, absl::Time deadline);
  // Returns how many bytes it read, at least one.
  absl::StatusOr<size_t> Read(char* buffer, size_t size, absl::Time deadline);
  // Returns whether the connection is open and nothing has arrived on it.
  bool IsQuiet() const;

 private:
  explicit Socket(int fd) : fd_(fd) {}
  absl::Status WaitFor(short events, absl::Time deadline) const;

  int fd_;
};

}  // namespace mneme::redis
