#include "common/sync/bounded_queue.h"

#include <algorithm>
#include <memory>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace mneme::sync {
namespace {

TEST(BoundedQueueTest, PushIntoFullQueueIsRefusedAndKeepsTheItem) {
  BoundedQueue<std::unique_ptr<int>> queue(1);
  EXPECT_TRUE(queue.TryPush(std::make_unique<int>(1)));
  auto second = std::make_unique<int>(2);
  EXPECT_FALSE(queue.TryPush(std::move(second)));
  ASSERT_NE(second, nullptr);
  EXPECT_EQ(*second, 2);
}

TEST(BoundedQueueTest, CloseDrainsWhatIsLeftAndWakesWaiters) {
  BoundedQueue<int> queue(4);
  EXPECT_TRUE(queue.TryPush(7));
  queue.Close();
  EXPECT_FALSE(queue.TryPush(8));
  EXPECT_EQ(queue.Pop(), 7);
  std::jthread waiter([&queue] { EXPECT_EQ(queue.Pop(), std::nullopt); });
}

TEST(BoundedQueueTest, EveryItemOfManyProducersIsPoppedOnce) {
  constexpr int kProducers = 4;
  constexpr int kItems = 1000;
  BoundedQueue<int> queue(16);
  std::vector<int> seen(kProducers * kItems, 0);
  {
    std::jthread consumer([&] {
      while (std::optional<int> item = queue.Pop()) ++seen[*item];
    });
    std::vector<std::jthread> producers;
    for (int p = 0; p < kProducers; ++p) {
      producers.emplace_back([&queue, p] {
        for (int i = 0; i < kItems; ++i) {
          while (!queue.TryPush(p * kItems + i)) std::this_thread::yield();
        }
      });
    }
    producers.clear();
    queue.Close();
  }
  EXPECT_EQ(std::count(seen.begin(), seen.end(), 1), kProducers * kItems);
}

}  // namespace
}  // namespace mneme::sync
