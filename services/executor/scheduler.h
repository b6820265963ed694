// Decides at every step which sequences run, and runs them: continuous batching over paged memory.
//
// A step holds one token of every running answer and chunks of the prompts that are being read
// (step_plan.h). Requests join and leave between steps. When pages run out, the youngest sequence
// gives its own back and waits in the queue, its tokens kept, until they can be recomputed; the
// oldest that can run always gets pages, so everything accepted finishes. An answer whose reader is
// too far behind pauses: it is not scheduled, and is the first to give pages back. Before anybody
// running does, the cache of ended sequences (sequence_cache.h) gives back what it has, and then
// elastic sequences are tightened, the largest first.
//
// A session's turn may wait for stored memory before it runs, and for its own to be stored after
// its last token (session_memory.h); others go on meanwhile.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/memory/kv_pool.h"
#include "common/memory/kv_tables.h"
#include "common/memory/memory_policy.h"
#include "services/executor/executor_metrics.h"
#include "services/executor/quality_guard.h"
#include "services/executor/sequence.h"
#include "services/executor/sequence_cache.h"
#include "services/executor/session_memory.h"
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
  // Part of the pages that ended sequences may keep for later ones, from 0 to 1. They give way to
  // whoever runs.
  double page_cache_share = 1;
};

// Used by the one thread that runs the model.
class Scheduler {
 public:
  // `model` and `metrics` must outlive the scheduler. Codes as KvPool::Create.
  static absl::StatusOr<std::unique_ptr<Scheduler>> Create(StepModel* model,
                                                           const SchedulerOptions& options,
                                                           ExecutorMetrics* metrics);
  // The same with a memory service; `sessions` must not be null.
  static absl::StatusOr<std::unique_ptr<Scheduler>> Create(StepModel* model,
                                                           const SchedulerOptions& options,
                                                           ExecutorMetrics* metrics,
                                                           std::unique_ptr<SessionMemory> sessions);

  // Takes a request over; it has passed TokenLimit (admission.h).
  void Add(std::shared_ptr<Request> request);

  // Runs one step. Returns false if there was nothing to run: no requests, or all of them wait for
  // their readers.
  bool Step();

  // Ends a session's answer as if it had ended after `num_tokens` generated tokens, those that the
  // request came with included. NOT_FOUND: no such turn is being computed. INVALID_ARGUMENT: so
  // many were not generated.
  absl::Status FinishTurn(absl::string_view tenant, absl::string_view session_id,
                          uint64_t lease_token, int64_t num_tokens);

  // Drops what is kept of a tenant, or of one session where it is named; of running ones nothing is
  // kept when they end.
  void Forget(const std::string& tenant, const std::string& session_id);

  // Ends every request with `status`.
  void CloseAll(const absl::Status& status);

  bool idle() const { return running_.empty() && waiting_.empty() && closing_.empty(); }
  int64_t num_running() const { return static_cast<int64_t>(running_.size()); }
  int64_t num_waiting() const { return static_cast<int64_t>(waiting_.size()); }
  const memory::KvPool& pool() const { return *pool_; }
  // How long the request that started last had waited.
  double last_queue_seconds() const { return last_queue_seconds_; }

 private:
  struct Share {
    Sequence* sequence;
    memory::ChunkLayout layout;

    int64_t num_tokens() const { return layout.num_tokens; }
  };

  Scheduler(StepModel* model, const SchedulerOptions& options, ExecutorMetrics* metrics)
      : model_(model), options_(options), metrics_(metrics) {}

  void DropGoneRequests();
  void SpawnContinuations();
  void Admit();
  bool HasRoomFor(const Sequence& sequence) const;
  // Pages that can be had without taking any from a running sequence.
  int64_t AvailablePages() const { return pool_->free_pages() + pool_->idle_pages(); }
  // Gives an admitted sequence its memory: what is kept of its past, or an empty one.
  void OpenMemory(Sequence* sequence);
  // Keeps the memory of a sequence that leaves the batch for later ones.
  void KeepMemory(Sequence* sequence);
  bool TakeFromPaused();
  void UpdatePauses();
  std::vector<Share> Plan() const;
  std::vector<Share> ReservePages(std::vector<Share> plan);
  // Halves the largest memory that may be tightened; false: there is none.
  bool ShrinkLargest();
  // Gives pages back without hurting anybody running more than it allows.
  bool FreePages() { return cache_->EvictOldest() || ShrinkLargest(); }
  bool PreemptFor(const Sequence& needy, std::vector<Share>* plan);
  // Goes on with what sessions' turns have to do with the memory service; says whether anything
  // moved. `has_run`: others run, and should not be kept waiting.
  bool AdvanceTurns(bool has_run);
  bool RestoreTurns(Instant deadline);
  bool CloseTurns();
  // Takes over an answer that is complete.
  void EndAnswer(std::unique_ptr<Sequence> sequence);
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
  std::unique_ptr<SequenceCache> cache_;
  std::unique_ptr<QualityGuard> guard_;
  std::unique_ptr<SessionMemory> sessions_;
  std::vector<std::unique_ptr<Sequence>> running_;  // oldest first; all have memory
  std::deque<std::unique_ptr<Sequence>> waiting_;   // oldest first; none has memory
  std::vector<std::unique_ptr<Sequence>> closing_;  // complete, until their memory is stored
  double last_queue_seconds_ = 0;
  double tokens_per_second_ = 0;  // of steps with chunks, smoothed
};

}  // namespace mneme::executor
