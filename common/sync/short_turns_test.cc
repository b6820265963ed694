#include "common/sync/short_turns.h"

#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>
#include <thread>

#include "gtest/gtest.h"

namespace mneme::sync {
namespace {

// The turn's length of this thread in ns, from the kernel.
uint64_t TurnNs() {
  uint64_t attributes[6] = {};  // sched_getattr(2): the runtime is at byte 24
  syscall(SYS_sched_getattr, 0, attributes, sizeof(attributes), 0);
  return attributes[3];
}

TEST(ShortTurnsTest, HoldForTheThreadAndItsChildrenAndChangeNoPriority) {
  const uint64_t before = TurnNs();
  std::thread([before] {
    const int nice = getpriority(PRIO_PROCESS, 0);
    if (!AskForShortTurns()) GTEST_SKIP() << "this kernel has no turns of a chosen length";
    EXPECT_EQ(TurnNs(), 100'000U);
    EXPECT_EQ(getpriority(PRIO_PROCESS, 0), nice);
    std::thread([] { EXPECT_EQ(TurnNs(), 100'000U); }).join();
    EXPECT_NE(before, 100'000U);
  }).join();
  EXPECT_EQ(TurnNs(), before);
}

}  // namespace
}  // namespace mneme::sync
