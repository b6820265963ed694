// One thread that waits for everything the executors send, for all streams.
//
// Were each stream's thread to wait in gRPC for its own, every token would cost several changes of
// thread, since those who wait there take turns at the socket. Here one thread reads, and a
// stream's thread is woken once, when there is something for it.
//
// All operations are begun on the loop's thread too: ThreadSanitizer cannot see what synchronises
// their beginning with their end inside the packaged gRPC.
#pragma once

#include <grpcpp/alarm.h>
#include <grpcpp/completion_queue.h>

#include <thread>
#include <vector>

#include "common/sync/mutex.h"

namespace mneme::gateway {

// Thread-safe.
class CompletionLoop {
 public:
  // What an operation is tagged with. Called on the loop's thread; must not block.
  class Handler {
   public:
    virtual void OnDone(bool ok) = 0;

   protected:
    ~Handler() = default;
  };

  CompletionLoop();
  // All operations must be done.
  ~CompletionLoop();

  // Has `handler` called soon, with true. It must live until then.
  void Post(Handler* handler);

  // For operations of handlers, which are tagged with a Handler*.
  grpc::CompletionQueue* queue() { return &queue_; }

 private:
  void Run();

  grpc::CompletionQueue queue_;
  sync::Mutex mutex_;
  std::vector<Handler*> posted_ ABSL_GUARDED_BY(mutex_);
  bool woken_ ABSL_GUARDED_BY(mutex_) = false;  // the alarm was set and has not rung
  grpc::Alarm alarm_ ABSL_GUARDED_BY(mutex_);
  std::jthread thread_;  // last: ends first
};

}  // namespace mneme::gateway
