// The executor's connection to the memory service: the worker threads that stage and fetch
// snapshots, and the copies of chunks in host memory.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "common/sync/bounded_queue.h"
#include "mneme/memory/v1/memory.grpc.pb.h"
#include "services/executor/fetch.h"
#include "services/executor/host_cache.h"
#include "services/executor/staging.h"
#include "services/executor/token_stream.h"

namespace mneme::executor {

// A few threads that run what they are given, first come first served.
class Workers {
 public:
  Workers(int num_threads, size_t max_waiting);
  // What waits is still run.
  ~Workers();

  // False: too much waits already.
  bool TryRun(std::function<void()> task) { return tasks_.TryPush(std::move(task)); }

 private:
  sync::BoundedQueue<std::function<void()>> tasks_;
  std::vector<std::jthread> threads_;
};

struct MemoryLinkOptions {
  int64_t host_cache_bytes = int64_t{256} << 20;
  // A call of either kind may wait for the network, so neither keeps the other's threads.
  int stage_threads = 2;
  int fetch_threads = 4;
  FetchOptions fetch;
};

// Thread-safe. All stagings and fetches must have ended or been cancelled when it is destroyed.
class MemoryLink {
 public:
  MemoryLink(std::shared_ptr<memory::v1::MemoryService::StubInterface> stub,
             const MemoryLinkOptions& options, std::shared_ptr<EngineSignal> signal);

  std::shared_ptr<Staging> Stage(TurnIdentity turn);
  // Null: too many wait already.
  std::shared_ptr<Fetch> StartFetch(FetchRequest request);

  HostCache& host_cache() { return host_cache_; }

 private:
  const std::shared_ptr<memory::v1::MemoryService::StubInterface> stub_;
  const MemoryLinkOptions options_;
  const std::shared_ptr<EngineSignal> signal_;
  HostCache host_cache_;
  Workers stagers_;
  Workers fetchers_;
};

}  // namespace mneme::executor
