// The whole gateway as an object: what main.cc runs and the tests start in process.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/clock/clock.h"
#include "common/metrics/metrics.h"
#include "common/rpc/server.h"
#include "mneme/gateway/v1/config.pb.h"
#include "services/gateway/chat_core.h"
#include "services/gateway/http_listener.h"

namespace mneme::gateway {

// Returns the configuration with every default filled in. INVALID_ARGUMENT names what is wrong;
// without a keys_file both fronts must listen on a loopback address.
absl::StatusOr<v1::GatewayConfig> CompleteConfig(v1::GatewayConfig config);

// What tests shorten.
struct GatewayTiming {
  GenerationOptions generation;
  SessionStore::Options sessions;
  absl::Duration http_request_timeout = absl::Seconds(30);  // for a request to arrive
};

// Thread-safe.
class Gateway {
 public:
  // Starts both fronts; `registry` and `clock` must outlive the gateway. UNAVAILABLE: a port is
  // taken.
  static absl::StatusOr<std::unique_ptr<Gateway>> Start(const v1::GatewayConfig& config,
                                                        const GatewayTiming& timing,
                                                        metrics::Registry& registry,
                                                        const clock::Clock& clock);
  ~Gateway();

  const std::string& http_address() const;
  rpc::Server& grpc_server();

  // Refuses new work and lets streams finish; ends those that have not after `grace`.
  void Shutdown(absl::Duration grace);

 private:
  struct Parts;
  explicit Gateway(std::unique_ptr<Parts> parts);

  std::unique_ptr<Parts> parts_;
};

}  // namespace mneme::gateway
