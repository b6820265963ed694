#include "services/cli/compare_plan.h"

#include <cmath>
#include <map>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace mneme::cli {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(ComparePlanTest, EveryPolicyMeetsEveryBudgetAndFullComesFirstOnce) {
  const auto plan = MakeComparePlan({"full", "truncate", "window", "h2o", "snapkv", "l2norm"},
                                    {"1/2", "0.25"}, 1000, 100);
  ASSERT_TRUE(plan.ok()) << plan.status();
  ASSERT_EQ(plan->contenders.size(), 11U);
  EXPECT_EQ(plan->contenders[0].policy, "full");
  EXPECT_TRUE(plan->contenders[0].memory_policy.has_full());
  EXPECT_EQ(plan->contenders[0].history_tokens, 1000);
  const Contender& truncate = plan->contenders[1];
  EXPECT_EQ(truncate.history_tokens + truncate.block_tokens, 500);
  EXPECT_EQ(plan->contenders[0].block_tokens, 100);
  EXPECT_TRUE(truncate.memory_policy.has_full());
  const Contender& window = plan->contenders[2];
  EXPECT_EQ(window.memory_policy.window().sinks() + window.memory_policy.window().recent(), 500);
  EXPECT_EQ(window.history_tokens, 1000);
  EXPECT_EQ(plan->contenders[8].policy, "h2o");
  EXPECT_EQ(plan->contenders[8].memory_policy.h2o().budget().tokens(), 250);
  EXPECT_EQ(plan->contenders[9].memory_policy.snapkv().budget().tokens(), 250);
  EXPECT_EQ(plan->contenders[10].memory_policy.l2norm().budget().tokens(), 250);
}

TEST(ComparePlanTest, BeaconsTakeTheShareAsTheirRatio) {
  for (const auto& [share, ratio] :
       std::map<std::string, int>{{"1/2", 2}, {"1/8", 8}, {"0.25", 4}}) {
    const auto plan = MakeComparePlan({"beacon"}, {share}, 1500, 100);
    ASSERT_TRUE(plan.ok()) << plan.status();
    EXPECT_THAT(plan->contenders[1].memory_policy.beacon().ratios(), ElementsAre(ratio));
  }
}

TEST(ComparePlanTest, WhatCannotBeComparedIsToldByName) {
  const auto error = [](const std::string& policy, const std::string& share,
                        int64_t history = 1000) {
    return std::string(MakeComparePlan({policy}, {share}, history, 10).status().message());
  };
  EXPECT_THAT(error("windows", "1/2"), HasSubstr("\"windows\""));
  EXPECT_THAT(error("namm", "1/2"), HasSubstr("not \"namm\""));
  EXPECT_THAT(error("beacon", "2/3"), HasSubstr("whole ratios"));
  for (const char* const share : {"0", "1", "2/1", "-1/2", "1/0", "half", "", "1/2/3", "nan"}) {
    EXPECT_THAT(error("h2o", share), HasSubstr("share of the history")) << share;
  }
  EXPECT_THAT(error("snapkv", "1/8", 80), HasSubstr("at least 33"));
  EXPECT_THAT(error("window", "1/8", 32), HasSubstr("at least 5"));
  EXPECT_FALSE(MakeComparePlan({"h2o"}, {"1/2"}, 0, 10).ok());
  EXPECT_FALSE(MakeComparePlan({"h2o"}, {"1/2"}, 10, 0).ok());
}

TEST(ComparePlanTest, WindowsAreSpreadOverTheTextAndDoNotOverlap) {
  EXPECT_THAT(*WindowStarts(1000, 100, 1), ElementsAre(0));
  EXPECT_THAT(*WindowStarts(1000, 100, 4), ElementsAre(0, 300, 600, 900));
  EXPECT_THAT(*WindowStarts(300, 100, 3), ElementsAre(0, 100, 200));
  EXPECT_FALSE(WindowStarts(299, 100, 3).ok());
  EXPECT_FALSE(WindowStarts(299, 100, 0).ok());
}

TEST(ComparePlanTest, FiguresComeFromWhatWasMeasured) {
  CompareResult full{.sum_logprob = -2 * std::log(10.0) * 50,
                     .num_scored = 100,
                     .num_read = 10,
                     .read_ms = 5,
                     .num_written = 4,
                     .write_ms = 10,
                     .resident_bytes = 3 << 20,
                     .peak_bytes = 4 << 20};
  EXPECT_NEAR(full.Perplexity(), 10, 1e-9);
  EXPECT_EQ(full.ReadMsPerToken(), 0.5);
  EXPECT_EQ(full.WriteMsPerToken(), 2.5);
  CompareResult half = full;
  half.sum_logprob = -std::log(11.0) * 100;
  const auto plan = MakeComparePlan({"window"}, {"1/2"}, 200, 100);
  ASSERT_TRUE(plan.ok());
  const auto rows = CompareRows(*plan, {full, half});
  ASSERT_EQ(rows.size(), 3U);
  EXPECT_THAT(rows[1],
              ElementsAre("full", "all", "200", "10.000", "+0.0 %", "3.0", "4.0", "0.50", "2.50"));
  EXPECT_THAT(rows[2], ElementsAre("window", "1/2", "100", "11.000", "+10.0 %", "3.0", "4.0",
                                   "0.50", "2.50"));
  EXPECT_THAT(CompareJson(plan->contenders[1], half), HasSubstr("\"budget_tokens\":100"));
}

}  // namespace
}  // namespace mneme::cli
