#include "common/rpc/server.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/resource_quota.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server_builder.h>
#include <malloc.h>

#include <algorithm>
#include <chrono>
#include <csignal>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/status/status_macros.h"

namespace mneme::rpc {
namespace {

// How often a service's own check is asked.
constexpr absl::Duration kReadinessInterval = absl::Milliseconds(500);

// Snapshots come and go in messages of a megabyte. Left alone, malloc maps each of them, and the
// kernel finds, clears and takes back 256 pages a message: about a quarter of the memory service's
// processor time when it stores. Blocks up to kMaxHeapBlock come from the heaps instead, which keep
// up to kKeptBytes that are free.
constexpr int kMaxHeapBlock = 8 << 20;
constexpr int kKeptBytes = 64 << 20;

void KeepFreedMemory() {
  mallopt(M_MMAP_THRESHOLD, kMaxHeapBlock);
  mallopt(M_TRIM_THRESHOLD, kKeptBytes);
}

absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> Credentials(const ServerOptions& options) {
  if (options.tls_certificate.empty() && options.tls_key.empty()) {
    return grpc::InsecureServerCredentials();
  }
  if (options.tls_certificate.empty() || options.tls_key.empty()) {
    return absl::InvalidArgumentError("TLS needs both tls_certificate and tls_key");
  }
  grpc::SslServerCredentialsOptions ssl;
  ASSIGN_OR_RETURN(std::string certificate, config::ReadFile(options.tls_certificate));
  ASSIGN_OR_RETURN(std::string key, config::ReadFile(options.tls_key));
  ssl.pem_key_cert_pairs.push_back({std::move(key), std::move(certificate)});
  return grpc::SslServerCredentials(ssl);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Server>> Server::Start(const ServerOptions& options,
                                                      const std::vector<grpc::Service*>& services) {
  static const bool plugins = [] {
    grpc::EnableDefaultHealthCheckService(true);
    grpc::reflection::InitProtoReflectionServerBuilderPlugin();
    return true;
  }();
  (void)plugins;
  ASSIGN_OR_RETURN(const std::shared_ptr<grpc::ServerCredentials> credentials,
                   Credentials(options));
  grpc::ServerBuilder builder;
  int port = -1;
  if (!options.listen.empty()) {
    builder.AddListeningPort(options.listen, credentials, &port);
    // Sharing a port with another process would hide a mistake.
    builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  }
  builder.SetMaxReceiveMessageSize(options.max_message_bytes);
  builder.SetMaxSendMessageSize(options.max_message_bytes);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 20'000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10'000);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 5'000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  grpc::ResourceQuota quota("mneme");
  quota.SetMaxThreads(options.max_threads);
  builder.SetResourceQuota(quota);
  for (grpc::Service* service : services) builder.RegisterService(service);
  std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (server == nullptr || port == 0) {
    return absl::UnavailableError(absl::StrCat("cannot listen on ", options.listen,
                                               ": is the port taken by another process?"));
  }
  std::string address;
  if (!options.listen.empty()) {
    address = absl::StrCat(options.listen.substr(0, options.listen.rfind(':')), ":", port);
  }
  auto result = std::unique_ptr<Server>(new Server(std::move(server), std::move(address)));
  result->SetServing(false);
  return result;
}

Server::Server(std::unique_ptr<grpc::Server> server, std::string address)
    : server_(std::move(server)), address_(std::move(address)) {}

Server::~Server() { Shutdown(absl::ZeroDuration()); }

void Server::SetServing(bool serving) {
  server_->GetHealthCheckService()->SetServingStatus(serving);
}

std::shared_ptr<grpc::Channel> Server::InProcessChannel() {
  return server_->InProcessChannel(grpc::ChannelArguments());
}

void Server::Shutdown(absl::Duration grace) {
  server_->Shutdown(std::chrono::system_clock::now() + absl::ToChronoMilliseconds(grace));
  server_->Wait();
}

absl::StatusOr<std::unique_ptr<metrics::MetricsServer>> Process::StartMetrics(
    const std::string& listen, const metrics::Registry& registry) {
  if (listen.empty()) return nullptr;
  ASSIGN_OR_RETURN(
      std::unique_ptr<metrics::MetricsServer> server,
      metrics::MetricsServer::Start(listen, registry, [this] { return ready_.load(); }));
  AddAddress("metrics", server->address());
  return server;
}

void Process::AddAddress(absl::string_view name, absl::string_view address) {
  addresses_.emplace_back(std::string(name), std::string(address));
}

absl::Status Process::ServeUntilSignal(const std::string& address_file, Server& server,
                                       const std::function<absl::Status()>& check) {
  KeepFreedMemory();
  std::string json;
  for (const auto& [name, address] : addresses_) {
    absl::StrAppend(&json, json.empty() ? "{" : ",", log::JsonString(name), ":",
                    log::JsonString(address));
  }
  absl::StrAppend(&json, json.empty() ? "{}" : "}");
  bool is_announced = false;
  absl::StatusCode logged = absl::StatusCode::kOk;
  do {
    const absl::Status status = check ? check() : absl::OkStatus();
    if (status.ok() && !ready_) {
      server.SetServing(true);
      ready_ = true;
      if (!is_announced && !address_file.empty()) {
        RETURN_IF_ERROR(config::WriteFileAtomically(address_file, json));
      }
      is_announced = true;
      log::Info("ready", {{"address", server.address()}});
    } else if (!status.ok() && status.code() != logged) {
      server.SetServing(false);
      ready_ = false;
      log::Warning("not ready",
                   {{"address", server.address()}, {"reason", std::string(status.message())}});
    }
    logged = status.code();
  } while (!WaitForShutdownSignal(check ? kReadinessInterval : absl::InfiniteDuration()));
  log::Info("shutting down");
  ready_ = false;
  server.SetServing(false);
  return absl::OkStatus();
}

void BlockShutdownSignals() {
  std::signal(SIGPIPE, SIG_IGN);
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
}

bool WaitForShutdownSignal(absl::Duration timeout) {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  const absl::Time deadline = absl::Now() + timeout;
  while (true) {
    int signal = 0;
    if (timeout == absl::InfiniteDuration()) {
      if (sigwait(&signals, &signal) == 0) return true;
      continue;
    }
    const absl::Duration left = std::max(deadline - absl::Now(), absl::ZeroDuration());
    const timespec wait = absl::ToTimespec(left);
    if (sigtimedwait(&signals, nullptr, &wait) > 0) return true;
    if (left == absl::ZeroDuration()) return false;
  }
}

}  // namespace mneme::rpc
