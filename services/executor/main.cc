// mneme-executor: one model on one device, behind gRPC.
#include <algorithm>
#include <memory>

#include "absl/time/time.h"
#include "common/log/log.h"
#include "common/metrics/metrics.h"
#include "common/rpc/server.h"
#include "common/status/annotate.h"
#include "common/status/status_macros.h"
#include "mneme/executor/v1/config.pb.h"
#include "services/executor/engine.h"
#include "services/executor/executor_service.h"
#include "services/executor/loaded_model.h"

namespace mneme::executor {
namespace {

absl::Status CheckConfig(const v1::ExecutorConfig& config) {
  if (config.model_path().empty()) {
    return absl::InvalidArgumentError("model_path is missing: a .gguf file or a model folder");
  }
  if (config.max_running() < 0 || config.max_waiting() < 0 || config.step_tokens() < 0 ||
      config.threads() < 0 || config.grace_ms() < 0 || config.kv_budget_bytes() < 0) {
    return absl::InvalidArgumentError(
        "kv_budget_bytes, max_running, max_waiting, step_tokens, threads and grace_ms must not be "
        "negative (0 means the default)");
  }
  return absl::OkStatus();
}

EngineOptions OptionsOf(const v1::ExecutorConfig& config, const LoadedModel& model) {
  EngineOptions options;
  if (config.max_running() > 0) options.scheduler.max_running = config.max_running();
  if (config.step_tokens() > 0) options.scheduler.step_tokens = config.step_tokens();
  // Every running answer has its token in every step.
  options.scheduler.step_tokens =
      std::max(options.scheduler.step_tokens, options.scheduler.max_running);
  if (config.max_waiting() > 0) options.max_waiting = config.max_waiting();
  options.scheduler.kv_budget_bytes = KvBudget(config, model);
  return options;
}

absl::Status Run(const v1::ExecutorConfig& config, rpc::Process& process) {
  RETURN_IF_ERROR(CheckConfig(config));
  metrics::Registry registry;
  ExecutorMetrics executor_metrics(registry);
  // The ports are taken before the model is loaded: a taken one shows at once, and callers hear
  // UNAVAILABLE meanwhile. The engine outlives the server, whose calls use it.
  std::unique_ptr<Engine> engine;
  ExecutorServiceImpl service;
  ASSIGN_OR_RETURN(const std::unique_ptr<rpc::Server> server,
                   rpc::Server::Start({.listen = config.listen(),
                                       .tls_certificate = config.tls_certificate(),
                                       .tls_key = config.tls_key()},
                                      {&service}));
  process.AddAddress("grpc", server->address());
  ASSIGN_OR_RETURN(const std::unique_ptr<metrics::MetricsServer> metrics_server,
                   process.StartMetrics(config.metrics_listen(), registry));

  absl::StatusOr<std::unique_ptr<LoadedModel>> loaded = LoadedModel::Load(config);
  if (!loaded.ok()) return status::Annotate(loaded.status(), "cannot load the model");
  v1::GetModelResponse description = (*loaded)->Describe();
  const EngineOptions options = OptionsOf(config, **loaded);
  ASSIGN_OR_RETURN(engine, Engine::Create(*std::move(loaded), options, &executor_metrics));
  description.set_kv_budget_bytes(engine->kv_budget_bytes());
  description.set_max_running(static_cast<int32_t>(options.scheduler.max_running));
  description.set_max_waiting(static_cast<int32_t>(options.max_waiting));
  log::Info("model loaded", {{"model", description.model()},
                             {"weights", description.weight_type()},
                             {"compute", description.compute_type()},
                             {"device", description.device()},
                             {"context", description.context_length()},
                             {"kv_bytes", description.kv_budget_bytes()}});
  service.SetEngine(engine.get(), std::move(description));

  RETURN_IF_ERROR(process.ServeUntilSignal(config.address_file(), *server));
  engine->Drain();
  server->Shutdown(absl::Milliseconds(config.grace_ms() > 0 ? config.grace_ms() : 10'000));
  return absl::OkStatus();
}

}  // namespace
}  // namespace mneme::executor

int main(int argc, char** argv) {
  return mneme::rpc::ServiceMain<mneme::executor::v1::ExecutorConfig>(
      argc, argv, {"executor", "Runs one model on one device and generates tokens."},
      mneme::executor::Run);
}
