#include "services/cli/supervisor.h"

#include <poll.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/status/status_macros.h"
#include "services/cli/log_line.h"

namespace mneme::cli {
namespace {

constexpr absl::Duration kStartPollInterval = absl::Milliseconds(25);
constexpr absl::Duration kIdlePoll = absl::Seconds(1);
// A service that is killed (not: that gives up by itself) before it was ready gets another try.
constexpr int kStartAttempts = 3;

bool FileExists(const std::string& path) { return access(path.c_str(), F_OK) == 0; }

}  // namespace

struct Supervisor::Service {
  ServiceSpec spec;
  ServiceState state = ServiceState::kWaiting;
  ChildProcess child;
  LogFile log;
  Probe probe;
  absl::Time since;
  absl::Time next_probe;
  absl::Time last_answer;
  absl::Time restart_at;
  absl::Time ready_since = absl::InfiniteFuture();
  absl::Duration backoff;
  int restarts = 0;
  bool was_ready = false;
};

absl::string_view StateName(ServiceState state) {
  switch (state) {
    case ServiceState::kWaiting:
      return "waiting";
    case ServiceState::kStarting:
      return "starting";
    case ServiceState::kReady:
      return "ready";
    case ServiceState::kUnhealthy:
      return "unhealthy";
    case ServiceState::kRestarting:
      return "restarting";
    case ServiceState::kStopping:
      return "stopping";
    case ServiceState::kStopped:
      return "stopped";
  }
  return "unknown";
}

Supervisor::Supervisor(std::vector<ServiceSpec> specs, const SupervisorOptions& options,
                       SupervisorEvents events)
    : options_(options), events_(std::move(events)) {
  services_.resize(specs.size());
  for (size_t i = 0; i < specs.size(); ++i) {
    services_[i].spec = std::move(specs[i]);
    services_[i].backoff = options_.first_backoff;
  }
  sigset_t signals;
  sigemptyset(&signals);
  for (const int signal : {SIGTERM, SIGINT, SIGHUP, SIGCHLD}) sigaddset(&signals, signal);
  sigprocmask(SIG_BLOCK, &signals, &old_mask_);
  signal_fd_ = signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
}

Supervisor::~Supervisor() {
  services_.clear();  // kills what a failed start left
  close(signal_fd_);
  sigprocmask(SIG_SETMASK, &old_mask_, nullptr);
}

std::vector<ServiceStatus> Supervisor::Statuses() const {
  std::vector<ServiceStatus> statuses;
  for (const Service& service : services_) {
    statuses.push_back({service.spec.name, service.state,
                        service.child.running() ? service.child.pid() : 0, service.since,
                        service.restarts, service.spec.log_path});
  }
  return statuses;
}

absl::Status Supervisor::Run() {
  const absl::Time deadline = absl::Now() + options_.start_timeout;
  absl::Status result;
  while (true) {
    const absl::Time now = absl::Now();
    result = StartReadyOnes(now);
    if (!result.ok()) break;
    WaitForEvents(kIdlePoll);
    if (TakeSignals()) break;
    result = NoticeDeaths(absl::Now());
    if (!result.ok()) break;
    CheckHealth(absl::Now());
    if (!all_ready_ && absl::Now() > deadline) {
      result = absl::DeadlineExceededError(
          absl::StrCat("not ready after ", absl::FormatDuration(options_.start_timeout), ": ",
                       NotReady(), "; their logs say why"));
      break;
    }
  }
  StopAll();
  return result;
}

absl::Status Supervisor::StartReadyOnes(absl::Time now) {
  for (Service& service : services_) {
    if (service.state == ServiceState::kRestarting && now >= service.restart_at) {
      ++service.restarts;
      RETURN_IF_ERROR(StartService(service, now));
    }
    if (service.state != ServiceState::kWaiting) continue;
    const bool may_start = std::all_of(
        service.spec.after.begin(), service.spec.after.end(), [this](const std::string& name) {
          return std::any_of(services_.begin(), services_.end(), [&name](const Service& other) {
            return other.spec.name == name && other.was_ready;
          });
        });
    if (may_start) RETURN_IF_ERROR(StartService(service, now));
  }
  return absl::OkStatus();
}

absl::Status Supervisor::StartService(Service& service, absl::Time now) {
  if (service.log.path().empty()) {
    ASSIGN_OR_RETURN(service.log, LogFile::Open(service.spec.log_path));
  }
  if (!service.spec.ready_file.empty()) unlink(service.spec.ready_file.c_str());
  ChildOptions child;
  child.command = service.spec.command;
  child.environment = service.spec.environment;
  absl::StatusOr<ChildProcess> started = ChildProcess::Start(child);
  if (!started.ok()) {
    // While running, a program that cannot be started may come back (an upgrade in progress).
    if (!service.was_ready) return started.status();
    Say(absl::StrCat(service.spec.name, ": ", started.status().message()));
    service.backoff = std::min(service.backoff * 2, options_.longest_backoff);
    service.restart_at = now + service.backoff;
    return absl::OkStatus();
  }
  service.child = *std::move(started);
  service.since = now;
  service.last_answer = now;
  service.next_probe = now;
  service.ready_since = absl::InfiniteFuture();
  service.probe = Probe();
  SetState(service, ServiceState::kStarting);
  return absl::OkStatus();
}

void Supervisor::WaitForEvents(absl::Duration at_most) {
  std::vector<pollfd> files = {{signal_fd_, POLLIN, 0}};
  absl::Time wake = absl::Now() + at_most;
  for (const Service& service : services_) {
    if (service.child.output_fd() >= 0) files.push_back({service.child.output_fd(), POLLIN, 0});
    if (stopping_) continue;  // nothing is asked or started any more
    if (service.probe.running()) {
      files.push_back({service.probe.fd(), service.probe.poll_events(), 0});
      wake = std::min(wake, service.probe.deadline());
    } else if (service.child.running()) {
      wake = std::min(wake, service.next_probe);
    }
    if (service.state == ServiceState::kRestarting) wake = std::min(wake, service.restart_at);
  }
  const int64_t timeout_ms = absl::ToInt64Milliseconds(wake - absl::Now() + absl::Milliseconds(1));
  poll(files.data(), files.size(), static_cast<int>(std::max<int64_t>(timeout_ms, 0)));
  for (Service& service : services_) ReadOutput(service);
}

bool Supervisor::TakeSignals() {
  bool stop = false;
  signalfd_siginfo info;
  while (read(signal_fd_, &info, sizeof(info)) == sizeof(info)) {
    stop |= info.ssi_signo != SIGCHLD;
  }
  return stop;
}

void Supervisor::ReadOutput(Service& service) {
  char buffer[1 << 16];
  while (service.child.output_fd() >= 0) {
    const ssize_t count = read(service.child.output_fd(), buffer, sizeof(buffer));
    if (count < 0 && errno == EINTR) continue;
    // A child that closed its output would make every poll return at once.
    if (count == 0) service.child.CloseOutput();
    if (count <= 0) return;
    service.log.Write(absl::string_view(buffer, count));
  }
}

absl::Status Supervisor::NoticeDeaths(absl::Time now) {
  for (Service& service : services_) {
    if (!service.child.running()) continue;
    const ChildExit exit = service.child.Poll();
    if (exit.ended) RETURN_IF_ERROR(OnExit(service, exit, now));
  }
  return absl::OkStatus();
}

absl::Status Supervisor::OnExit(Service& service, const ChildExit& exit, absl::Time now) {
  ReadOutput(service);
  service.child = ChildProcess();
  service.probe = Probe();
  const bool gave_up = !exit.by_signal || service.restarts + 1 >= kStartAttempts;
  if (!service.was_ready && gave_up) {
    const std::string said = MessageOfLogLine(service.log.last_line());
    return absl::FailedPreconditionError(absl::StrCat(
        service.spec.name, " ended before it was ready (", exit.ToString(), ")",
        said.empty() ? "" : absl::StrCat(": ", said), "\nits log: ", service.spec.log_path));
  }
  if (now - service.ready_since >= options_.stable_after) service.backoff = options_.first_backoff;
  service.restart_at = now + service.backoff;
  Say(absl::StrCat(service.spec.name, " ended (", exit.ToString(), "): starting it again in ",
                   absl::FormatDuration(service.backoff)));
  service.backoff = std::min(service.backoff * 2, options_.longest_backoff);
  SetState(service, ServiceState::kRestarting);
  return absl::OkStatus();
}

void Supervisor::CheckHealth(absl::Time now) {
  for (Service& service : services_) {
    if (!service.child.running()) continue;
    if (!service.probe.running()) {
      if (now < service.next_probe) continue;
      const bool starting = service.state == ServiceState::kStarting;
      service.next_probe = now + (starting ? kStartPollInterval : options_.health_interval);
      const std::string& ready_file = service.spec.ready_file;
      if (starting && !ready_file.empty() && !FileExists(ready_file)) continue;
      if (service.spec.health.empty()) {
        OnHealth(service, Probe::Outcome::kGood, now);
        continue;
      }
      service.probe = Probe(service.spec.health, now + options_.health_timeout);
    }
    const Probe::Outcome outcome = service.probe.Step(now);
    if (outcome != Probe::Outcome::kPending) OnHealth(service, outcome, now);
  }
}

void Supervisor::OnHealth(Service& service, Probe::Outcome outcome, absl::Time now) {
  service.probe = Probe();
  if (outcome != Probe::Outcome::kNoAnswer) service.last_answer = now;
  if (outcome == Probe::Outcome::kGood) {
    if (service.state == ServiceState::kReady) return;
    if (service.state == ServiceState::kStarting) {
      service.ready_since = now;
      if (service.was_ready) Say(absl::StrCat(service.spec.name, " is ready again"));
    }
    service.was_ready = true;
    SetState(service, ServiceState::kReady);
    TellIfReady();
    return;
  }
  if (service.state == ServiceState::kStarting) return;
  if (service.state == ServiceState::kReady) SetState(service, ServiceState::kUnhealthy);
  if (now - service.last_answer > options_.hang_timeout) {
    Say(absl::StrCat(service.spec.name, " has not answered for ",
                     absl::FormatDuration(options_.hang_timeout), ": killing it"));
    service.child.Signal(SIGKILL);
    service.last_answer = now;
  }
}

void Supervisor::TellIfReady() {
  if (all_ready_) return;
  all_ready_ = std::all_of(services_.begin(), services_.end(),
                           [](const Service& service) { return service.was_ready; });
  if (all_ready_ && events_.on_ready) events_.on_ready();
}

void Supervisor::StopAll() {
  stopping_ = true;
  std::vector<int> ranks;
  for (Service& service : services_) {
    ranks.push_back(service.spec.stop_rank);
    service.probe = Probe();
    if (!service.child.running()) SetState(service, ServiceState::kStopped);
  }
  std::sort(ranks.begin(), ranks.end());
  ranks.erase(std::unique(ranks.begin(), ranks.end()), ranks.end());
  bool hurry = false;
  for (const int rank : ranks) {
    const absl::Time started = absl::Now();
    for (Service& service : services_) {
      if (service.spec.stop_rank != rank || !service.child.running()) continue;
      SetState(service, ServiceState::kStopping);
      service.child.Signal(SIGTERM);
    }
    while (true) {
      bool running = false;
      for (Service& service : services_) {
        if (!service.child.running()) continue;
        // One that dies while others are being stopped is not started again.
        if (const ChildExit exit = service.child.Poll(); exit.ended) {
          ReadOutput(service);
          service.child = ChildProcess();
          SetState(service, ServiceState::kStopped);
          continue;
        }
        if (service.spec.stop_rank != rank) continue;
        running = true;
        if (hurry || absl::Now() - started > service.spec.grace) {
          if (!hurry) Say(absl::StrCat(service.spec.name, " did not end in time: killing it"));
          service.child.Signal(SIGKILL);
        }
      }
      if (!running) break;
      WaitForEvents(absl::Milliseconds(100));
      hurry |= TakeSignals();
    }
  }
}

void Supervisor::SetState(Service& service, ServiceState state) {
  if (service.state == state) return;
  service.state = state;
  if (events_.on_change) events_.on_change();
}

std::string Supervisor::NotReady() const {
  std::vector<std::string> names;
  for (const Service& service : services_) {
    if (!service.was_ready) {
      names.push_back(absl::StrCat(service.spec.name, " (", StateName(service.state), ")"));
    }
  }
  return absl::StrJoin(names, ", ");
}

void Supervisor::Say(absl::string_view text) const {
  if (events_.on_message) events_.on_message(text);
}

}  // namespace mneme::cli
