#include "common/sync/short_turns.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>

namespace mneme::sync {
namespace {

constexpr uint64_t kTurnNs = 100'000;  // the least that the kernel takes

// As the kernel knows it (sched_setattr(2)); the C library has no declaration.
struct SchedulingAttributes {
  uint32_t size = sizeof(SchedulingAttributes);
  uint32_t policy = 0;
  uint64_t flags = 0;
  int32_t nice = 0;
  uint32_t priority = 0;
  uint64_t runtime = 0;  // for ordinary threads: the turn's length in ns
  uint64_t deadline = 0;
  uint64_t period = 0;
};

bool Get(SchedulingAttributes* attributes) {
  return syscall(SYS_sched_getattr, 0, attributes, sizeof(*attributes), 0) == 0;
}

}  // namespace

bool AskForShortTurns() {
  SchedulingAttributes attributes;
  if (!Get(&attributes)) return false;
  attributes.runtime = kTurnNs;
  if (syscall(SYS_sched_setattr, 0, &attributes, 0) != 0) return false;
  // Older kernels take the value and forget it.
  return Get(&attributes) && attributes.runtime == kTurnNs;
}

}  // namespace mneme::sync
