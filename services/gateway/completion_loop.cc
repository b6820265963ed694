#include "services/gateway/completion_loop.h"

#include <chrono>
#include <utility>

namespace mneme::gateway {

CompletionLoop::CompletionLoop() : thread_([this] { Run(); }) {}

CompletionLoop::~CompletionLoop() {
  queue_.Shutdown();
  thread_.join();
}

void CompletionLoop::Post(Handler* handler) {
  sync::MutexLock lock(mutex_);
  posted_.push_back(handler);
  if (std::exchange(woken_, true)) return;
  alarm_.Set(&queue_, std::chrono::system_clock::now(), /*tag=*/nullptr);
}

void CompletionLoop::Run() {
  void* tag = nullptr;
  bool ok = false;
  std::vector<Handler*> posted;
  while (queue_.Next(&tag, &ok)) {
    if (tag != nullptr) {
      static_cast<Handler*>(tag)->OnDone(ok);
      continue;
    }
    {
      sync::MutexLock lock(mutex_);
      woken_ = false;
      posted.swap(posted_);
    }
    for (Handler* handler : posted) handler->OnDone(true);
    posted.clear();
  }
}

}  // namespace mneme::gateway
