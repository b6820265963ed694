#include "services/gateway/executor_pool.h"

#include <algorithm>
#include <limits>
#include <map>

#include "absl/hash/hash.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/log/log.h"
#include "common/rpc/client.h"
#include "common/rpc/grpc_status.h"
#include "common/status/annotate.h"
#include "common/status/status_macros.h"

namespace mneme::gateway {
namespace {

constexpr absl::Duration kProbeTimeout = absl::Seconds(2);
constexpr absl::Duration kForgetTimeout = absl::Seconds(2);
constexpr auto kProbeInterval = std::chrono::milliseconds(1000);
// Also of full ones: what others had there may have ended.
constexpr auto kUnreadyProbeInterval = std::chrono::milliseconds(100);
// How much busier a preferred executor may be than the idlest one.
constexpr int kAffinitySlack = 4;
// The same for one that has the session's memory: anywhere else it must be restored.
constexpr int kHotSlack = 16;

absl::Status UnknownModel(absl::string_view model) {
  return status::WithPayload(
      status::WithPayload(
          absl::NotFoundError(absl::StrCat("the model does not exist or is not served: ", model)),
          status::kReasonPayload, "MODEL_NOT_FOUND"),
      status::kFieldPayload, "model");
}

absl::Status NotReady(absl::string_view model) {
  return status::WithRetryAfter(
      absl::UnavailableError(absl::StrCat("no executor of the model is ready: ", model)),
      absl::Seconds(1));
}

absl::Status Full(absl::string_view model, absl::Duration retry_after) {
  return status::WithRetryAfter(
      absl::ResourceExhaustedError(absl::StrCat(
          "the queue is full at every executor of the model; try again later: ", model)),
      retry_after);
}

// Requests that the executor has room for, batch and queue together; 0: it does not tell.
int PlacesOf(const executor::v1::GetModelResponse& model) {
  return model.max_waiting() > 0 ? model.max_running() + model.max_waiting() : 0;
}

}  // namespace

ExecutorPool::ExecutorPool(const std::vector<std::string>& addresses, std::string default_model,
                           GatewayMetrics& metrics)
    : default_model_(std::move(default_model)), metrics_(metrics) {
  for (const std::string& address : addresses) {
    auto executor = std::make_unique<Executor>();
    executor->address = address;
    executor->stub = executor::v1::ExecutorService::NewStub(rpc::ConnectTo(address));
    executors_.push_back(std::move(executor));
  }
  states_.resize(executors_.size());
  prober_ = std::jthread([this](std::stop_token stop) { ProbeLoop(stop); });
}

ExecutorPool::~ExecutorPool() {
  {
    sync::MutexLock lock(mutex_);
    prober_.request_stop();
    changed_.NotifyAll();
  }
  prober_.join();
}

void ExecutorPool::Probe(size_t i) {
  Executor& executor = *executors_[i];
  const trace::RequestContext request = trace::ContextFrom("", "");
  executor::v1::GetModelResponse model;
  grpc::ClientContext model_context;
  rpc::Prepare(request, absl::Now() + kProbeTimeout, &model_context);
  absl::Status status = rpc::FromGrpc(executor.stub->GetModel(&model_context, {}, &model));
  executor::v1::GetLoadResponse load;
  int external_load = 0;
  std::optional<uint64_t> full_at;
  if (status.ok()) {
    const int own = executor.in_flight;
    const uint64_t num_ended = executor.num_ended;
    grpc::ClientContext load_context;
    rpc::Prepare(request, absl::Now() + kProbeTimeout, &load_context);
    status = rpc::FromGrpc(executor.stub->GetLoad(&load_context, {}, &load));
    external_load = std::max(0, load.running() + load.waiting() - own);
    const int places = PlacesOf(model);
    if (places > 0 && load.running() + load.waiting() >= places) full_at = num_ended;
  }
  int ready = 0;
  bool changed = false;
  {
    sync::MutexLock lock(mutex_);
    State& state = states_[i];
    changed = state.ready != status.ok();
    state.ready = status.ok();
    state.external_load = external_load;
    state.full_at = full_at;
    if (status.ok()) {
      if (!state.seen) state.first_seen = absl::Now();
      state.seen = true;
      state.model = std::move(model);
    }
    for (const State& each : states_) ready += each.ready;
  }
  metrics_.ready_executors.Set(ready);
  if (!changed) return;
  if (status.ok()) {
    log::Info("executor is ready", {{"executor", executor.address}});
  } else {
    log::Warning("executor is lost",
                 {{"executor", executor.address}, {"error", std::string(status.message())}});
  }
}

void ExecutorPool::ProbeLoop(std::stop_token stop) {
  std::vector<std::chrono::steady_clock::time_point> due(executors_.size());
  while (!stop.stop_requested()) {
    for (size_t i = 0; i < executors_.size() && !stop.stop_requested(); ++i) {
      bool may_wait = false;
      {
        sync::MutexLock lock(mutex_);
        may_wait = states_[i].ready && states_[i].full_at != executors_[i]->num_ended;
      }
      if (may_wait && std::chrono::steady_clock::now() < due[i]) continue;
      Probe(i);
      due[i] = std::chrono::steady_clock::now() + kProbeInterval;
    }
    const auto until = std::chrono::steady_clock::now() + kUnreadyProbeInterval;
    sync::MutexLock lock(mutex_);
    while (!stop.stop_requested() && !probe_now_) {
      if (!changed_.WaitUntil(mutex_, until)) break;
    }
    probe_now_ = false;
  }
}

std::string ExecutorPool::DefaultModel() const {
  if (!default_model_.empty()) return default_model_;
  for (const State& state : states_) {
    if (state.seen) return state.model.model();
  }
  return "";
}

absl::StatusOr<std::string> ExecutorPool::Resolve(absl::string_view model) const {
  sync::MutexLock lock(mutex_);
  const std::string name = model.empty() ? DefaultModel() : std::string(model);
  bool all_seen = true;
  for (const State& state : states_) {
    if (state.seen && state.model.model() == name) return name;
    all_seen = all_seen && state.seen;
  }
  // Which models an executor that never answered serves is not known; only the default one is
  // promised by the configuration.
  if (!all_seen && (name.empty() || name == default_model_ || default_model_.empty())) {
    return NotReady(name);
  }
  return UnknownModel(name);
}

bool ExecutorPool::IsFull(size_t i) const {
  // A call that is open here has at least one place there, so the first bound is exact.
  const int places = PlacesOf(states_[i].model);
  return (places > 0 && executors_[i]->in_flight >= places) ||
         states_[i].full_at == executors_[i]->num_ended;
}

absl::StatusOr<ExecutorPool::Claim> ExecutorPool::Pick(const Query& query) const {
  sync::MutexLock lock(mutex_);
  ASSIGN_OR_RETURN(Executor * executor, Find(query));
  return Claim(executor);
}

absl::Status ExecutorPool::CheckRoom(const Query& query) const {
  sync::MutexLock lock(mutex_);
  return Find(query).status();
}

ExecutorPool::Executor* ExecutorPool::AnyReady(absl::string_view model) const {
  sync::MutexLock lock(mutex_);
  for (size_t i = 0; i < executors_.size(); ++i) {
    if (states_[i].ready && states_[i].model.model() == model) return executors_[i].get();
  }
  return nullptr;
}

absl::StatusOr<ExecutorPool::Executor*> ExecutorPool::Find(const Query& query) const {
  Executor* best = nullptr;
  int best_load = std::numeric_limits<int>::max();
  Executor* preferred = nullptr;
  int preferred_load = 0;
  size_t preferred_hash = 0;
  Executor* hot = nullptr;
  int hot_load = 0;
  std::optional<absl::Duration> full;  // the shortest delay of those that are
  const size_t first = next_++;
  for (size_t k = 0; k < executors_.size(); ++k) {
    const size_t i = (first + k) % executors_.size();
    Executor* executor = executors_[i].get();
    const State& state = states_[i];
    if (!state.ready) continue;
    if (!query.model.empty() && state.model.model() != query.model) continue;
    if (!query.fingerprint.empty() && state.model.fingerprint() != query.fingerprint) continue;
    if (std::count(query.exclude.begin(), query.exclude.end(), executor) > 0) continue;
    if (IsFull(i)) {
      full = std::min(full.value_or(absl::InfiniteDuration()), state.retry_after);
      continue;
    }
    const int load = executor->in_flight + state.external_load;
    if (load < best_load) {
      best = executor;
      best_load = load;
    }
    if (executor->address == query.prefer.hot) {
      hot = executor;
      hot_load = load;
    }
    // Rendezvous hashing: an executor that leaves moves only its own sessions.
    const size_t hash = absl::HashOf(query.prefer.affinity, executor->address);
    if (preferred == nullptr || hash > preferred_hash) {
      preferred = executor;
      preferred_load = load;
      preferred_hash = hash;
    }
  }
  if (best == nullptr) return full.has_value() ? Full(query.model, *full) : NotReady(query.model);
  if (hot != nullptr && hot_load <= best_load + kHotSlack) return hot;
  if (!query.prefer.affinity.empty() && preferred_load <= best_load + kAffinitySlack)
    best = preferred;
  return best;
}

void ExecutorPool::ReportFull(const Executor* executor, uint64_t num_ended,
                              absl::Duration retry_after) {
  sync::MutexLock lock(mutex_);
  for (size_t i = 0; i < executors_.size(); ++i) {
    if (executors_[i].get() != executor) continue;
    states_[i].full_at = num_ended;
    states_[i].retry_after = retry_after;
  }
}

void ExecutorPool::ForgetMemory(const executor::v1::ForgetMemoryRequest& forget,
                                const trace::RequestContext& request) {
  std::vector<Executor*> ready;
  {
    sync::MutexLock lock(mutex_);
    for (size_t i = 0; i < executors_.size(); ++i) {
      if (states_[i].ready) ready.push_back(executors_[i].get());
    }
  }
  for (Executor* executor : ready) {
    executor::v1::ForgetMemoryResponse response;
    grpc::ClientContext context;
    rpc::Prepare(request, absl::Now() + kForgetTimeout, &context);
    const absl::Status status =
        rpc::FromGrpc(executor->stub->ForgetMemory(&context, forget, &response));
    if (status.ok()) continue;
    log::Warning("an executor has not dropped a deleted session's memory",
                 {{"request_id", request.request_id},
                  {"executor", executor->address},
                  {"error", std::string(status.message())}});
  }
}

void ExecutorPool::ReportFailure(const Executor* executor) {
  sync::MutexLock lock(mutex_);
  for (size_t i = 0; i < executors_.size(); ++i) {
    if (executors_[i].get() == executor) states_[i].ready = false;
  }
  probe_now_ = true;
  changed_.NotifyAll();
}

absl::StatusOr<executor::v1::GetModelResponse> ExecutorPool::Describe(
    absl::string_view model) const {
  sync::MutexLock lock(mutex_);
  const State* found = nullptr;
  for (const State& state : states_) {
    if (!state.seen || state.model.model() != model) continue;
    if (found == nullptr || (state.ready && !found->ready)) found = &state;
  }
  if (found == nullptr) return UnknownModel(model);
  return found->model;
}

std::vector<v1::Model> ExecutorPool::Models() const {
  std::map<std::string, v1::Model> models;
  sync::MutexLock lock(mutex_);
  for (const State& state : states_) {
    if (!state.seen) continue;
    v1::Model& model = models[state.model.model()];
    if (model.name().empty()) {
      model.set_name(state.model.model());
      model.set_architecture(state.model.architecture());
      model.set_context_length(state.model.context_length());
      model.set_vocab_size(state.model.vocab_size());
      model.set_compute_type(state.model.compute_type());
      model.set_weight_type(state.model.weight_type());
      model.set_num_parameters(state.model.num_parameters());
      *model.mutable_memory_policies() = state.model.memory_policies();
      model.set_created_unix_s(absl::ToUnixSeconds(state.first_seen));
    }
    model.set_executors(model.executors() + (state.ready ? 1 : 0));
  }
  std::vector<v1::Model> list;
  for (auto& [name, model] : models) list.push_back(std::move(model));
  return list;
}

int ExecutorPool::NumReady() const {
  sync::MutexLock lock(mutex_);
  return static_cast<int>(
      std::count_if(states_.begin(), states_.end(), [](const State& s) { return s.ready; }));
}

}  // namespace mneme::gateway
