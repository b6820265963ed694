// `mneme up`: starts every service, watches over them, stops them.
#include <csignal>
#include <cstdio>
#include <map>
#include <optional>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "common/config/config.h"
#include "common/log/log.h"
#include "common/status/status_macros.h"
#include "services/cli/commands.h"
#include "services/cli/console.h"
#include "services/cli/data_folder.h"
#include "services/cli/log_file.h"
#include "services/cli/supervisor.h"
#include "services/cli/up_plan.h"

namespace mneme::cli {
namespace {

// The flags of the command line; what is not given leaves the configuration file's value.
struct UpFlags {
  std::optional<std::string> data, model, compute, device, keys, host;
  std::optional<int> http_port, grpc_port, executors, redis_budget_mib;
  std::string config_file;
  bool json = false;
};

absl::StatusOr<v1::UpConfig> ConfigOf(const UpFlags& flags) {
  v1::UpConfig config;
  if (!flags.config_file.empty()) {
    RETURN_IF_ERROR(config::FromFile(flags.config_file, &config));
  }
  if (flags.data) config.set_data(*flags.data);
  if (flags.model) config.set_model(*flags.model);
  if (flags.compute) config.set_compute(*flags.compute);
  if (flags.device) config.set_device(*flags.device);
  if (flags.keys) config.set_keys_file(*flags.keys);
  if (flags.host) config.set_host(*flags.host);
  if (flags.http_port) config.set_http_port(*flags.http_port);
  if (flags.grpc_port) config.set_grpc_port(*flags.grpc_port);
  if (flags.executors) config.set_executors(*flags.executors);
  if (flags.redis_budget_mib) {
    if (*flags.redis_budget_mib < 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("--redis-budget is negative: ", *flags.redis_budget_mib));
    }
    config.mutable_memory()->mutable_tiers()->set_redis_budget_bytes(
        static_cast<int64_t>(*flags.redis_budget_mib) << 20);
  }
  const auto one_of = [](absl::string_view flag, const std::string& value,
                         const std::set<std::string>& allowed) {
    if (value.empty() || allowed.contains(value)) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat("no such ", flag, ": ", value));
  };
  RETURN_IF_ERROR(one_of("--compute (float32, bfloat16 or auto)", config.compute(),
                         {"float32", "bfloat16", "auto"}));
  RETURN_IF_ERROR(one_of("--device (cpu, cuda or auto)", config.device(), {"cpu", "cuda", "auto"}));
  if (config.executors() < 0 || config.executors() > 64) {
    return absl::InvalidArgumentError(
        absl::StrCat("--executors must be between 1 and 64: ", config.executors()));
  }
  return config;
}

// What is told while it runs: to the terminal, to logs/mneme.log and to up.json.
class Reporter {
 public:
  Reporter(const DataFolder& folder, v1::UpState state, LogFile log, bool json)
      : folder_(folder), state_(std::move(state)), log_(std::move(log)), json_(json) {}

  void Message(absl::string_view text) {
    PrintErrorLine(absl::StrCat("mneme: ", text));
    log_.Write(absl::StrCat(
        "{\"time\":\"", absl::FormatTime("%Y-%m-%dT%H:%M:%E3SZ", absl::Now(), absl::UTCTimeZone()),
        "\",\"service\":\"mneme\",\"message\":", log::JsonString(text), "}\n"));
  }

  void Changed(const std::vector<ServiceStatus>& statuses) {
    UpdateState(statuses, &state_);
    for (const ServiceStatus& status : statuses) {
      if (status.state != ServiceState::kReady || state_.ready()) continue;
      if (!told_.insert(status.name).second) continue;
      Message(absl::StrFormat("%s is ready (%.1f s)", status.name,
                              absl::ToDoubleSeconds(absl::Now() - status.since)));
    }
    WriteState();
  }

  void Ready() {
    state_.set_ready(true);
    WriteState();
    if (json_) {
      PrintLine(ToJsonLine(state_));
      return;
    }
    PrintLine(absl::StrCat("Mneme is ready.\n\n  OpenAI HTTP  http://", state_.http(),
                           "/v1\n  gRPC         ", state_.grpc(), "\n  model        ",
                           state_.model(), "\n  data, logs   ", folder_.path(),
                           "\n\nTry `mneme chat` in another terminal. Ctrl-C or `mneme down` "
                           "stops everything."));
  }

  // A full disk must not stop the services; it is told once.
  void WriteState() {
    const absl::Status written =
        config::WriteFileAtomically(folder_.state_file(), config::ToJson(state_), 0600);
    if (!written.ok() && !write_failed_) Message(written.message());
    write_failed_ = !written.ok();
  }

 private:
  const DataFolder& folder_;
  v1::UpState state_;
  LogFile log_;
  const bool json_;
  bool write_failed_ = false;
  std::set<std::string> told_;
};

absl::Status Up(const UpFlags& flags) {
  ASSIGN_OR_RETURN(const v1::UpConfig config, ConfigOf(flags));
  const DataFolder folder(config.data());
  RETURN_IF_ERROR(folder.Create());
  ASSIGN_OR_RETURN(const DataFolderLock lock, DataFolderLock::Take(folder));
  std::remove(folder.state_file().c_str());
  ASSIGN_OR_RETURN(UpPlan plan, PlanUp(config, folder));
  ASSIGN_OR_RETURN(LogFile log, LogFile::Open(folder.File("logs/mneme.log")));
  Reporter reporter(folder, plan.state, std::move(log), flags.json);
  reporter.Message(absl::StrCat("starting ", plan.services.size(), " processes with model ",
                                plan.state.model(), ", data in ", folder.path()));
  SupervisorOptions options;
  if (config.start_timeout_ms() > 0) {
    options.start_timeout = absl::Milliseconds(config.start_timeout_ms());
  }
  Supervisor* running = nullptr;
  SupervisorEvents events;
  events.on_message = [&](absl::string_view text) { reporter.Message(text); };
  events.on_change = [&] { reporter.Changed(running->Statuses()); };
  events.on_ready = [&] { reporter.Ready(); };
  Supervisor supervisor(std::move(plan.services), options, std::move(events));
  running = &supervisor;
  const absl::Status result = supervisor.Run();
  if (result.ok()) reporter.Message("stopped");
  std::remove(folder.state_file().c_str());
  return result;
}

}  // namespace

int UpCommand(const std::vector<std::string>& words) {
  UpFlags flags;
  Arguments arguments("mneme up",
                      "Starts redis-server and every service on this machine, restarts what dies, "
                      "and stops all on Ctrl-C.");
  arguments.Option("data", "DIR", &flags.data,
                   "data folder (default $MNEME_DATA or ~/.local/share/mneme)");
  arguments.Option("http-port", "N", &flags.http_port,
                   "port of the OpenAI-compatible front (default 8080; 0: any free one)");
  arguments.Option("grpc-port", "N", &flags.grpc_port,
                   "port of the gRPC front (default 8081; 0: any free one)");
  arguments.Option("host", "HOST", &flags.host, "address to listen on (default 127.0.0.1)");
  arguments.Option("model", "M", &flags.model, "name or path of the model (see `mneme models`)");
  arguments.Option("compute", "TYPE", &flags.compute, "float32, bfloat16 or auto (default)");
  arguments.Option("device", "DEVICE", &flags.device, "cpu, cuda or auto (default)");
  arguments.Option("executors", "N", &flags.executors, "executor processes (default 1)");
  arguments.Option(
      "redis-budget", "MIB", &flags.redis_budget_mib,
      "MiB of Redis for sessions' memory, the rest goes to disk (default 0: no bound)");
  arguments.Option("keys", "FILE", &flags.keys,
                   "API keys (default keys.json of the data folder; see `mneme keys`)");
  arguments.Option("config", "FILE", &flags.config_file,
                   "settings as JSON (mneme.cli.v1.UpConfig); flags override them");
  arguments.Flag("json", &flags.json, "prints one line of JSON once all is ready");
  if (const std::optional<int> code = ParseOrExit(arguments, words)) return *code;
  // Whoever reads our output may go away; the services go on.
  std::signal(SIGPIPE, SIG_IGN);
  const absl::Status status = Up(flags);
  return status.ok() ? kExitOk : Fail(status);
}

}  // namespace mneme::cli
