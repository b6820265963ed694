// The executors behind the gateway: which are ready, what they serve, how busy they are.
//
// A thread probes every address, so an executor that dies or comes back is noticed without any
// request paying for it. What an executor served before it died is remembered: asking for its model
// then is UNAVAILABLE, not NOT_FOUND.
//
// Nor does a request that has no chance pay for it, or for anything else. The pool knows by itself
// when an executor is full: when as many calls of this gateway are open there as it ever takes, or
// when it has said so, by refusing a call or to a probe, and nothing has ended since. The executor
// stays the authority: what it might take is sent to it.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "common/sync/mutex.h"
#include "common/trace/request_context.h"
#include "mneme/executor/v1/executor.grpc.pb.h"
#include "mneme/gateway/v1/model.pb.h"
#include "services/gateway/gateway_metrics.h"

namespace mneme::gateway {

// Thread-safe.
class ExecutorPool {
 public:
  // One executor. Lives as long as the pool.
  struct Executor {
    std::string address;
    std::unique_ptr<executor::v1::ExecutorService::Stub> stub;
    std::atomic<int> in_flight{0};       // claims of this gateway
    std::atomic<uint64_t> num_ended{0};  // calls of this gateway that had a place there
  };

  // One generation's claim on an executor, counted as load until it is destroyed. It may be taken
  // before the call is made, so that of requests that come together only those go on that the
  // executor has places for.
  class Claim {
   public:
    Claim() = default;
    explicit Claim(Executor* executor) : executor_(executor) { ++executor_->in_flight; }
    Claim(Claim&& other) noexcept : executor_(std::exchange(other.executor_, nullptr)) {}
    Claim& operator=(Claim&& other) noexcept {
      std::swap(executor_, other.executor_);
      return *this;
    }
    ~Claim() {
      if (executor_ != nullptr) --executor_->in_flight;
    }
    Executor* get() const { return executor_; }
    Executor* operator->() const { return executor_; }

   private:
    Executor* executor_ = nullptr;
  };

  // Which executor would be the best one.
  struct Preference {
    std::string affinity;  // requests with the same one prefer the same executor; "": none
    std::string hot;       // address of the one that has the session's memory; "": none has
  };

  // What to look for.
  struct Query {
    std::string model;        // "": any
    std::string fingerprint;  // "": any
    Preference prefer;
    std::vector<const Executor*> exclude;
  };

  // Starts probing. `metrics` must outlive the pool. `default_model` may be empty: then it is what
  // the first executor serves.
  ExecutorPool(const std::vector<std::string>& addresses, std::string default_model,
               GatewayMetrics& metrics);
  ~ExecutorPool();

  // Returns the name to use for what a client asked for ("": the default model). NOT_FOUND with
  // reason MODEL_NOT_FOUND: no executor serves it. UNAVAILABLE: executors that might serve it have
  // not answered yet.
  absl::StatusOr<std::string> Resolve(absl::string_view model) const;

  // Claims the hot executor, else the one that the affinity prefers, else the least busy one, of
  // those that are ready and not full; a preferred one may only be so much busier. With a retry
  // delay: UNAVAILABLE, none is ready; RESOURCE_EXHAUSTED, all of those are full.
  absl::StatusOr<Claim> Pick(const Query& query) const;
  // Returns an executor of the model that is ready, full or not; null: none is.
  Executor* AnyReady(absl::string_view model) const;
  // Returns what Pick would, and claims nothing.
  absl::Status CheckRoom(const Query& query) const;

  // Has every ready executor drop what it holds of a session, or of a whole tenant; one that is not
  // ready has lost its memory with its process. Waits for them, a bounded time each.
  void ForgetMemory(const executor::v1::ForgetMemoryRequest& forget,
                    const trace::RequestContext& request);

  // Says that a call failed: the executor is not used again until a probe succeeds.
  void ReportFailure(const Executor* executor);
  // Says that the executor's queue was full for a call, with `num_ended` as it was when the call
  // was made. It counts as full until a call of this gateway ends there or a probe finds a place.
  void ReportFull(const Executor* executor, uint64_t num_ended, absl::Duration retry_after);

  // Returns what is known of a model's executor; NOT_FOUND as Resolve.
  absl::StatusOr<executor::v1::GetModelResponse> Describe(absl::string_view model) const;

  // Returns all models seen, by name; those without a ready executor have `executors` 0.
  std::vector<v1::Model> Models() const;

  int NumReady() const;

 private:
  struct State {
    bool ready = false;
    bool seen = false;      // has ever said what it serves
    int external_load = 0;  // what others than this gateway had running at the last probe
    // The executor's num_ended when it was last known to be full.
    std::optional<uint64_t> full_at;
    absl::Duration retry_after = absl::Seconds(1);  // that it named last
    executor::v1::GetModelResponse model;
    absl::Time first_seen;
  };

  void Probe(size_t i);
  void ProbeLoop(std::stop_token stop);
  std::string DefaultModel() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::StatusOr<Executor*> Find(const Query& query) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool IsFull(size_t i) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const std::string default_model_;
  GatewayMetrics& metrics_;
  std::vector<std::unique_ptr<Executor>> executors_;
  mutable std::atomic<size_t> next_{0};
  mutable sync::Mutex mutex_;
  sync::CondVar changed_;
  std::vector<State> states_ ABSL_GUARDED_BY(mutex_);
  bool probe_now_ ABSL_GUARDED_BY(mutex_) = false;
  std::jthread prober_;  // last: ends first
};

}  // namespace mneme::gateway
