// `mneme status`: what runs, and whether it is well.
#include <map>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/status/status_macros.h"
#include "services/cli/commands.h"
#include "services/cli/console.h"
#include "services/cli/data_folder.h"
#include "services/cli/local_redis.h"
#include "services/cli/probe.h"

namespace mneme::cli {
namespace {

constexpr absl::Duration kTimeout = absl::Seconds(3);

// Asks the service itself: up.json only says what the supervisor saw last.
void CheckHealth(const ProbeTarget& target, v1::ServiceState* service) {
  if (service->state() != "ready" && service->state() != "external") return;
  if (Ask(target, kTimeout) != Probe::Outcome::kGood) service->set_state("unhealthy");
}

bool Healthy(const v1::ServiceState& service) {
  return service.state() == "ready" || service.state() == "external";
}

std::string Since(const v1::ServiceState& service) {
  if (service.pid() == 0) return "-";
  const absl::Time since = absl::FromUnixSeconds(service.since().seconds());
  return absl::FormatDuration(absl::Trunc(absl::Now() - since, absl::Seconds(1)));
}

std::vector<std::string> Row(const std::string& name, const v1::ServiceState& service) {
  return {name,
          service.state(),
          service.pid() == 0 ? "-" : absl::StrCat(service.pid()),
          Since(service),
          absl::StrCat(service.restarts()),
          service.address(),
          service.metrics().empty() ? "-" : service.metrics()};
}

absl::StatusOr<v1::UpState> CheckedState(const DataFolder& folder) {
  ASSIGN_OR_RETURN(v1::UpState state, folder.ReadState());
  for (auto& [name, service] : *state.mutable_services()) {
    CheckHealth(HealthzOf(service.metrics()), &service);
  }
  // An external Redis may want a password that only the services know.
  if (state.redis().state() == "ready") {
    memory::v1::RedisConfig redis;
    redis.set_address(state.redis().address());
    redis.set_password_file(folder.File("redis/password"));
    ASSIGN_OR_RETURN(const ProbeTarget target, HealthOf(redis));
    CheckHealth(target, state.mutable_redis());
  }
  return state;
}

}  // namespace

int StatusCommand(const std::vector<std::string>& words) {
  std::string data;
  bool json = false;
  Arguments arguments("mneme status",
                      "Shows what `mneme up` runs. The exit code is 0 only if all of it is well.");
  arguments.Option("data", "DIR", &data,
                   "data folder (default $MNEME_DATA or ~/.local/share/mneme)");
  arguments.Flag("json", &json, "prints one line of JSON");
  if (const std::optional<int> code = ParseOrExit(arguments, words)) return *code;
  const absl::StatusOr<v1::UpState> state = CheckedState(DataFolder(data));
  if (!state.ok()) return Fail(state.status());
  bool healthy = state->ready() && Healthy(state->redis());
  std::vector<std::vector<std::string>> rows = {
      {"service", "state", "pid", "up", "restarts", "address", "metrics"}};
  rows.push_back(Row("redis", state->redis()));
  // A map of its own: a proto's has no order.
  const std::map<std::string, v1::ServiceState> services(state->services().begin(),
                                                         state->services().end());
  for (const auto& [name, service] : services) {
    healthy &= Healthy(service);
    rows.push_back(Row(name, service));
  }
  if (json) {
    PrintLine(ToJsonLine(*state));
  } else {
    PrintLine(absl::StrCat(Table(rows), "\nOpenAI HTTP  http://", state->http(),
                           "/v1\ngRPC         ", state->grpc(), "\nmodel        ", state->model(),
                           "\nlogs         ", state->data(), "/logs"));
  }
  return healthy ? kExitOk : kExitError;
}

}  // namespace mneme::cli
