// Asks a service whether it is well: connects, sends a few bytes, and compares what comes back.
// Covers HTTP's /healthz and Redis' PING. Never blocks, so that the supervisor needs one thread.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace mneme::cli {

struct ProbeTarget {
  std::string address;   // host:port, the host a numeric address
  std::string request;   // sent once connected
  std::string expected;  // the answer is good once it contains this

  bool empty() const { return address.empty(); }
};

// GET /healthz of a metrics address must answer 200.
ProbeTarget HealthzOf(const std::string& metrics_address);
// PING (after AUTH, if there is a password) must answer PONG.
ProbeTarget PingOf(const std::string& redis_address, const std::string& username,
                   const std::string& password);

// One question. Move-only. Drive it with Step whenever its file is ready (or at any other time).
class Probe {
 public:
  enum class Outcome { kPending, kGood, kBad, kNoAnswer };

  Probe() = default;
  Probe(const ProbeTarget& target, absl::Time deadline);
  Probe(Probe&& other) noexcept { *this = std::move(other); }
  Probe& operator=(Probe&& other) noexcept;
  ~Probe();

  bool running() const { return fd_ >= 0; }
  int fd() const { return fd_; }
  short poll_events() const;  // POLLOUT or POLLIN
  absl::Time deadline() const { return deadline_; }

  // kBad: answered, but not as expected. kNoAnswer: refused, cut off or too late.
  Outcome Step(absl::Time now);

 private:
  Outcome End(Outcome outcome);

  ProbeTarget target_;
  absl::Time deadline_;
  int fd_ = -1;
  size_t sent_ = 0;
  std::string answer_;
  bool failed_ = false;  // to connect at all
};

// Asks and waits for the outcome.
Probe::Outcome Ask(const ProbeTarget& target, absl::Duration timeout);

}  // namespace mneme::cli
