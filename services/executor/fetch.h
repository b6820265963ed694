// A session's stored memory on its way back: worker threads ask the memory service for the
// manifest, judge it, and get the chunks that the host cache lacks; the engine takes them one by
// one.
#pragma once

#include <grpcpp/client_context.h>

#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/memory/kv_shape.h"
#include "common/memory/memory_policy.h"
#include "common/memory/policy_choice.h"
#include "common/sync/mutex.h"
#include "mneme/memory/v1/memory.grpc.pb.h"
#include "services/executor/host_cache.h"
#include "services/executor/staging.h"
#include "services/executor/token_stream.h"

namespace mneme::executor {

struct FetchOptions {
  // How long the manifest may take, and the chunks: so long, and longer by their bytes.
  absl::Duration manifest_timeout = absl::Seconds(2);
  absl::Duration chunk_timeout = absl::Seconds(2);
  int64_t min_bytes_per_second = int64_t{20} << 20;
  // Chunks that the engine has not taken yet; beyond, the worker waits.
  int64_t max_ready_bytes = int64_t{64} << 20;
};

// What is asked for, and what it must fit.
struct FetchRequest {
  TurnIdentity turn;
  uint64_t version = 0;  // the latest snapshot up to it
  snapshot::v1::Lineage lineage;
  memory::KvShape shape;
  memory::PolicyChoice choice;
  std::vector<int32_t> tokens;  // of the prompt
  // Tokens whose memory is there already, and its policy: chunks are fetched only where the
  // snapshot covers more than `worthwhile_tokens` others, or lacks entries that are there.
  int64_t num_present = 0;
  std::shared_ptr<const memory::MemoryPolicy> present_policy;
  int64_t worthwhile_tokens = 32;
};

// Thread-safe.
class Fetch {
 public:
  Fetch(FetchRequest request, const FetchOptions& options,
        memory::v1::MemoryService::StubInterface* stub, HostCache* host_cache,
        std::shared_ptr<EngineSignal> signal);

  // The worker's side: runs to the end.
  void Run();

  // The engine's side; none of it waits.
  enum class State {
    kLooking,   // no manifest yet
    kArriving,  // manifest() is there, chunks come
    kEnough,    // manifest() is there, what is present suffices
    kFailed,    // status() says why
  };
  State state() const { return state_.load(std::memory_order_acquire); }
  const snapshot::v1::Manifest& manifest() const { return manifest_; }
  uint64_t version() const { return version_; }  // the snapshot's, with manifest()
  // What the memory is under, with manifest(): the policy asked for, what it has become, or a wider
  // one that it can follow.
  const std::shared_ptr<const memory::MemoryPolicy>& policy() const { return policy_; }
  absl::Status status() const;

  struct Arrived {
    int index = 0;  // of the manifest's list
    Payload payload;
  };
  std::optional<Arrived> TryPop();

  void Cancel();
  // Where the chunks so far came from, the slowest place: host, redis or disk.
  std::string tier() const;
  int64_t fetched_bytes() const { return fetched_bytes_.load(std::memory_order_relaxed); }

 private:
  absl::Status Look();
  // Returns the policy that a stored memory is restored under; the one asked for where none fits,
  // which the memory is then refused for.
  std::shared_ptr<const memory::MemoryPolicy> StoredPolicy(const std::string& stored) const;
  absl::Status GetChunks();
  // Waits while too much is ready; false: cancelled.
  bool Push(Arrived arrived);
  void NoteTier(absl::string_view tier);
  bool is_cancelled() const { return cancelled_.load(std::memory_order_relaxed); }

  const FetchRequest request_;
  const FetchOptions options_;
  memory::v1::MemoryService::StubInterface* const stub_;
  HostCache* const host_cache_;
  const std::shared_ptr<EngineSignal> signal_;
  std::atomic<State> state_ = State::kLooking;
  std::atomic<bool> cancelled_ = false;
  std::atomic<int64_t> fetched_bytes_ = 0;
  grpc::ClientContext look_context_;
  grpc::ClientContext chunk_context_;
  snapshot::v1::Manifest manifest_;  // before `state_` says that it is there
  uint64_t version_ = 0;
  std::shared_ptr<const memory::MemoryPolicy> policy_;

  mutable sync::Mutex mutex_;
  sync::CondVar taken_;
  std::deque<Arrived> ready_ ABSL_GUARDED_BY(mutex_);
  int64_t ready_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  std::string tier_ ABSL_GUARDED_BY(mutex_);
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace mneme::executor
