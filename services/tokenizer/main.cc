// mneme-tokenizer: turns text into token ids and back.
#include <memory>

#include "absl/time/time.h"
#include "common/clock/clock.h"
#include "common/log/log.h"
#include "common/rpc/server.h"
#include "common/status/annotate.h"
#include "common/status/status_macros.h"
#include "mneme/tokenizer/v1/config.pb.h"
#include "services/tokenizer/gguf_tokenizer.h"
#include "services/tokenizer/tokenizer_metrics.h"
#include "services/tokenizer/tokenizer_registry.h"
#include "services/tokenizer/tokenizer_service.h"

namespace mneme::tokenizer {
namespace {

constexpr int kDefaultGraceMs = 10'000;

absl::Status Run(const v1::TokenizerConfig& config, rpc::Process& process) {
  TokenizerRegistry registry;
  for (const v1::TokenizerModel& model : config.models()) {
    absl::StatusOr<std::unique_ptr<text::Tokenizer>> tokenizer = LoadModelTokenizer(model.path());
    if (!tokenizer.ok()) return status::Annotate(tokenizer.status(), model.name());
    log::Info("tokenizer loaded", {{"model", model.name()},
                                   {"vocab_size", (*tokenizer)->vocab_size()},
                                   {"chat_template", (*tokenizer)->chat_template() != nullptr},
                                   {"fingerprint", (*tokenizer)->fingerprint()}});
    RETURN_IF_ERROR(registry.Add(model.name(), *std::move(tokenizer)));
  }
  metrics::Registry metrics_registry;
  TokenizerMetrics metrics(metrics_registry);
  const clock::SystemClock clock;
  TokenizerServiceImpl service(registry, clock, metrics);
  ASSIGN_OR_RETURN(const std::unique_ptr<rpc::Server> server,
                   rpc::Server::Start({.listen = config.listen(),
                                       .tls_certificate = config.tls_certificate(),
                                       .tls_key = config.tls_key()},
                                      {&service}));
  process.AddAddress("grpc", server->address());
  ASSIGN_OR_RETURN(const std::unique_ptr<metrics::MetricsServer> metrics_server,
                   process.StartMetrics(config.metrics_listen(), metrics_registry));
  RETURN_IF_ERROR(process.ServeUntilSignal(config.address_file(), *server));
  server->Shutdown(absl::Milliseconds(config.grace_ms() > 0 ? config.grace_ms() : kDefaultGraceMs));
  return absl::OkStatus();
}

}  // namespace
}  // namespace mneme::tokenizer

int main(int argc, char** argv) {
  return mneme::rpc::ServiceMain<mneme::tokenizer::v1::TokenizerConfig>(
      argc, argv, {"tokenizer", "Turns text into token ids and back, and chats into prompts."},
      mneme::tokenizer::Run);
}
