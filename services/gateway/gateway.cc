#include "services/gateway/gateway.h"

#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/auth/api_keys.h"
#include "common/log/log.h"
#include "common/status/annotate.h"
#include "common/status/status_macros.h"
#include "services/gateway/authenticator.h"
#include "services/gateway/grpc_front.h"
#include "services/gateway/grpc_sessions.h"
#include "services/gateway/http_front.h"
#include "services/gateway/http_responses.h"
#include "services/gateway/http_sessions.h"
#include "services/gateway/write_watch.h"

namespace mneme::gateway {
namespace {

// Connections beyond the streams: idle ones, and short requests while all streams are taken.
constexpr int kSpareConnections = 64;
// A gRPC method that is refused still needs a thread to say so.
constexpr int kSpareMethods = 256;

bool IsLoopback(const std::string& listen) {
  const std::string host = listen.substr(0, listen.rfind(':'));
  return host == "localhost" || host == "[::1]" || absl::StartsWith(host, "127.");
}

}  // namespace

absl::StatusOr<v1::GatewayConfig> CompleteConfig(v1::GatewayConfig config) {
  const auto need = [](absl::string_view field, bool present) {
    if (present) return absl::OkStatus();
    return status::InvalidField(field, "is missing");
  };
  RETURN_IF_ERROR(need("grpc_listen", !config.grpc_listen().empty()));
  RETURN_IF_ERROR(need("http_listen", !config.http_listen().empty()));
  RETURN_IF_ERROR(need("tokenizer_address", !config.tokenizer_address().empty()));
  RETURN_IF_ERROR(need("executor_addresses", config.executor_addresses_size() > 0));
  if (config.keys_file().empty()) {
    for (const std::string& listen : {config.grpc_listen(), config.http_listen()}) {
      if (!IsLoopback(listen)) {
        return status::InvalidField(
            "keys_file",
            absl::StrCat("is needed to listen on an address that others can reach: ", listen));
      }
    }
  }
  if (config.max_body_bytes() <= 0) config.set_max_body_bytes(16 << 20);
  if (config.max_body_bytes() > (1 << 30)) {
    return status::InvalidField("max_body_bytes", "must be at most 1 GiB");
  }
  if (config.max_import_bytes() <= 0) config.set_max_import_bytes(int64_t{16} << 30);
  if (config.detached_ms() <= 0) config.set_detached_ms(60'000);
  if (config.ended_answer_ms() <= 0) config.set_ended_answer_ms(60'000);
  if (config.answer_buffer_bytes() <= 0) config.set_answer_buffer_bytes(4 << 20);
  if (config.answer_buffers_bytes() <= 0) config.set_answer_buffers_bytes(64 << 20);
  if (config.max_messages() <= 0) config.set_max_messages(4096);
  if (config.max_streams() <= 0) config.set_max_streams(256);
  if (config.write_timeout_ms() <= 0) config.set_write_timeout_ms(30'000);
  if (config.request_timeout_ms() <= 0) config.set_request_timeout_ms(600'000);
  if (config.grace_ms() <= 0) config.set_grace_ms(15'000);
  return config;
}

struct Gateway::Parts {
  Parts(const v1::GatewayConfig& config, const GatewayTiming& timing, metrics::Registry& registry,
        const clock::Clock& clock, std::unique_ptr<auth::KeyStore> key_store)
      : keys(std::move(key_store)),
        metrics(registry),
        executors({config.executor_addresses().begin(), config.executor_addresses().end()},
                  config.default_model(), metrics),
        tokenizer(config.tokenizer_address()),
        sessions(config.memory_address().empty()
                     ? nullptr
                     : std::make_unique<SessionStore>(config.memory_address(), timing.sessions)),
        admission(config.max_streams(), clock),
        core(loop, executors, tokenizer, sessions.get(), admission, metrics, clock,
             {.max_messages = config.max_messages(),
              .request_timeout = absl::Milliseconds(config.request_timeout_ms()),
              .generation = timing.generation,
              .answers = {.detached = absl::Milliseconds(config.detached_ms()),
                          .ended = absl::Milliseconds(config.ended_answer_ms()),
                          .bytes_per_answer = config.answer_buffer_bytes(),
                          .bytes = config.answer_buffers_bytes()}}),
        directory(core),
        authenticator(keys.get(), config.default_limits()),
        access_log(metrics),
        edge(authenticator, metrics, access_log),
        write_watch(absl::Milliseconds(config.write_timeout_ms())),
        chat_service(core, edge, write_watch),
        session_service(directory, edge, config.max_import_bytes()),
        admin_service(directory, edge),
        model_service(core, edge),
        http_edge(authenticator, metrics, access_log),
        http_front(core, http_edge),
        http_sessions(directory, http_edge),
        http_responses(core, directory, http_edge) {}

  std::unique_ptr<auth::KeyStore> keys;
  GatewayMetrics metrics;
  CompletionLoop loop;
  ExecutorPool executors;
  TokenizerClient tokenizer;
  std::unique_ptr<SessionStore> sessions;
  Admission admission;
  ChatCore core;
  SessionDirectory directory;
  Authenticator authenticator;
  AccessLog access_log;
  GrpcEdge edge;
  WriteWatch write_watch;
  ChatServiceImpl chat_service;
  SessionServiceImpl session_service;
  AdminServiceImpl admin_service;
  ModelServiceImpl model_service;
  HttpEdge http_edge;
  HttpFront http_front;
  HttpSessions http_sessions;
  HttpResponses http_responses;
  std::unique_ptr<rpc::Server> grpc;
  std::unique_ptr<HttpListener> http;
};

absl::StatusOr<std::unique_ptr<Gateway>> Gateway::Start(const v1::GatewayConfig& config,
                                                        const GatewayTiming& timing,
                                                        metrics::Registry& registry,
                                                        const clock::Clock& clock) {
  std::unique_ptr<auth::KeyStore> keys;
  if (!config.keys_file().empty()) {
    ASSIGN_OR_RETURN(keys, auth::KeyStore::Open(config.keys_file(), clock));
  }
  auto parts = std::make_unique<Parts>(config, timing, registry, clock, std::move(keys));
  ASSIGN_OR_RETURN(parts->http, HttpListener::Bind(
                                    {.listen = config.http_listen(),
                                     .tls_certificate = config.tls_certificate(),
                                     .tls_key = config.tls_key(),
                                     .max_connections = config.max_streams() + kSpareConnections,
                                     .max_body_bytes = static_cast<size_t>(config.max_body_bytes()),
                                     .large_body_path = HttpSessions::kImportPath,
                                     .max_large_body_bytes = config.max_import_bytes(),
                                     .write_timeout = absl::Milliseconds(config.write_timeout_ms()),
                                     .request_timeout = timing.http_request_timeout,
                                     .refusal_json = HttpFront::RefusalJson()}));
  ASSIGN_OR_RETURN(parts->grpc, rpc::Server::Start(
                                    {.listen = config.grpc_listen(),
                                     .tls_certificate = config.tls_certificate(),
                                     .tls_key = config.tls_key(),
                                     .max_message_bytes = static_cast<int>(config.max_body_bytes()),
                                     .max_threads = config.max_streams() + kSpareMethods},
                                    {&parts->chat_service, &parts->session_service,
                                     &parts->admin_service, &parts->model_service}));
  parts->http_front.Register(parts->http->server());
  parts->http_sessions.Register(parts->http->server());
  parts->http_responses.Register(parts->http->server());
  parts->http->Start();
  return std::unique_ptr<Gateway>(new Gateway(std::move(parts)));
}

Gateway::Gateway(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}

Gateway::~Gateway() { Shutdown(absl::ZeroDuration()); }

const std::string& Gateway::http_address() const { return parts_->http->address(); }
rpc::Server& Gateway::grpc_server() { return *parts_->grpc; }

void Gateway::Shutdown(absl::Duration grace) {
  parts_->admission.Drain();
  if (!parts_->admission.WaitUntilEmpty(grace)) {
    log::Warning("streams are ended: the grace time is over",
                 {{"streams", parts_->admission.num_inside()}});
    parts_->core.EndTurns();
    // They look up every 50 ms and tell their clients.
    parts_->admission.WaitUntilEmpty(absl::Seconds(2));
  }
  parts_->http->Drain();
  parts_->grpc->Shutdown(absl::Milliseconds(200));
  parts_->http->Stop();
}

}  // namespace mneme::gateway
