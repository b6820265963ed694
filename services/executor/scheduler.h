// Decides at every step which sequences run, and runs them: continuous batching over paged memory.
//
// A step holds one token of every running answer and chunks of the prompts that are being read
// (step_plan.h). Requests join and leave between steps. When pages run out, the youngest sequence
// gives its own back and waits in the queue, its tokens kept, until they can be recomputed; the
// oldest that can run always gets pages, so everything accepted finishes. An answer whose reader is
// too far behind pauses: it is not scheduled, and is the first to give pages back.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/memory/kv_pool.h"
#include "common/memory/kv_tables.h"
#include "services/executor/executor_metrics.h"
#include "services/executor/sequence.h"
#include "services/executor/step_model.h"
#include "services/executor/step_results.h"

namespace mneme::executor {

struct SchedulerOptions {
  int64_t kv_budget_bytes = 0;
  int64_t max_running = 64;   // sequences in a batch
  int64_t step_tokens = 512;  // tokens of a step at most
  // What a step should take at most while answers wait for their next token: chunks shrink to it.
  std::chrono::milliseconds decode_step_target{150};
  // How long an answer may stay paused in the batch while others wait for its place.
  std::chrono::milliseconds pause_limit{1000};
};

// Used by the one thread that runs the model.
class Scheduler {
 public:
  // `model` and `metrics` must outlive the scheduler. Codes as KvPool::Create.
  static absl::StatusOr<std::unique_ptr<Scheduler>> Create(StepModel* model,
                                                           const SchedulerOptions& options,
                                                           ExecutorMetrics* metrics);

  // Takes a request over; it has passed TokenLimit (admission.h).
  void Add(std::shared_ptr<Request> request);

  // Runs one step. Returns false if there was nothing to run: no requests, or all of them wait for
  // their readers.
  bool Step();

  // Ends every request with `status`.
  void CloseAll(const absl::Status& status);

  bool idle() const { return running_.empty() && waiting_.empty(); }
  int64_t num_running() const { return static_cast<int64_t>(running_.size()); }
  int64_t num_waiting() const { return static_cast<int64_t>(waiting_.size()); }
  const memory::KvPool& pool() const { return *pool_; }
  // How long the request that started last had waited.
  double last_queue_seconds() const { return last_queue_seconds_; }

 private:
  struct Share {
    Sequence* sequence;
    int64_t num_tokens;
  };

  Scheduler(StepModel* model, const SchedulerOptions& options, ExecutorMetrics* metrics)
      : model_(model), options_(options), metrics_(metrics) {}

  void DropGoneRequests();
  void SpawnContinuations();
  void Admit();
  bool HasRoomFor(const Sequence& sequence) const;
  bool TakeFromPaused();
  void UpdatePauses();
  std::vector<Share> Plan() const;
  std::vector<Share> ReservePages(std::vector<Share> plan);
  bool PreemptFor(const Sequence& needy, std::vector<Share>* plan);
  void Preempt(Sequence* sequence);
  absl::Status Run(const std::vector<Share>& plan);
  void NoteRate(int64_t num_tokens, bool has_chunks, double seconds);
  void UpdateGauges();

  void Enqueue(std::unique_ptr<Sequence> sequence);
  void Insert(std::unique_ptr<Sequence> sequence);
  std::unique_ptr<Sequence> TakeRunning(const Sequence* sequence);
  // Ends a request: its sequences go, its stream closes.
  void CloseRequest(std::shared_ptr<Request> request, const absl::Status& status);
  // Ends the continuations of one token, which a context's logits have scored already.
  void EndSingleTokens(Sequence* context);
  // Ends a complete answer or continuation; nothing if it has gone with its request.
  void Retire(Sequence* sequence);

  StepModel* const model_;
  const SchedulerOptions options_;
  ExecutorMetrics* const metrics_;
  std::unique_ptr<memory::KvPool> pool_;
  std::unique_ptr<memory::KvTables> tables_;
  std::unique_ptr<StepResults> results_;
  std::vector<std::unique_ptr<Sequence>> running_;  // oldest first; all have memory
  std::deque<std::unique_ptr<Sequence>> waiting_;   // oldest first; none has memory
  double last_queue_seconds_ = 0;
  double tokens_per_second_ = 0;  // of steps with chunks, smoothed
};

}  // namespace mneme::executor
