#include "kernels/parallel.h"

#include <sched.h>

#include <algorithm>
#include <atomic>

namespace mneme::kernels {
namespace {

int AvailableProcessors() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return 1;
  return std::max(1, CPU_COUNT(&set));
}

std::atomic<int>& ThreadCount() {
  static std::atomic<int> count{AvailableProcessors()};
  return count;
}

}  // namespace

void SetNumThreads(int num_threads) { ThreadCount() = std::max(1, num_threads); }
int NumThreads() { return ThreadCount().load(std::memory_order_relaxed); }

void internal::ParallelForImpl(int64_t num_tasks, void (*run)(void*, int64_t), void* context) {
  for (int64_t i = 0; i < num_tasks; ++i) run(context, i);
}

}  // namespace mneme::kernels
