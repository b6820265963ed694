// A gRPC server with what every service of Mneme has: health, reflection, message limits,
// keepalive, TLS by certificate path, an address file, metrics, and a graceful end.
//
// A service's main.cc:
//
//   int main(int argc, char** argv) {
//     return rpc::ServiceMain<v1::TokenizerConfig>(
//         argc, argv, {"tokenizer", "Turns text into token ids and back."}, Run);
//   }
//   absl::Status Run(const v1::TokenizerConfig& config, rpc::Process& process) {
//     ... build the objects ...
//     ASSIGN_OR_RETURN(auto server, rpc::Server::Start(options, {&service}));
//     ASSIGN_OR_RETURN(auto metrics, process.StartMetrics(config.metrics_listen(), registry));
//     process.AddAddress("grpc", server->address());
//     RETURN_IF_ERROR(process.ServeUntilSignal(config.address_file(), *server));   // ready here
//     server->Shutdown(grace);
//     return absl::OkStatus();
//   }
#pragma once

#include <grpcpp/channel.h>
#include <grpcpp/server.h>
#include <grpcpp/support/channel_arguments.h>

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "common/config/config.h"
#include "common/log/log.h"
#include "common/metrics/metrics.h"

namespace mneme::rpc {

struct ServerOptions {
  std::string listen;           // host:port; port 0 takes a free one; "" serves in process only
  std::string tls_certificate;  // PEM path; "": no TLS
  std::string tls_key;          // PEM path
  int max_message_bytes = 64 << 20;
  // Threads that may run methods at a time; a call beyond them waits.
  int max_threads = 512;
};

// Thread-safe.
class Server {
 public:
  // Starts serving. Health says NOT_SERVING until SetServing(true). UNAVAILABLE: the port is taken.
  // `services` must outlive the server.
  static absl::StatusOr<std::unique_ptr<Server>> Start(const ServerOptions& options,
                                                       const std::vector<grpc::Service*>& services);
  ~Server();

  // host:port that the server is bound to.
  const std::string& address() const { return address_; }

  // What grpc.health.v1 answers, for the server as a whole and for each service.
  void SetServing(bool serving);

  // Returns a channel that stays inside the process: for tests.
  std::shared_ptr<grpc::Channel> InProcessChannel();

  // Takes no new calls; running ones have `grace` to end, then they are cancelled.
  void Shutdown(absl::Duration grace);

 private:
  Server(std::unique_ptr<grpc::Server> server, std::string address);

  std::unique_ptr<grpc::Server> server_;
  std::string address_;
};

// What ServiceMain hands to a service: its way to say "ready" and to learn that it is to end.
class Process {
 public:
  // Serves /metrics and /healthz on `listen` as long as the result lives, which must end before
  // `registry` and before this. Null where `listen` is "". Codes as MetricsServer::Start.
  absl::StatusOr<std::unique_ptr<metrics::MetricsServer>> StartMetrics(
      const std::string& listen, const metrics::Registry& registry);

  // Adds a line of the address file: {"<name>": "host:port"}.
  void AddAddress(absl::string_view name, absl::string_view address);

  // Says that the service is ready (health, /healthz, address file, log) and returns when SIGTERM
  // or SIGINT has come; health says NOT_SERVING from then on.
  //
  // A service that is of use only while something else answers gives `check`: it is asked now and
  // about twice a second from this thread, and health, /healthz and the log follow what it says;
  // the address file is written when it first says OK. It should return within a second.
  absl::Status ServeUntilSignal(const std::string& address_file, Server& server,
                                const std::function<absl::Status()>& check = nullptr);

  bool ready() const { return ready_; }

 private:
  std::vector<std::pair<std::string, std::string>> addresses_;
  std::atomic<bool> ready_{false};
};

struct ServiceInfo {
  absl::string_view name;     // "tokenizer"
  absl::string_view purpose;  // one sentence for --help
};

// Blocks SIGTERM and SIGINT in this thread and in all that it starts, so that ServeUntilSignal gets
// them; ignores SIGPIPE.
void BlockShutdownSignals();

// Returns true when SIGTERM or SIGINT comes (BlockShutdownSignals was called before), false when
// `timeout` has passed first.
bool WaitForShutdownSignal(absl::Duration timeout = absl::InfiniteDuration());

// Reads the configuration, runs the service and returns the exit code: 0, or 1 after an error that
// was logged.
template <typename Config>
int ServiceMain(int argc, char** argv, const ServiceInfo& info,
                const std::function<absl::Status(const Config&, Process&)>& run) {
  log::Init(info.name);
  BlockShutdownSignals();
  Config service_config;
  absl::Status status = config::FromCommandLine(argc, argv, info.purpose, &service_config);
  if (status.ok()) {
    Process process;
    status = run(service_config, process);
  }
  if (status.ok()) return 0;
  log::Error("service ended with an error", {{"error", std::string(status.message())}});
  return 1;
}

}  // namespace mneme::rpc
