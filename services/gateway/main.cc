// mneme-gateway: the only public door.
#include <memory>

#include "absl/time/time.h"
#include "common/clock/clock.h"
#include "common/metrics/metrics.h"
#include "common/rpc/server.h"
#include "common/status/status_macros.h"
#include "common/sync/short_turns.h"
#include "mneme/gateway/v1/config.pb.h"
#include "services/gateway/gateway.h"

namespace mneme::gateway {
namespace {

absl::Status Run(const v1::GatewayConfig& given, rpc::Process& process) {
  ASSIGN_OR_RETURN(const v1::GatewayConfig config, CompleteConfig(given));
  // On one machine the executor's threads keep every processor busy. An answer, or a refusal, needs
  // one for a fraction of a millisecond and would wait for it longer than for all else.
  sync::AskForShortTurns();
  metrics::Registry registry;
  const clock::SystemClock clock;
  ASSIGN_OR_RETURN(const std::unique_ptr<Gateway> gateway,
                   Gateway::Start(config, GatewayTiming(), registry, clock));
  ASSIGN_OR_RETURN(const std::unique_ptr<metrics::MetricsServer> metrics_server,
                   process.StartMetrics(config.metrics_listen(), registry));
  process.AddAddress("http", gateway->http_address());
  process.AddAddress("grpc", gateway->grpc_server().address());
  RETURN_IF_ERROR(process.ServeUntilSignal(config.address_file(), gateway->grpc_server()));
  gateway->Shutdown(absl::Milliseconds(config.grace_ms()));
  return absl::OkStatus();
}

}  // namespace
}  // namespace mneme::gateway

int main(int argc, char** argv) {
  return mneme::rpc::ServiceMain<mneme::gateway::v1::GatewayConfig>(
      argc, argv, {"gateway", "Answers clients: OpenAI-compatible HTTP and gRPC."},
      mneme::gateway::Run);
}
