// Cuts off gRPC streams whose client stopped reading. A synchronous Write waits for such a client
// without an end, and gRPC knows no time limit for it: a thread looks after the writes.
#pragma once

#include <grpcpp/server_context.h>

#include <list>
#include <thread>

#include "absl/time/time.h"
#include "common/sync/mutex.h"

namespace mneme::gateway {

// Thread-safe. Must outlive its streams.
class WriteWatch {
 public:
  // A write that takes longer than `timeout` has its call cancelled.
  explicit WriteWatch(absl::Duration timeout);
  ~WriteWatch();

  // One call under watch, used by the thread that writes. Destroyed before the call's context.
  class Stream {
   public:
    Stream(WriteWatch& watch, grpc::ServerContext& context);
    ~Stream();
    Stream(const Stream&) = delete;
    Stream& operator=(const Stream&) = delete;

    // Around the writes.
    void Begin();
    void End();

   private:
    friend class WriteWatch;

    WriteWatch& watch_;
    grpc::ServerContext& context_;
    std::list<Stream*>::iterator place_;
    absl::Time begun_ = absl::InfiniteFuture();  // guarded by the watch's mutex
  };

 private:
  void Loop(std::stop_token stop);

  const absl::Duration timeout_;
  sync::Mutex mutex_;
  sync::CondVar changed_;
  std::list<Stream*> streams_ ABSL_GUARDED_BY(mutex_);
  std::jthread thread_;  // last: ends first
};

}  // namespace mneme::gateway
