#include "services/executor/token_stream.h"

#include <iterator>
#include <utility>

namespace mneme::executor {
namespace {

template <typename T>
void Append(std::vector<T>&& from, std::vector<T>* to) {
  if (to->empty()) {
    *to = std::move(from);
    return;
  }
  to->insert(to->end(), std::make_move_iterator(from.begin()), std::make_move_iterator(from.end()));
}

}  // namespace

void EngineSignal::Notify() {
  sync::MutexLock lock(mutex_);
  notified_ = true;
  changed_.NotifyOne();
}

void EngineSignal::Wait(std::chrono::steady_clock::time_point deadline) {
  sync::MutexLock lock(mutex_);
  while (!notified_) {
    if (!changed_.WaitUntil(mutex_, deadline)) break;
  }
  notified_ = false;
}

TokenStream::TokenStream(int num_answers, std::shared_ptr<EngineSignal> signal)
    : signal_(std::move(signal)), pending_(num_answers) {}

TokenStream::Read TokenStream::Next(StreamEvent* event,
                                    std::chrono::steady_clock::time_point deadline) {
  bool was_backed_up = false;
  {
    sync::MutexLock lock(mutex_);
    while (order_.empty() && !closed_) {
      if (!changed_.WaitUntil(mutex_, deadline)) return Read::kTimeout;
    }
    if (order_.empty()) return Read::kEnd;
    const int index = order_.front();
    order_.erase(order_.begin());
    Pending& pending = pending_[index];
    was_backed_up = pending.size >= kMaxBacklog;
    *event = std::exchange(pending.event, StreamEvent());
    event->index = index;
    pending.size = 0;
    pending.queued = false;
  }
  if (was_backed_up) signal_->Notify();
  return Read::kEvent;
}

bool TokenStream::Next(StreamEvent* event) {
  for (;;) {
    const Read read = Next(event, std::chrono::steady_clock::now() + std::chrono::seconds(60));
    if (read != Read::kTimeout) return read == Read::kEvent;
  }
}

absl::Status TokenStream::status() const {
  sync::MutexLock lock(mutex_);
  return status_;
}

void TokenStream::Cancel() {
  cancelled_.store(true, std::memory_order_relaxed);
  signal_->Notify();
}

void TokenStream::Push(StreamEvent event) {
  sync::MutexLock lock(mutex_);
  Pending& pending = pending_[event.index];
  pending.size += static_cast<int64_t>(event.token_ids.size() + event.prompt_logprobs.size());
  Append(std::move(event.token_ids), &pending.event.token_ids);
  Append(std::move(event.logprobs), &pending.event.logprobs);
  Append(std::move(event.prompt_logprobs), &pending.event.prompt_logprobs);
  if (event.end.has_value()) pending.event.end = std::move(event.end);
  if (!pending.queued) {
    pending.queued = true;
    order_.push_back(event.index);
  }
  changed_.NotifyOne();
}

void TokenStream::Close(absl::Status status) {
  sync::MutexLock lock(mutex_);
  closed_ = true;
  status_ = std::move(status);
  changed_.NotifyOne();
}

bool TokenStream::is_backed_up(int index) const {
  sync::MutexLock lock(mutex_);
  return pending_[index].size >= kMaxBacklog;
}

}  // namespace mneme::executor
