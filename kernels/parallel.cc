#include "kernels/parallel.h"

#include <immintrin.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>
#include <stop_token>
#include <thread>
#include <vector>

namespace mneme::kernels {
namespace {

// How long an idle worker stays awake. The first part covers the gaps between the operators of a
// decode step; in the second it lets other threads have the core.
constexpr auto kSpin = std::chrono::microseconds(20);
constexpr auto kStayAwake = std::chrono::microseconds(100);
constexpr int kPausesPerCheck = 32;

// One region at a time. `ticket_` is (region number, tasks not yet taken): a worker takes a task by
// counting it down, which fails once the region has moved on; so a late worker can do no harm, and
// nobody waits for one.
class WorkerPool {
 public:
  explicit WorkerPool(int num_workers) {
    // Signals belong to the threads of the service.
    sigset_t all;
    sigset_t before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    for (int i = 0; i < num_workers; ++i) {
      workers_.emplace_back([this](std::stop_token stop) { Work(stop); });
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }

  ~WorkerPool() {
    for (std::jthread& worker : workers_) worker.request_stop();
    wake_.fetch_add(1);
    wake_.notify_all();
  }

  WorkerPool(const WorkerPool&) = delete;
  WorkerPool& operator=(const WorkerPool&) = delete;

  // Returns false if another region runs.
  bool TryRun(int64_t num_tasks, void (*run)(void*, int64_t), void* context) {
    if (busy_.exchange(true, std::memory_order_acquire)) return false;
    num_tasks_.store(num_tasks, std::memory_order_relaxed);
    run_.store(run, std::memory_order_relaxed);
    context_.store(context, std::memory_order_relaxed);
    done_.store(0, std::memory_order_relaxed);
    region_ = (region_ + 1) & 0xffffffff;
    ticket_.store(region_ << 32 | static_cast<uint64_t>(num_tasks));
    if (sleepers_.load() > 0) {
      wake_.fetch_add(1);
      wake_.notify_all();
    }
    TakeTasks(region_);
    for (int spins = 0; done_.load(std::memory_order_acquire) != num_tasks; ++spins) {
      // A worker may have lost its core in the middle of a task.
      if (spins < 4000) {
        _mm_pause();
      } else {
        sched_yield();
      }
    }
    busy_.store(false, std::memory_order_release);
    return true;
  }

 private:
  void TakeTasks(uint64_t region) {
    uint64_t ticket = ticket_.load(std::memory_order_acquire);
    while (ticket >> 32 == region && (ticket & 0xffffffff) != 0) {
      if (!ticket_.compare_exchange_weak(ticket, ticket - 1, std::memory_order_acq_rel,
                                         std::memory_order_acquire)) {
        continue;
      }
      const auto left = static_cast<int64_t>(ticket & 0xffffffff);
      const int64_t task = num_tasks_.load(std::memory_order_relaxed) - left;
      run_.load(std::memory_order_relaxed)(context_.load(std::memory_order_relaxed), task);
      done_.fetch_add(1, std::memory_order_release);
      ticket = ticket_.load(std::memory_order_acquire);
    }
  }

  void Work(const std::stop_token& stop) {
    uint64_t seen = 0;
    while (!stop.stop_requested()) {
      const auto idle_since = std::chrono::steady_clock::now();
      for (int checks = 0; ticket_.load(std::memory_order_acquire) >> 32 == seen; ++checks) {
        if (stop.stop_requested()) return;
        if (checks % kPausesPerCheck != kPausesPerCheck - 1) {
          _mm_pause();
          continue;
        }
        const auto idle = std::chrono::steady_clock::now() - idle_since;
        if (idle > kStayAwake) {
          Sleep(seen, stop);
        } else if (idle > kSpin) {
          sched_yield();
        }
      }
      seen = ticket_.load(std::memory_order_acquire) >> 32;
      TakeTasks(seen);
    }
  }

  void Sleep(uint64_t seen, const std::stop_token& stop) {
    const uint32_t wake = wake_.load();
    sleepers_.fetch_add(1);
    if (ticket_.load() >> 32 == seen && !stop.stop_requested()) wake_.wait(wake);
    sleepers_.fetch_sub(1);
  }

  alignas(64) std::atomic<uint64_t> ticket_{0};
  alignas(64) std::atomic<int64_t> done_{0};
  alignas(64) std::atomic<bool> busy_{false};
  std::atomic<int64_t> num_tasks_{0};
  std::atomic<void (*)(void*, int64_t)> run_{nullptr};
  std::atomic<void*> context_{nullptr};
  uint64_t region_ = 0;  // of the caller that holds busy_
  alignas(64) std::atomic<int> sleepers_{0};
  std::atomic<uint32_t> wake_{0};
  std::vector<std::jthread> workers_;  // last: they end before what they use
};

int AvailableProcessors() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return 1;
  return std::max(1, CPU_COUNT(&set));
}

// The one piece of process-wide state, as LibTorch's own thread pool is: operators are called
// through the dispatcher and have nowhere to receive a pool from.
struct State {
  std::atomic<int> num_threads{AvailableProcessors()};
  std::atomic<WorkerPool*> pool{nullptr};
  std::unique_ptr<WorkerPool> owned = std::make_unique<WorkerPool>(num_threads - 1);

  State() { pool = owned.get(); }
};

State& GetState() {
  static State state;
  return state;
}

}  // namespace

void SetNumThreads(int num_threads) {
  State& state = GetState();
  num_threads = std::clamp(num_threads, 1, 1024);
  if (num_threads == state.num_threads) return;
  state.pool = nullptr;
  state.owned = std::make_unique<WorkerPool>(num_threads - 1);
  state.num_threads = num_threads;
  state.pool = state.owned.get();
}

int NumThreads() { return GetState().num_threads.load(std::memory_order_relaxed); }

void internal::ParallelForImpl(int64_t num_tasks, void (*run)(void*, int64_t), void* context) {
  WorkerPool* pool = GetState().pool.load(std::memory_order_acquire);
  if (pool != nullptr && num_tasks < (int64_t{1} << 32) && pool->TryRun(num_tasks, run, context)) {
    return;
  }
  for (int64_t i = 0; i < num_tasks; ++i) run(context, i);
}

}  // namespace mneme::kernels
