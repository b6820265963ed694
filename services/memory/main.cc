// mneme-memory: keeps sessions in Redis.
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "common/config/config.h"
#include "common/redis/client.h"
#include "common/rpc/server.h"
#include "common/status/annotate.h"
#include "common/status/status_macros.h"
#include "mneme/memory/v1/config.pb.h"
#include "services/memory/master_key.h"
#include "services/memory/memory_metrics.h"
#include "services/memory/memory_plans.h"
#include "services/memory/memory_service.h"
#include "services/memory/redis_session_store.h"
#include "services/memory/session_errors.h"
#include "services/memory/store_options.h"
#include "services/memory/sweeper.h"
#include "services/memory/tenant_keys.h"

namespace mneme::memory {
namespace {

constexpr int kDefaultGraceMs = 10'000;
// A stopped Redis must not keep the service from noticing that it is to end.
constexpr absl::Duration kReadinessTimeout = absl::Seconds(1);
constexpr int kDefaultSweepIntervalMs = 60'000;
constexpr int kDefaultOrphanAgeSeconds = 600;

absl::StatusOr<redis::Options> RedisOptions(const v1::RedisConfig& config) {
  if (config.address().empty()) {
    return absl::InvalidArgumentError("redis.address is not set: give host:port");
  }
  redis::Options options{
      .address = config.address(), .username = config.username(), .database = config.database()};
  if (config.pool_size() < 0 || config.connect_timeout_ms() < 0 ||
      config.command_timeout_ms() < 0 || config.database() < 0) {
    return absl::InvalidArgumentError("a number in redis is negative");
  }
  if (config.pool_size() > 0) options.pool_size = config.pool_size();
  if (config.connect_timeout_ms() > 0) {
    options.connect_timeout = absl::Milliseconds(config.connect_timeout_ms());
  }
  if (config.command_timeout_ms() > 0) {
    options.command_timeout = absl::Milliseconds(config.command_timeout_ms());
  }
  if (!config.password_file().empty()) {
    absl::StatusOr<std::string> password = config::ReadFile(config.password_file());
    if (!password.ok()) return status::Annotate(password.status(), "redis.password_file");
    options.password = std::string(absl::StripSuffix(*password, "\n"));
  }
  return options;
}

absl::StatusOr<StoreOptions> OptionsOf(const v1::MemoryConfig& config) {
  if (config.default_ttl_seconds() < 0) {
    return absl::InvalidArgumentError("default_ttl_seconds is negative");
  }
  if (config.sweep_interval_ms() < 0 || config.orphan_age_seconds() < 0) {
    return absl::InvalidArgumentError("sweep_interval_ms or orphan_age_seconds is negative");
  }
  StoreOptions options{
      .default_ttl_seconds = config.default_ttl_seconds(),
      .orphan_age = absl::Seconds(config.orphan_age_seconds() > 0 ? config.orphan_age_seconds()
                                                                  : kDefaultOrphanAgeSeconds),
      .default_quota = config.default_quota()};
  for (const auto& [tenant, quota] : config.quotas()) options.quotas[tenant] = quota;
  return options;
}

absl::Status Run(const v1::MemoryConfig& config, rpc::Process& process) {
  ASSIGN_OR_RETURN(StoreOptions options, OptionsOf(config));
  ASSIGN_OR_RETURN(redis::Options redis_options, RedisOptions(config.redis()));
  metrics::Registry registry;
  MemoryMetrics metrics(registry);
  redis::Client redis(std::move(redis_options));
  ASSIGN_OR_RETURN(const crypto::Key master_key, LoadMasterKey(config.master_key_file()));
  TenantKeys keys(redis, master_key, config.master_key_file());
  // A wrong master key is not something that a running service recovers from; all else (Redis is
  // not there yet) is the readiness check's.
  const absl::Status opens = keys.Check(absl::Now() + kReadinessTimeout);
  if (status::PayloadOf(opens, status::kReasonPayload) == kWrongMasterKey) return opens;
  RedisSessionStore store(redis, keys, std::move(options), metrics.redis_errors());
  const Sweeper sweeper(
      store, absl::Milliseconds(config.sweep_interval_ms() > 0 ? config.sweep_interval_ms()
                                                               : kDefaultSweepIntervalMs));
  MemoryServiceImpl service(
      store, MemoryPlans({config.plan_defaults().begin(), config.plan_defaults().end()}), metrics);
  ASSIGN_OR_RETURN(const std::unique_ptr<rpc::Server> server,
                   rpc::Server::Start({.listen = config.listen(),
                                       .tls_certificate = config.tls_certificate(),
                                       .tls_key = config.tls_key()},
                                      {&service}));
  process.AddAddress("grpc", server->address());
  ASSIGN_OR_RETURN(const std::unique_ptr<metrics::MetricsServer> metrics_server,
                   process.StartMetrics(config.metrics_listen(), registry));
  RETURN_IF_ERROR(process.ServeUntilSignal(config.address_file(), *server, [&store] {
    return store.CheckReady(absl::Now() + kReadinessTimeout);
  }));
  server->Shutdown(absl::Milliseconds(config.grace_ms() > 0 ? config.grace_ms() : kDefaultGraceMs));
  return absl::OkStatus();
}

}  // namespace
}  // namespace mneme::memory

int main(int argc, char** argv) {
  return mneme::rpc::ServiceMain<mneme::memory::v1::MemoryConfig>(
      argc, argv, {"memory", "Keeps sessions: their messages, token log and committed versions."},
      mneme::memory::Run);
}
