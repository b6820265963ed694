// A TCP port that stays ours while no service listens on it.
//
// The supervisor binds the port and never listens, so the kernel gives it to nobody who asks for
// any free port, while a service that sets SO_REUSEADDR (as gRPC, redis-server and our HTTP servers
// do) can still bind and listen. A restarted service thus always finds its port again.
#pragma once

#include <string>
#include <utility>

#include "absl/status/statusor.h"

namespace mneme::cli {

// Move-only; the destructor gives the port back.
class HeldPort {
 public:
  // `host` is a numeric address or a name; port 0 takes a free one. UNAVAILABLE: somebody listens
  // on it, or the host is not this machine's. PERMISSION_DENIED: a port below 1024.
  static absl::StatusOr<HeldPort> Take(const std::string& host, int port);

  HeldPort() = default;
  HeldPort(HeldPort&& other) noexcept { *this = std::move(other); }
  HeldPort& operator=(HeldPort&& other) noexcept;
  ~HeldPort();

  int port() const { return port_; }
  // host:port
  const std::string& address() const { return address_; }

 private:
  int fd_ = -1;
  int port_ = 0;
  std::string address_;
};

}  // namespace mneme::cli
