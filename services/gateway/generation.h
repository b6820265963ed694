// Token streams from the executors, with what happens when one of them dies.
//
// A group runs one or more Generate calls for one thread: it waits for whichever has something, and
// hands out all that is there. Before the first token a lost call is begun again on another
// executor; after it, the call goes on elsewhere (or on the same executor once it is back) from the
// tokens that were received. The caller sees one stream.
//
// Full queues refuse a group, never a part of it: a call that finds no place ends with
// RESOURCE_EXHAUSTED as long as the group has nothing at any executor; later ones, and those that
// go on elsewhere, wait for a place.
#pragma once

#include <deque>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/sync/mutex.h"
#include "common/trace/request_context.h"
#include "mneme/executor/v1/executor.grpc.pb.h"
#include "services/gateway/completion_loop.h"
#include "services/gateway/executor_pool.h"
#include "services/gateway/gateway_metrics.h"

namespace mneme::gateway {

struct GenerationOptions {
  int max_parallel = 16;  // calls of one group at a time; the others wait their turn
  // How long a lost generation waits for an executor of its model to be ready.
  absl::Duration failover_wait = absl::Seconds(20);
  // Responses of one call that wait to be taken; the executor is not read further meanwhile.
  size_t max_untaken = 256;
};

// Used by one thread, beside the loop's.
class GenerationGroup {
 public:
  enum class Event {
    kResponse,  // *response was filled
    kEnded,     // the call is over; its status is in *status
    kNothing,   // `until` has passed
  };

  // `loop`, `pool` and `metrics` must outlive the group.
  GenerationGroup(CompletionLoop& loop, ExecutorPool& pool, GatewayMetrics& metrics,
                  const GenerationOptions& options, trace::RequestContext context,
                  absl::Time deadline);
  // Cancels what runs and waits until it has ended.
  ~GenerationGroup();

  // Begins a call; the first one is number 0. `claim` is the place for it, if one is claimed
  // already.
  void Add(executor::v1::GenerateRequest request, ExecutorPool::Preference prefer,
           ExecutorPool::Claim claim = {});

  // Waits for the next event of any call; `call` says which. `until` in the past only takes what is
  // there already.
  Event Next(absl::Time until, size_t* call, executor::v1::GenerateResponse* response,
             absl::Status* status);

  // Asks the executor to end a session's call as if it had ended after `num_tokens` of its tokens:
  // its last response, with what it did to the memory, is still to come. Where the executor cannot
  // be asked, the call is cancelled instead.
  void Finish(size_t call, int num_tokens);

  // Returns the address of the executor that a call runs on, or ran on last; "" before.
  std::string ExecutorOf(size_t call) const;

  // Ends one call, or all: the executor stops within one step.
  void Cancel(size_t call);
  void CancelAll();

 private:
  class Call;
  // Outlives the group while the loop's thread leaves it.
  struct Lock {
    sync::Mutex mutex;
    sync::CondVar changed;
  };

  void StartWaiting() ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_->mutex);
  void CancelLocked(size_t call) ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_->mutex);
  // Whether any call has had, or may still have, a place at an executor.
  bool HasPlace() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_->mutex);

  CompletionLoop& loop_;
  ExecutorPool& pool_;
  GatewayMetrics& metrics_;
  const GenerationOptions options_;
  const trace::RequestContext context_;
  const absl::Time deadline_;
  const std::shared_ptr<Lock> lock_;
  std::vector<std::unique_ptr<Call>> calls_ ABSL_GUARDED_BY(lock_->mutex);
  std::deque<size_t> not_started_ ABSL_GUARDED_BY(lock_->mutex);
  int running_ ABSL_GUARDED_BY(lock_->mutex) = 0;
  bool has_received_ ABSL_GUARDED_BY(lock_->mutex) = false;  // anything of any call
  size_t next_ ABSL_GUARDED_BY(lock_->mutex) = 0;            // the call that is looked at first
};

}  // namespace mneme::gateway
