#include "kernels/parallel.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <vector>

#include "kernels/test_support.h"

namespace mneme::kernels {
namespace {

TEST(ParallelTest, EveryTaskRunsOnceForAnyThreadCount) {
  const testing::Settings settings;
  for (const int threads : {1, 2, 3, 8}) {
    SetNumThreads(threads);
    EXPECT_EQ(NumThreads(), threads);
    for (int round = 0; round < 300; ++round) {
      std::vector<std::atomic<int>> runs(static_cast<size_t>(round % 37));
      ParallelFor(static_cast<int64_t>(runs.size()), [&](int64_t i) { ++runs[i]; });
      for (const auto& count : runs) ASSERT_EQ(count, 1);
    }
  }
}

TEST(ParallelTest, NestedRegionRunsOnItsCaller) {
  const testing::Settings settings;
  SetNumThreads(3);
  std::atomic<int> runs = 0;
  ParallelFor(7, [&](int64_t) { ParallelFor(5, [&](int64_t) { ++runs; }); });
  EXPECT_EQ(runs, 35);
}

TEST(ParallelTest, CallersOfSeveralThreadsDoNotMix) {
  const testing::Settings settings;
  SetNumThreads(2);
  std::vector<std::jthread> callers;
  std::atomic<int> wrong = 0;
  for (int c = 0; c < 4; ++c) {
    callers.emplace_back([&wrong] {
      for (int round = 0; round < 500; ++round) {
        std::vector<std::atomic<int>> runs(11);
        ParallelFor(11, [&](int64_t i) { ++runs[i]; });
        for (const auto& count : runs) wrong += count != 1;
      }
    });
  }
  callers.clear();
  EXPECT_EQ(wrong, 0);
}

}  // namespace
}  // namespace mneme::kernels
