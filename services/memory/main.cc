// mneme-memory: keeps sessions in Redis.
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/crypto/sha256.h"
#include "common/log/log.h"
#include "common/redis/client.h"
#include "common/redis/config.h"
#include "common/rpc/server.h"
#include "common/status/annotate.h"
#include "common/status/status_macros.h"
#include "mneme/memory/v1/config.pb.h"
#include "services/memory/disk_tier.h"
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

absl::StatusOr<StoreOptions> OptionsOf(const v1::MemoryConfig& config) {
  if (config.default_ttl_seconds() < 0) {
    return absl::InvalidArgumentError("default_ttl_seconds is negative");
  }
  if (config.sweep_interval_ms() < 0 || config.orphan_age_seconds() < 0) {
    return absl::InvalidArgumentError("sweep_interval_ms or orphan_age_seconds is negative");
  }
  if (config.tiers().redis_budget_bytes() < 0) {
    return absl::InvalidArgumentError("tiers.redis_budget_bytes is negative");
  }
  if (config.tiers().disk_budget_bytes() < 0) {
    return absl::InvalidArgumentError("tiers.disk_budget_bytes is negative");
  }
  if (config.tiers().disk_budget_bytes() > 0 && config.tiers().disk_path().empty()) {
    return absl::InvalidArgumentError("tiers.disk_budget_bytes needs tiers.disk_path");
  }
  StoreOptions options{
      .default_ttl_seconds = config.default_ttl_seconds(),
      .orphan_age = absl::Seconds(config.orphan_age_seconds() > 0 ? config.orphan_age_seconds()
                                                                  : kDefaultOrphanAgeSeconds),
      .redis_budget_bytes = config.tiers().redis_budget_bytes(),
      .default_quota = config.default_quota()};
  for (const auto& [tenant, quota] : config.quotas()) options.quotas[tenant] = quota;
  return options;
}

// What the services that know the same sessions have in common: the key that opens them, and the
// database that they are in.
std::string StoreId(const crypto::Key& master_key, const v1::MemoryConfig& config) {
  constexpr size_t kDigits = 32;
  return absl::BytesToHexString(crypto::Mac(master_key, absl::StrCat("disk tier of database ",
                                                                     config.redis().database())))
      .substr(0, kDigits);
}

absl::Status Run(const v1::MemoryConfig& config, rpc::Process& process) {
  ASSIGN_OR_RETURN(StoreOptions options, OptionsOf(config));
  ASSIGN_OR_RETURN(redis::Options redis_options, redis::OptionsOf(config.redis()));
  metrics::Registry registry;
  MemoryMetrics metrics(registry);
  redis::Client redis(std::move(redis_options));
  ASSIGN_OR_RETURN(const crypto::Key master_key, LoadMasterKey(config.master_key_file()));
  TenantKeys keys(redis, master_key, config.master_key_file());
  // A wrong master key is not something that a running service recovers from; all else (Redis is
  // not there yet) is the readiness check's.
  const absl::Status opens = keys.Check(absl::Now() + kReadinessTimeout);
  if (status::PayloadOf(opens, status::kReasonPayload) == kWrongMasterKey) return opens;
  std::unique_ptr<DiskTier> disk;
  if (!config.tiers().disk_path().empty()) {
    disk = std::make_unique<DiskTier>(
        DiskTierOptions{.path = config.tiers().disk_path(),
                        .budget_bytes = config.tiers().disk_budget_bytes(),
                        .store_id = StoreId(master_key, config)},
        metrics);
    // Another store's folder is a mistake; one that cannot be reached yet may come.
    const absl::Status opened = disk->Open();
    if (absl::IsFailedPrecondition(opened)) return opened;
    if (!opened.ok()) {
      log::Error("the disk tier does not work, it is tried again with every sweep",
                 {{"error", std::string(opened.message())}});
    }
  }
  const MemoryPlans plans({config.plan_defaults().begin(), config.plan_defaults().end()});
  options.is_elastic = [&plans](const std::string& tenant, const v1::Session& session) {
    return plans.IsElastic(tenant, session);
  };
  RedisSessionStore store(redis, keys, std::move(options), metrics, disk.get());
  const Sweeper sweeper(
      store, absl::Milliseconds(config.sweep_interval_ms() > 0 ? config.sweep_interval_ms()
                                                               : kDefaultSweepIntervalMs));
  MemoryServiceImpl service(store, plans, metrics);
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
