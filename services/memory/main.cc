// mneme-memory: keeps sessions in Redis.
#include <memory>
#include <string>

#include "absl/time/clock.h"
#include "common/redis/client.h"
#include "common/redis/config.h"
#include "common/rpc/server.h"
#include "common/status/status_macros.h"
#include "mneme/memory/v1/config.pb.h"
#include "services/memory/memory_metrics.h"
#include "services/memory/memory_service.h"
#include "services/memory/redis_session_store.h"

namespace mneme::memory {
namespace {

constexpr int kDefaultGraceMs = 10'000;
// A stopped Redis must not keep the service from noticing that it is to end.
constexpr absl::Duration kReadinessTimeout = absl::Seconds(1);

absl::Status Run(const v1::MemoryConfig& config, rpc::Process& process) {
  if (config.default_ttl_seconds() < 0) {
    return absl::InvalidArgumentError("default_ttl_seconds is negative");
  }
  ASSIGN_OR_RETURN(redis::Options redis_options, redis::OptionsOf(config.redis()));
  metrics::Registry registry;
  MemoryMetrics metrics(registry);
  redis::Client redis(std::move(redis_options));
  RedisSessionStore store(redis, config.default_ttl_seconds(), metrics.redis_errors());
  MemoryServiceImpl service(store, metrics);
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
