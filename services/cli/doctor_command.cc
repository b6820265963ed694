// `mneme doctor`: finds what is wrong and says what to do.
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "common/config/config.h"
#include "common/status/status_macros.h"
#include "mneme/cli/v1/config.pb.h"
#include "nlohmann/json.hpp"
#include "services/cli/commands.h"
#include "services/cli/console.h"
#include "services/cli/data_folder.h"
#include "services/cli/doctor_checks.h"
#include "services/cli/local_redis.h"
#include "services/cli/redis_checks.h"
#include "services/cli/up_plan.h"

namespace mneme::cli {
namespace {

struct DoctorFlags {
  std::string data;
  std::string model;
  std::string host = "127.0.0.1";
  std::optional<int> http_port = kDefaultHttpPort;
  std::optional<int> grpc_port = kDefaultGrpcPort;
  memory::v1::RedisConfig redis;
  bool json = false;
};

const char* LevelName(Finding::Level level) {
  switch (level) {
    case Finding::Level::kOk:
      return "ok";
    case Finding::Level::kWarning:
      return "warning";
    case Finding::Level::kBad:
      return "bad";
  }
  return "bad";
}

// What a running `mneme up` says of its services.
std::vector<Finding> CheckServices(const DataFolder& folder) {
  const absl::StatusOr<v1::UpState> state = folder.ReadState();
  if (!state.ok()) {
    return {{"services", Finding::Level::kOk, "none running on this data folder", ""}};
  }
  std::vector<Finding> findings;
  for (const auto& [name, service] : state->services()) {
    Finding finding = {absl::StrCat("service ", name), Finding::Level::kOk,
                       absl::StrCat(service.state(), ", ", service.restarts(), " restarts"), ""};
    if (service.state() != "ready" || service.restarts() > 0) {
      finding.level = service.state() == "ready" ? Finding::Level::kWarning : Finding::Level::kBad;
      finding.advice = absl::StrCat("its log says why: ", service.log());
    }
    findings.push_back(std::move(finding));
  }
  return findings;
}

std::vector<Finding> Examine(const DoctorFlags& flags) {
  const DataFolder folder(flags.data);
  std::vector<Finding> findings = {CheckPrograms()};
  const auto add = [&findings](std::vector<Finding> more) {
    for (Finding& finding : more) findings.push_back(std::move(finding));
  };
  int64_t model_bytes = 0;
  Finding model = CheckModel(folder, flags.model, &model_bytes);
  add({JudgeCpu(config::ReadFile("/proc/cpuinfo").value_or("")),
       JudgeMemory(config::ReadFile("/proc/meminfo").value_or(""), model_bytes), CheckGpu(),
       std::move(model), CheckDataFolder(folder), CheckDisk("disk", folder.path()),
       CheckDisk("disk of the cache", CacheFolder()), CheckOpenFiles(),
       CheckPort(flags.host, *flags.http_port, "--http-port", folder),
       CheckPort(flags.host, *flags.grpc_port, "--grpc-port", folder)});
  memory::v1::RedisConfig redis = flags.redis;
  if (!IsExternal(redis)) {
    findings.push_back(CheckRedisServer());
    const absl::StatusOr<v1::UpState> state = folder.ReadState();
    if (state.ok() && state->redis().state() == "ready") {
      redis.set_address(state->redis().address());
      redis.set_password_file(folder.File("redis/password"));
    }
  }
  if (IsExternal(redis)) add(CheckRedis(redis));
  add(CheckServices(folder));
  return findings;
}

// What the command line says of a Redis, over what --config says.
struct RedisFlags {
  std::string config_file;
  std::string address;
  std::string mode;
  std::string master_name;
  std::string user;
  std::string password_file;
  bool tls = false;
  std::string ca_file;
};

absl::StatusOr<memory::v1::RedisConfig> RedisOf(const RedisFlags& flags) {
  v1::UpConfig config;
  if (!flags.config_file.empty()) {
    RETURN_IF_ERROR(config::FromFile(flags.config_file, &config));
  }
  memory::v1::RedisConfig redis = config.redis();
  if (!flags.address.empty()) {
    redis.clear_address();
    redis.clear_addresses();
    const std::vector<std::string> addresses = absl::StrSplit(flags.address, ',');
    if (addresses.size() == 1) {
      redis.set_address(addresses[0]);
    } else {
      for (const std::string& address : addresses) redis.add_addresses(address);
    }
  }
  if (flags.mode == "cluster") {
    redis.set_mode(memory::v1::REDIS_MODE_CLUSTER);
  } else if (flags.mode == "sentinel") {
    redis.set_mode(memory::v1::REDIS_MODE_SENTINEL);
  } else if (!flags.mode.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--redis-mode is cluster or sentinel: ", flags.mode));
  }
  if (!flags.master_name.empty()) redis.set_master_name(flags.master_name);
  if (!flags.user.empty()) redis.set_username(flags.user);
  if (!flags.password_file.empty()) redis.set_password_file(flags.password_file);
  if (flags.tls || !flags.ca_file.empty()) redis.set_tls(true);
  if (!flags.ca_file.empty()) redis.set_tls_ca_file(flags.ca_file);
  return redis;
}

}  // namespace

int DoctorCommand(const std::vector<std::string>& words) {
  DoctorFlags flags;
  RedisFlags redis;
  Arguments arguments("mneme doctor",
                      "Looks at this machine, the model and Redis, and says what to do. The exit "
                      "code is 1 if something is bad.");
  arguments.Option("data", "DIR", &flags.data,
                   "data folder (default $MNEME_DATA or ~/.local/share/mneme)");
  arguments.Option("model", "M", &flags.model, "name or path of the model to look at");
  arguments.Option("host", "HOST", &flags.host, "where the ports would be (default 127.0.0.1)");
  arguments.Option("http-port", "N", &flags.http_port, "default 8080");
  arguments.Option("grpc-port", "N", &flags.grpc_port, "default 8081");
  arguments.Option("config", "FILE", &redis.config_file,
                   "settings of `mneme up`: the Redis of its redis part is looked at");
  arguments.Option("redis", "HOST:PORT", &redis.address,
                   "a Redis to look at (default: our own); several with commas");
  arguments.Option("redis-mode", "MODE", &redis.mode,
                   "cluster, or sentinel where the addresses are of Sentinels");
  arguments.Option("redis-master", "NAME", &redis.master_name,
                   "what the Sentinels call the master");
  arguments.Option("redis-user", "NAME", &redis.user, "ACL user (default: the default one)");
  arguments.Option("redis-password-file", "FILE", &redis.password_file, "holds its password");
  arguments.Flag("redis-tls", &redis.tls, "it speaks TLS");
  arguments.Option("redis-ca-file", "FILE", &redis.ca_file,
                   "PEM of whom to trust (default: whom the system trusts)");
  arguments.Flag("json", &flags.json, "prints one line of JSON per finding");
  if (const std::optional<int> code = ParseOrExit(arguments, words)) return *code;
  absl::StatusOr<memory::v1::RedisConfig> redis_config = RedisOf(redis);
  if (!redis_config.ok()) return Fail(redis_config.status());
  flags.redis = *std::move(redis_config);
  int code = kExitOk;
  for (const Finding& finding : Examine(flags)) {
    if (finding.level == Finding::Level::kBad) code = kExitError;
    if (flags.json) {
      const nlohmann::ordered_json line = {{"what", finding.what},
                                           {"level", LevelName(finding.level)},
                                           {"found", finding.found},
                                           {"advice", finding.advice}};
      PrintLine(line.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
      continue;
    }
    const char* mark = finding.level == Finding::Level::kOk        ? "  ok  "
                       : finding.level == Finding::Level::kWarning ? " note "
                                                                   : " BAD  ";
    PrintLine(absl::StrCat(mark, finding.what, ": ", finding.found));
    if (!finding.advice.empty()) {
      PrintLine(absl::StrCat("        -> ",
                             absl::StrReplaceAll(finding.advice, {{"\n", "\n           "}})));
    }
  }
  return code;
}

}  // namespace mneme::cli
