// The executor's engine: one thread that owns a model and its key/value memory and runs the
// scheduler, and the door through which any thread hands it requests.
//
//   ASSIGN_OR_RETURN(auto engine, Engine::Create(std::move(model), options, &metrics));
//   ASSIGN_OR_RETURN(std::shared_ptr<TokenStream> stream, engine->Submit(std::move(spec)));
//   StreamEvent event;
//   while (stream->Next(&event)) { … }
//   RETURN_IF_ERROR(stream->status());
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "common/sync/mutex.h"
#include "services/executor/admission.h"
#include "services/executor/executor_metrics.h"
#include "services/executor/scheduler.h"
#include "services/executor/step_model.h"
#include "services/executor/token_stream.h"

namespace mneme::executor {

struct EngineOptions {
  SchedulerOptions scheduler;
  SessionMemoryOptions sessions;
  // Where sessions' memory is stored; null: nowhere.
  std::shared_ptr<memory::v1::MemoryService::StubInterface> memory_service;
  int64_t max_waiting = 256;  // requests in the queue, preempted sequences included
};

struct EngineLoad {
  int64_t running = 0;  // sequences
  int64_t waiting = 0;  // requests and preempted sequences
  int64_t pages_used = 0;
  int64_t pages_total = 0;
};

// Thread-safe.
class Engine {
 public:
  // `metrics` must outlive the engine. Codes as Scheduler::Create.
  static absl::StatusOr<std::unique_ptr<Engine>> Create(std::unique_ptr<StepModel> model,
                                                        const EngineOptions& options,
                                                        ExecutorMetrics* metrics);
  // Ends all requests with UNAVAILABLE.
  ~Engine();

  // Puts a checked request into the queue. Codes as TokenLimit; RESOURCE_EXHAUSTED with a retry
  // delay: the queue is full; UNAVAILABLE: the engine drains.
  absl::StatusOr<std::shared_ptr<TokenStream>> Submit(WorkSpec spec);

  // As Scheduler::FinishTurn and Scheduler::Forget; they return when it is done, within a step.
  absl::Status FinishTurn(std::string tenant, std::string session_id, uint64_t lease_token,
                          int64_t num_tokens);
  absl::Status Forget(std::string tenant, std::string session_id);

  // Takes no new requests from now on; those it has go on.
  void Drain() { draining_ = true; }

  EngineLoad load() const;
  // Requests put into the queue since the start.
  int64_t num_accepted();
  const AdmissionLimits& limits() const { return limits_; }
  int64_t kv_budget_bytes() const;
  int64_t page_bytes() const;

 private:
  Engine(std::unique_ptr<StepModel> model, const EngineOptions& options, ExecutorMetrics* metrics);
  void Loop(const std::stop_token& stop);
  // Hands the scheduler what came in; says whether anything did.
  bool TakeIncoming();
  // All that wait: for the scheduler, or in its queue.
  int64_t NumWaiting() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Runs `body` on the engine's thread. UNAVAILABLE: the engine ends.
  absl::Status Call(std::function<absl::Status(Scheduler&)> body);

  const std::unique_ptr<StepModel> model_;
  const EngineOptions options_;
  ExecutorMetrics* const metrics_;
  const std::shared_ptr<EngineSignal> signal_;
  AdmissionLimits limits_;
  std::unique_ptr<Scheduler> scheduler_;  // the thread's
  std::atomic<bool> draining_ = false;
  std::atomic<double> last_queue_seconds_ = 0;
  mutable sync::Mutex mutex_;
  std::vector<std::shared_ptr<Request>> incoming_ ABSL_GUARDED_BY(mutex_);
  int64_t running_ ABSL_GUARDED_BY(mutex_) = 0;  // in the scheduler, before its step
  int64_t waiting_ ABSL_GUARDED_BY(mutex_) = 0;  // in the scheduler, before its step
  std::vector<std::function<void(Scheduler&)>> calls_ ABSL_GUARDED_BY(mutex_);
  bool has_ended_ ABSL_GUARDED_BY(mutex_) = false;
  uint64_t num_submitted_ ABSL_GUARDED_BY(mutex_) = 0;
  std::jthread thread_;
};

}  // namespace mneme::executor
