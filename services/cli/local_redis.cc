#include "services/cli/local_redis.h"

#include <openssl/rand.h>

#include <filesystem>
#include <system_error>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/time/clock.h"
#include "common/config/config.h"
#include "common/redis/client.h"
#include "common/redis/config.h"
#include "common/status/annotate.h"
#include "common/status/status_macros.h"
#include "services/cli/child_process.h"

namespace mneme::cli {
namespace {

constexpr int kPasswordBytes = 32;
constexpr absl::Duration kExternalTimeout = absl::Seconds(5);

absl::StatusOr<std::string> PasswordOf(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string content, config::ReadFile(path));
  return std::string(absl::StripAsciiWhitespace(content));
}

absl::Status MakePassword(const std::string& path) {
  std::error_code error;
  if (std::filesystem::exists(path, error)) return absl::OkStatus();
  unsigned char bytes[kPasswordBytes];
  if (RAND_bytes(bytes, sizeof(bytes)) != 1) {
    return absl::InternalError("the system gives no random numbers");
  }
  return config::WriteFileAtomically(path,
                                     absl::BytesToHexString(absl::string_view(
                                         reinterpret_cast<const char*>(bytes), sizeof(bytes))),
                                     0600);
}

}  // namespace

absl::StatusOr<ProbeTarget> HealthOf(const memory::v1::RedisConfig& redis) {
  std::string password;
  if (!redis.password_file().empty()) {
    ASSIGN_OR_RETURN(password, PasswordOf(redis.password_file()));
  }
  return PingOf(redis.address(), redis.username(), password);
}

absl::StatusOr<LocalRedis> PrepareLocalRedis(const DataFolder& folder, const std::string& address) {
  const std::string program = FindInPath("redis-server");
  if (program.empty()) {
    return absl::NotFoundError(
        "redis-server is not installed (not found in PATH)\n"
        "install it: apt-get install redis-server; or use a Redis of yours: --config FILE with "
        "{\"redis\": {\"address\": \"host:port\"}}");
  }
  const std::string password_file = folder.File("redis/password");
  RETURN_IF_ERROR(MakePassword(password_file));
  ASSIGN_OR_RETURN(const std::string password, PasswordOf(password_file));
  const size_t colon = address.rfind(':');
  // Every committed turn is on the disk before it is acknowledged; the append-only file alone is
  // enough for that, and nothing may be evicted to make room.
  const std::string settings = absl::StrCat(
      "bind ", address.substr(0, colon), "\nport ", address.substr(colon + 1), "\ndir \"",
      absl::StrReplaceAll(folder.File("redis"), {{"\\", "\\\\"}, {"\"", "\\\""}}),
      "\"\nrequirepass ", password,
      "\ndaemonize no\nlogfile \"\"\nappendonly yes\nappendfsync always\nsave \"\"\n"
      "maxmemory-policy noeviction\n");
  const std::string settings_file = folder.File("redis/redis.conf");
  RETURN_IF_ERROR(config::WriteFileAtomically(settings_file, settings, 0600));
  LocalRedis local;
  local.command = {program, settings_file};
  local.connection.set_address(address);
  local.connection.set_password_file(password_file);
  ASSIGN_OR_RETURN(local.health, HealthOf(local.connection));
  return local;
}

bool IsExternal(const memory::v1::RedisConfig& redis) {
  return !redis.address().empty() || redis.addresses_size() > 0;
}

absl::Status CheckExternalRedis(const memory::v1::RedisConfig& redis) {
  ASSIGN_OR_RETURN(const redis::Options options, redis::OptionsOf(redis));
  redis::Client client(options);
  const absl::Status status = client.Ping(absl::Now() + kExternalTimeout);
  if (status.ok()) return status;
  return absl::Status(
      status.code(),
      absl::StrCat("the Redis of --config cannot be used: ", status.message(),
                   "\n`mneme doctor` with the same --config looks at it; without a redis part one "
                   "is started"));
}

}  // namespace mneme::cli
