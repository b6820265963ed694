#include "services/gateway/write_watch.h"

#include <algorithm>
#include <chrono>

#include "absl/time/clock.h"
#include "common/log/log.h"

namespace mneme::gateway {

WriteWatch::WriteWatch(absl::Duration timeout)
    : timeout_(timeout), thread_([this](std::stop_token stop) { Loop(stop); }) {}

WriteWatch::~WriteWatch() {
  {
    sync::MutexLock lock(mutex_);
    thread_.request_stop();
    changed_.NotifyAll();
  }
  thread_.join();
}

WriteWatch::Stream::Stream(WriteWatch& watch, grpc::ServerContext& context)
    : watch_(watch), context_(context) {
  sync::MutexLock lock(watch_.mutex_);
  place_ = watch_.streams_.insert(watch_.streams_.end(), this);
}

WriteWatch::Stream::~Stream() {
  sync::MutexLock lock(watch_.mutex_);
  watch_.streams_.erase(place_);
}

void WriteWatch::Stream::Begin() {
  const absl::Time now = absl::Now();
  sync::MutexLock lock(watch_.mutex_);
  begun_ = now;
}

void WriteWatch::Stream::End() {
  sync::MutexLock lock(watch_.mutex_);
  begun_ = absl::InfiniteFuture();
}

void WriteWatch::Loop(std::stop_token stop) {
  const auto pause = absl::ToChronoMilliseconds(std::max(timeout_ / 4, absl::Milliseconds(1)));
  sync::MutexLock lock(mutex_);
  while (!stop.stop_requested()) {
    changed_.WaitUntil(mutex_, std::chrono::steady_clock::now() + pause);
    const absl::Time latest = absl::Now() - timeout_;
    for (Stream* const stream : streams_) {
      if (stream->begun_ > latest) continue;
      log::Warning("a client that reads nothing is cut off", {{"peer", stream->context_.peer()}});
      // Only marks the call: its write returns, and its own thread ends it.
      stream->context_.TryCancel();
      stream->begun_ = absl::InfiniteFuture();
    }
  }
}

}  // namespace mneme::gateway
