// The kernels' own threads. A decode step has hundreds of parallel regions of a few microseconds;
// waking sleeping threads for each costs more than the work. These workers spin for a short time
// after each region before they sleep, and a region never waits for a worker that did not take
// part.
#pragma once

#include <cstdint>
#include <type_traits>

namespace mneme::kernels {

// Sets how many threads a kernel may use, the caller included; at least 1. Starts with the number
// of processors that this process may run on. Not while a kernel runs.
void SetNumThreads(int num_threads);
int NumThreads();

namespace internal {
void ParallelForImpl(int64_t num_tasks, void (*run)(void*, int64_t), void* context);
}  // namespace internal

// Calls body(i) once for every i in [0, num_tasks), from this thread and the workers, in any order,
// and returns when all are done. `body` must not throw. If the workers are busy with another
// caller's region, or this is called from within one, the caller does it all itself.
template <typename Body>
void ParallelFor(int64_t num_tasks, Body&& body) {
  using Plain = std::remove_reference_t<Body>;
  if (num_tasks <= 1 || NumThreads() == 1) {
    for (int64_t i = 0; i < num_tasks; ++i) body(i);
    return;
  }
  internal::ParallelForImpl(
      num_tasks, [](void* context, int64_t i) { (*static_cast<Plain*>(context))(i); },
      const_cast<void*>(static_cast<const void*>(&body)));
}

}  // namespace mneme::kernels
