// A turn's snapshot on its way to the memory service: the engine hands over chunks as they become
// complete and goes on; worker threads send them in order over one StageSnapshot stream.
#pragma once

#include <grpcpp/client_context.h>
#include <grpcpp/support/sync_stream.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <variant>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/snapshot/chunk.h"
#include "common/sync/mutex.h"
#include "common/trace/request_context.h"
#include "mneme/memory/v1/memory.grpc.pb.h"
#include "services/executor/host_cache.h"
#include "services/executor/token_stream.h"

namespace mneme::executor {

// Whose turn it is.
struct TurnIdentity {
  std::string tenant;
  std::string session_id;
  uint64_t lease_token = 0;
  uint64_t parent_version = 0;
  trace::RequestContext trace;
};

// Thread-safe. Held by the turn and by the worker that is at it; cancelled when the turn lets go.
class Staging : public std::enable_shared_from_this<Staging> {
 public:
  // Runs a function on a worker; false: too many wait already.
  using Scheduler = std::function<bool(std::function<void()>)>;

  // `host_cache` gets what is sent. Everything but `signal` must outlive the workers.
  Staging(TurnIdentity turn, memory::v1::MemoryService::StubInterface* stub, Scheduler schedule,
          HostCache* host_cache, std::shared_ptr<EngineSignal> signal);

  // The engine's side; none of it waits. Chunks in the order in which the manifest lists them.
  void Add(snapshot::EncodedChunk chunk);
  void Finish(snapshot::v1::Manifest manifest);
  // Gives up; result() is then an error.
  void Cancel(absl::Status why);
  // Bytes handed over and not sent yet: the engine holds back what it need not hand over now.
  int64_t pending_bytes() const { return pending_bytes_.load(std::memory_order_relaxed); }
  int64_t sent_bytes() const { return sent_bytes_.load(std::memory_order_relaxed); }
  // How long the call that is being made now has taken.
  std::chrono::steady_clock::duration stalled_for() const;
  // Says whether result() is there.
  bool is_done() const { return done_.load(std::memory_order_acquire); }
  // UNAVAILABLE until is_done().
  absl::StatusOr<memory::v1::StageSnapshotResponse> result() const;

 private:
  using ChunkPlace = std::pair<uint64_t, int32_t>;  // first serial, first layer
  // What is kept of a chunk sent. Its digest is the memory service's work, which must make it to be
  // sure of it; it comes back with the stored manifest.
  struct Copy {
    uint64_t unnamed = 0;  // in the host cache
    uint32_t num_bytes = 0;
    uint32_t crc32c = 0;
  };
  using Item = std::variant<snapshot::EncodedChunk, snapshot::v1::Manifest>;

  void Push(Item item, int64_t bytes);
  void Work();
  // False: the stream has broken, and its status is the result.
  bool Send(Item item);
  bool SendChunk(snapshot::EncodedChunk encoded);
  bool SendManifest(snapshot::v1::Manifest manifest);
  bool Open();
  void Keep(const snapshot::v1::Chunk& chunk, Payload payload);
  void NameCopies(const snapshot::v1::Manifest& stored);
  void DropCopies() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void SetResult(absl::StatusOr<memory::v1::StageSnapshotResponse> result);

  const TurnIdentity turn_;
  memory::v1::MemoryService::StubInterface* const stub_;
  const Scheduler schedule_;
  HostCache* const host_cache_;
  const std::shared_ptr<EngineSignal> signal_;
  std::atomic<int64_t> pending_bytes_ = 0;
  std::atomic<int64_t> sent_bytes_ = 0;
  std::atomic<int64_t> busy_since_ns_ = 0;  // of the steady clock; 0: no call is being made
  std::atomic<bool> done_ = false;

  // The worker's.
  grpc::ClientContext context_;
  memory::v1::StageSnapshotResponse response_;
  std::unique_ptr<grpc::ClientWriterInterface<memory::v1::StageSnapshotRequest>> writer_;

  mutable sync::Mutex mutex_;
  std::deque<Item> items_ ABSL_GUARDED_BY(mutex_);
  bool is_scheduled_ ABSL_GUARDED_BY(mutex_) = false;
  absl::flat_hash_map<ChunkPlace, Copy> copies_ ABSL_GUARDED_BY(mutex_);
  absl::StatusOr<memory::v1::StageSnapshotResponse> result_ ABSL_GUARDED_BY(mutex_) =
      absl::UnavailableError("the snapshot is still being stored");
};

}  // namespace mneme::executor
