#include "services/executor/memory_link.h"

#include <utility>

namespace mneme::executor {
namespace {

constexpr size_t kMaxWaiting = 1024;

}  // namespace

Workers::Workers(int num_threads, size_t max_waiting) : tasks_(max_waiting) {
  for (int i = 0; i < num_threads; ++i) {
    threads_.emplace_back([this] {
      while (const std::optional<std::function<void()>> task = tasks_.Pop()) (*task)();
    });
  }
}

Workers::~Workers() { tasks_.Close(); }

MemoryLink::MemoryLink(std::shared_ptr<memory::v1::MemoryService::StubInterface> stub,
                       const MemoryLinkOptions& options, std::shared_ptr<EngineSignal> signal)
    : stub_(std::move(stub)),
      options_(options),
      signal_(std::move(signal)),
      host_cache_(options.host_cache_bytes),
      stagers_(options.stage_threads, kMaxWaiting),
      fetchers_(options.fetch_threads, kMaxWaiting) {}

std::shared_ptr<Staging> MemoryLink::Stage(TurnIdentity turn) {
  return std::make_shared<Staging>(
      std::move(turn), stub_.get(),
      [this](std::function<void()> task) { return stagers_.TryRun(std::move(task)); }, &host_cache_,
      signal_);
}

std::shared_ptr<Fetch> MemoryLink::StartFetch(FetchRequest request) {
  auto fetch = std::make_shared<Fetch>(std::move(request), options_.fetch, stub_.get(),
                                       &host_cache_, signal_);
  return fetchers_.TryRun([fetch] { fetch->Run(); }) ? fetch : nullptr;
}

}  // namespace mneme::executor
