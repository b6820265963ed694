// One thread that waits for everything the executors send, for all streams.
//
// Were each stream's thread to wait in gRPC for its own, every token would cost several changes of
// thread, since those who wait there take turns at the socket. Here one thread reads, and a
// stream's thread is woken once, when there is something for it.
#pragma once

#include <grpcpp/completion_queue.h>

#include <thread>

namespace mneme::gateway {

// Thread-safe.
class CompletionLoop {
 public:
  // What an asynchronous operation is tagged with. Called on the loop's thread; must not block.
  class Handler {
   public:
    virtual void OnDone(bool ok) = 0;

   protected:
    ~Handler() = default;
  };

  CompletionLoop() : thread_([this] { Run(); }) {}
  // All operations must be done.
  ~CompletionLoop() { queue_.Shutdown(); }

  grpc::CompletionQueue* queue() { return &queue_; }

 private:
  void Run() {
    void* tag = nullptr;
    bool ok = false;
    while (queue_.Next(&tag, &ok)) static_cast<Handler*>(tag)->OnDone(ok);
  }

  grpc::CompletionQueue queue_;
  std::jthread thread_;  // last: ends first
};

}  // namespace mneme::gateway
