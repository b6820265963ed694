#include "common/redis/config.h"

#include <string>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "common/config/config.h"
#include "common/status/annotate.h"
#include "common/status/status_macros.h"

namespace mneme::redis {
namespace {

absl::StatusOr<std::string> ReadPassword(absl::string_view field, const std::string& path) {
  if (path.empty()) return std::string();
  const absl::StatusOr<std::string> content = config::ReadFile(path);
  if (!content.ok()) return status::Annotate(content.status(), field);
  return std::string(absl::StripAsciiWhitespace(*content));
}

absl::Status CheckServers(const memory::v1::RedisConfig& config) {
  const bool has_list = config.addresses_size() > 0;
  switch (config.mode()) {
    case memory::v1::REDIS_MODE_UNSPECIFIED:
      if (has_list) {
        return absl::InvalidArgumentError(
            "redis.addresses goes with redis.mode: set it, or give redis.address alone");
      }
      if (config.address().empty()) {
        return absl::InvalidArgumentError("redis.address is not set: give host:port");
      }
      break;
    case memory::v1::REDIS_MODE_CLUSTER:
      if (config.database() != 0) {
        return absl::InvalidArgumentError("a Redis Cluster has one database: leave redis.database");
      }
      break;
    case memory::v1::REDIS_MODE_SENTINEL:
      break;
    default:
      return absl::InvalidArgumentError(absl::StrCat("redis.mode is unknown: ", config.mode()));
  }
  if (!has_list && config.address().empty()) {
    return absl::InvalidArgumentError(
        "redis.addresses is not set: give host:port of some nodes of the Cluster, or of the "
        "Sentinels");
  }
  const bool is_sentinel = config.mode() == memory::v1::REDIS_MODE_SENTINEL;
  if (is_sentinel == config.master_name().empty()) {
    return absl::InvalidArgumentError(
        is_sentinel ? "redis.master_name is not set: give what the Sentinels call the master"
                    : "redis.master_name goes with redis.mode REDIS_MODE_SENTINEL");
  }
  return absl::OkStatus();
}

absl::Status CheckTls(const memory::v1::RedisConfig& config) {
  if (!config.tls() && !(config.tls_ca_file().empty() && config.tls_certificate().empty() &&
                         config.tls_key().empty() && config.tls_server_name().empty())) {
    return absl::InvalidArgumentError("redis.tls is not set, but other fields redis.tls_… are");
  }
  if (config.tls_certificate().empty() != config.tls_key().empty()) {
    return absl::InvalidArgumentError(
        "redis.tls_certificate and redis.tls_key go together: set both or none");
  }
  return absl::OkStatus();
}

Mode ModeOf(memory::v1::RedisMode mode) {
  if (mode == memory::v1::REDIS_MODE_CLUSTER) return Mode::kCluster;
  if (mode == memory::v1::REDIS_MODE_SENTINEL) return Mode::kSentinel;
  return Mode::kSingle;
}

}  // namespace

absl::StatusOr<Options> OptionsOf(const memory::v1::RedisConfig& config) {
  RETURN_IF_ERROR(CheckServers(config));
  RETURN_IF_ERROR(CheckTls(config));
  if (config.pool_size() < 0 || config.connect_timeout_ms() < 0 ||
      config.command_timeout_ms() < 0 || config.database() < 0 || config.wait_for_replicas() < 0 ||
      config.replica_timeout_ms() < 0) {
    return absl::InvalidArgumentError("a number in redis is negative");
  }
  Options options;
  options.mode = ModeOf(config.mode());
  options.address = config.address();
  options.addresses.assign(config.addresses().begin(), config.addresses().end());
  options.master_name = config.master_name();
  options.username = config.username();
  options.sentinel_username = config.sentinel_username();
  ASSIGN_OR_RETURN(options.password, ReadPassword("redis.password_file", config.password_file()));
  ASSIGN_OR_RETURN(options.sentinel_password,
                   ReadPassword("redis.sentinel_password_file", config.sentinel_password_file()));
  options.database = config.database();
  if (config.pool_size() > 0) options.pool_size = config.pool_size();
  if (config.connect_timeout_ms() > 0) {
    options.connect_timeout = absl::Milliseconds(config.connect_timeout_ms());
  }
  if (config.command_timeout_ms() > 0) {
    options.command_timeout = absl::Milliseconds(config.command_timeout_ms());
  }
  options.wait_for_replicas = config.wait_for_replicas();
  if (config.replica_timeout_ms() > 0) {
    options.replica_timeout = absl::Milliseconds(config.replica_timeout_ms());
  }
  options.tls = {.enabled = config.tls(),
                 .ca_file = config.tls_ca_file(),
                 .certificate = config.tls_certificate(),
                 .key = config.tls_key(),
                 .server_name = config.tls_server_name()};
  return options;
}

}  // namespace mneme::redis
