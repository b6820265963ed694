// Runs a set of services: starts them in order, asks them for their health, restarts what dies, and
// stops them in order.
//
// One thread does it all, around one poll(): no locks, and every child is forked by the thread that
// outlives them (see child_process.h).
#pragma once

#include <csignal>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "services/cli/child_process.h"
#include "services/cli/log_file.h"
#include "services/cli/probe.h"

namespace mneme::cli {

struct ServiceSpec {
  std::string name;
  std::vector<std::string> command;      // the path of the program first
  std::vector<std::string> environment;  // NAME=value, added
  std::string log_path;
  // Removed before a start and must exist again before the service counts as ready; "": none.
  std::string ready_file;
  ProbeTarget health;              // empty: ready as soon as ready_file exists
  std::vector<std::string> after;  // services that must have been ready before the first start
  int stop_rank = 0;               // lower ranks stop first, equal ones together
  absl::Duration grace = absl::Seconds(15);  // from SIGTERM to SIGKILL
};

enum class ServiceState {
  kWaiting,   // for what it comes after
  kStarting,  // runs, not ready yet
  kReady,
  kUnhealthy,   // was ready, does not say so now
  kRestarting,  // died; starts again after a while
  kStopping,
  kStopped,
};
absl::string_view StateName(ServiceState state);

struct ServiceStatus {
  std::string name;
  ServiceState state = ServiceState::kWaiting;
  pid_t pid = 0;  // 0: not running
  absl::Time since;
  int restarts = 0;
  std::string log_path;
};

struct SupervisorOptions {
  absl::Duration start_timeout = absl::Minutes(10);
  absl::Duration first_backoff = absl::Milliseconds(50);  // doubled with each death in a row
  absl::Duration longest_backoff = absl::Seconds(10);
  absl::Duration stable_after = absl::Seconds(5);  // ready for so long: back-off starts anew
  absl::Duration health_interval = absl::Seconds(1);
  absl::Duration health_timeout = absl::Seconds(5);
  // A service that has not answered at all for so long hangs: it is killed and started again.
  absl::Duration hang_timeout = absl::Minutes(1);
};

// What the owner is told, in the supervisor's thread.
struct SupervisorEvents {
  std::function<void()> on_ready;                          // every service was ready once
  std::function<void()> on_change;                         // some status changed
  std::function<void(absl::string_view text)> on_message;  // for the operator
};

// Not thread-safe. At most one at a time in a process: it takes SIGTERM, SIGINT, SIGHUP and
// SIGCHLD.
class Supervisor {
 public:
  Supervisor(std::vector<ServiceSpec> specs, const SupervisorOptions& options,
             SupervisorEvents events);
  ~Supervisor();

  // Starts everything, runs until SIGTERM, SIGINT or SIGHUP, and stops everything; a second signal
  // while stopping kills what still runs. OK: stopped by a signal. Else why the start failed: a
  // service that ended by itself before it was ever ready (with its last log line), or
  // DEADLINE_EXCEEDED.
  absl::Status Run();

  std::vector<ServiceStatus> Statuses() const;

 private:
  struct Service;

  absl::Status StartReadyOnes(absl::Time now);
  absl::Status StartService(Service& service, absl::Time now);
  void WaitForEvents(absl::Duration at_most);
  bool TakeSignals();  // returns whether a stop was asked for
  void ReadOutput(Service& service);
  absl::Status NoticeDeaths(absl::Time now);
  absl::Status OnExit(Service& service, const ChildExit& exit, absl::Time now);
  void CheckHealth(absl::Time now);
  void OnHealth(Service& service, Probe::Outcome outcome, absl::Time now);
  void StopAll();
  void SetState(Service& service, ServiceState state);
  void TellIfReady();
  std::string NotReady() const;
  void Say(absl::string_view text) const;

  const SupervisorOptions options_;
  const SupervisorEvents events_;
  std::vector<Service> services_;
  sigset_t old_mask_;
  int signal_fd_ = -1;
  bool all_ready_ = false;
  bool stopping_ = false;
};

}  // namespace mneme::cli
