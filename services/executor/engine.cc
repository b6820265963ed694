#include "services/executor/engine.h"

#include <algorithm>
#include <future>
#include <utility>

#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "common/status/annotate.h"
#include "common/status/status_macros.h"

namespace mneme::executor {
namespace {

// How often deadlines are looked at while nothing can run.
constexpr std::chrono::milliseconds kIdlePoll{20};

// Says whether the tokens that another executor had generated already end the answer.
std::optional<inference::v1::FinishReason> EndOf(const WorkSpec& spec) {
  if (spec.is_score() || spec.generated.empty()) return std::nullopt;
  const SamplingParams& sampling = *spec.sampling;
  if (std::binary_search(sampling.end_ids.begin(), sampling.end_ids.end(), spec.generated.back())) {
    return inference::v1::FINISH_REASON_STOP;
  }
  if (sampling.max_tokens > 0 &&
      static_cast<int64_t>(spec.generated.size()) >= sampling.max_tokens) {
    return inference::v1::FINISH_REASON_LENGTH;
  }
  return std::nullopt;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Engine>> Engine::Create(std::unique_ptr<StepModel> model,
                                                       const EngineOptions& options,
                                                       ExecutorMetrics* metrics) {
  auto engine = absl::WrapUnique(new Engine(std::move(model), options, metrics));
  ASSIGN_OR_RETURN(
      engine->scheduler_,
      Scheduler::Create(engine->model_.get(), options.scheduler, metrics,
                        std::make_unique<SessionMemory>(options.sessions, options.memory_service,
                                                        engine->signal_, metrics)));
  engine->limits_ = {.model = engine->model_->limits(),
                     .kv_shape = engine->model_->kv_shape(),
                     .num_pages = engine->scheduler_->pool().num_pages(),
                     .step_tokens = options.scheduler.step_tokens,
                     .max_running = options.scheduler.max_running};
  engine->thread_ =
      std::jthread([engine = engine.get()](const std::stop_token& stop) { engine->Loop(stop); });
  return engine;
}

Engine::Engine(std::unique_ptr<StepModel> model, const EngineOptions& options,
               ExecutorMetrics* metrics)
    : model_(std::move(model)),
      options_(options),
      metrics_(metrics),
      signal_(std::make_shared<EngineSignal>()) {}

Engine::~Engine() {
  draining_ = true;
  thread_.request_stop();
  signal_->Notify();
}

absl::StatusOr<std::shared_ptr<TokenStream>> Engine::Submit(WorkSpec spec) {
  if (draining_) {
    return absl::UnavailableError("the executor is shutting down; try another one");
  }
  auto request = std::make_shared<Request>();
  request->submitted = std::chrono::steady_clock::now();
  auto stream = std::make_shared<TokenStream>(spec.num_answers(), signal_);
  const std::optional<inference::v1::FinishReason> ended = EndOf(spec);
  if (!ended.has_value()) {
    ASSIGN_OR_RETURN(request->token_limit, TokenLimit(spec, limits_));
  }
  request->spec = std::move(spec);
  request->stream = stream;
  if (ended.has_value()) {
    const std::unique_ptr<Sequence> sequence = MakeLeader(request);
    StreamEvent event;
    event.end = MakeEnd(*sequence, *ended, request->submitted);
    if (!request->spec.session_id.empty()) {
      event.end->receipt.set_not_persisted_reason(
          "the answer was complete already; this executor has not computed its memory");
    }
    stream->Push(std::move(event));
    stream->Close(absl::OkStatus());
    return stream;
  }
  {
    sync::MutexLock lock(mutex_);
    // Requests that the batch has places for do not count as waiting. Preempted sequences do: while
    // pages are short, taking more would only make the queue longer. Callers know this rule
    // (GetModelResponse.max_waiting).
    const int64_t queued = NumWaiting();
    if (running_ + queued >= options_.scheduler.max_running + options_.max_waiting) {
      metrics_->rejections.Increment();
      const double seconds = std::clamp(last_queue_seconds_.load(), 0.5, 30.0);
      return status::WithRetryAfter(
          absl::ResourceExhaustedError(absl::StrCat(
              "the executor's queue is full; try again later: ", queued, " requests are waiting")),
          absl::Seconds(seconds));
    }
    request->arrival = num_submitted_++;
    incoming_.push_back(std::move(request));
  }
  signal_->Notify();
  return stream;
}

int64_t Engine::NumWaiting() const { return waiting_ + static_cast<int64_t>(incoming_.size()); }

bool Engine::TakeIncoming() {
  std::vector<std::shared_ptr<Request>> incoming;
  std::vector<std::function<void(Scheduler&)>> calls;
  {
    sync::MutexLock lock(mutex_);
    incoming = std::exchange(incoming_, {});
    calls = std::exchange(calls_, {});
    waiting_ = scheduler_->num_waiting() + static_cast<int64_t>(incoming.size());
    running_ = scheduler_->num_running();
  }
  for (std::shared_ptr<Request>& request : incoming) scheduler_->Add(std::move(request));
  for (const auto& call : calls) call(*scheduler_);
  last_queue_seconds_ = scheduler_->last_queue_seconds();
  return !incoming.empty() || !calls.empty();
}

absl::Status Engine::Call(std::function<absl::Status(Scheduler&)> body) {
  // Shared: the engine may still be in set_value when the result is there.
  const auto promise = std::make_shared<std::promise<absl::Status>>();
  std::future<absl::Status> result = promise->get_future();
  {
    sync::MutexLock lock(mutex_);
    if (has_ended_) return absl::UnavailableError("the executor is shutting down");
    calls_.push_back(
        [promise, &body](Scheduler& scheduler) { promise->set_value(body(scheduler)); });
  }
  signal_->Notify();
  return result.get();
}

absl::Status Engine::FinishTurn(std::string tenant, std::string session_id, uint64_t lease_token,
                                int64_t num_tokens) {
  return Call([&](Scheduler& scheduler) {
    return scheduler.FinishTurn(tenant, session_id, lease_token, num_tokens);
  });
}

absl::Status Engine::Forget(std::string tenant, std::string session_id) {
  return Call([&](Scheduler& scheduler) {
    scheduler.Forget(tenant, session_id);
    return absl::OkStatus();
  });
}

void Engine::Loop(const std::stop_token& stop) {
  while (!stop.stop_requested()) {
    const bool has_news = TakeIncoming();
    if (scheduler_->Step() || has_news) continue;
    TakeIncoming();
    const Instant now = std::chrono::steady_clock::now();
    signal_->Wait(scheduler_->idle() ? now + std::chrono::hours(1) : now + kIdlePoll);
  }
  {
    sync::MutexLock lock(mutex_);
    has_ended_ = true;
  }
  TakeIncoming();
  scheduler_->CloseAll(absl::UnavailableError("the executor is shutting down; try another one"));
}

EngineLoad Engine::load() const {
  sync::MutexLock lock(mutex_);
  return {.running = running_,
          .waiting = NumWaiting(),
          .pages_used = scheduler_->pool().used_pages(),
          .pages_total = scheduler_->pool().num_pages()};
}

int64_t Engine::num_accepted() {
  sync::MutexLock lock(mutex_);
  return static_cast<int64_t>(num_submitted_);
}

int64_t Engine::kv_budget_bytes() const {
  return scheduler_->pool().num_pages() * scheduler_->pool().page_bytes();
}

int64_t Engine::page_bytes() const { return scheduler_->pool().page_bytes(); }

}  // namespace mneme::executor
