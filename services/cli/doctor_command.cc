// `mneme doctor`: finds what is wrong and says what to do.
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "common/config/config.h"
#include "nlohmann/json.hpp"
#include "services/cli/commands.h"
#include "services/cli/console.h"
#include "services/cli/data_folder.h"
#include "services/cli/doctor_checks.h"
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
  if (redis.address().empty()) {
    findings.push_back(CheckRedisServer());
    const absl::StatusOr<v1::UpState> state = folder.ReadState();
    if (state.ok() && state->redis().state() == "ready") {
      redis.set_address(state->redis().address());
      redis.set_password_file(folder.File("redis/password"));
    }
  }
  if (!redis.address().empty()) add(CheckRedis(redis));
  add(CheckServices(folder));
  return findings;
}

}  // namespace

int DoctorCommand(const std::vector<std::string>& words) {
  DoctorFlags flags;
  std::string redis_address;
  std::string redis_user;
  std::string redis_password_file;
  Arguments arguments("mneme doctor",
                      "Looks at this machine, the model and Redis, and says what to do. The exit "
                      "code is 1 if something is bad.");
  arguments.Option("data", "DIR", &flags.data,
                   "data folder (default $MNEME_DATA or ~/.local/share/mneme)");
  arguments.Option("model", "M", &flags.model, "name or path of the model to look at");
  arguments.Option("host", "HOST", &flags.host, "where the ports would be (default 127.0.0.1)");
  arguments.Option("http-port", "N", &flags.http_port, "default 8080");
  arguments.Option("grpc-port", "N", &flags.grpc_port, "default 8081");
  arguments.Option("redis", "HOST:PORT", &redis_address, "a Redis to look at (default: our own)");
  arguments.Option("redis-user", "NAME", &redis_user, "ACL user (default: the default one)");
  arguments.Option("redis-password-file", "FILE", &redis_password_file, "holds its password");
  arguments.Flag("json", &flags.json, "prints one line of JSON per finding");
  if (const std::optional<int> code = ParseOrExit(arguments, words)) return *code;
  flags.redis.set_address(redis_address);
  flags.redis.set_username(redis_user);
  flags.redis.set_password_file(redis_password_file);
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
