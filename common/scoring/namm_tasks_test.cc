#include "common/scoring/namm_tasks.h"

#include <gtest/gtest.h>

namespace mneme::scoring {
namespace {

TEST(NammTasksTest, EveryTaskHasItsMetric) {
  EXPECT_EQ(*NammMetric("triviaqa"), Metric{MetricKind::kQaF1});
  EXPECT_EQ(*NammMetric("dureader"), (Metric{MetricKind::kRougeL, Language::kChinese}));
  EXPECT_EQ(*NammMetric("repobench-p"), Metric{MetricKind::kCodeByBlocks});
  EXPECT_EQ(*NammMetric("corp_sec_sum"), (Metric{MetricKind::kRougeL, Language::kJapanese}));
  EXPECT_TRUE(absl::IsNotFound(NammMetric("passkey").status()));
}

TEST(NammTasksTest, ATasksScoreIsAPercentageNotRounded) {
  const std::vector<AnsweredPrompt> prompts = {{.prediction = "\nRome\nx", .references = {"Rome"}},
                                               {.prediction = "x", .references = {"Rome"}},
                                               {.prediction = "x", .references = {"Rome"}}};
  EXPECT_DOUBLE_EQ(*NammTaskScore("triviaqa", prompts, {}), 100.0 / 3);
  EXPECT_TRUE(absl::IsNotFound(NammTaskScore("passkey", prompts, {}).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(NammTaskScore("triviaqa", {}, {}).status()));
}

}  // namespace
}  // namespace mneme::scoring
