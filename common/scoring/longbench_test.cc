#include "common/scoring/longbench.h"

#include <gmock/gmock.h>

namespace mneme::scoring {
namespace {

using ::testing::ElementsAre;
using ::testing::Pair;

TEST(LongBenchTest, FunctionsAreFoundByTheirNames) {
  const Metric chinese_f1{MetricKind::kQaF1, Language::kChinese};
  EXPECT_EQ(*LongBenchMetric("qa_f1_score"), Metric{MetricKind::kQaF1});
  EXPECT_EQ(*LongBenchMetric("qa_f1_score_zh"), chinese_f1);
  EXPECT_EQ(*LongBenchMetric("qa_f1_zh_score"), chinese_f1);
  EXPECT_EQ(*LongBenchMetric("code_sim_score"), Metric{MetricKind::kCodeBySubsequence});
  EXPECT_TRUE(absl::IsNotFound(LongBenchMetric("bleu").status()));
}

TEST(LongBenchTest, ATasksScoreIsAPercentageOfTwoPlaces) {
  const std::vector<AnsweredPrompt> prompts = {{.prediction = "yes", .references = {"yes"}},
                                               {.prediction = "yes", .references = {"no", "yes"}},
                                               {.prediction = "", .references = {"no"}}};
  EXPECT_EQ(*LongBenchTaskScore("hotpotqa", {MetricKind::kQaF1}, prompts, {}), 66.67);
  EXPECT_TRUE(absl::IsInvalidArgument(
      LongBenchTaskScore("hotpotqa", {MetricKind::kQaF1}, {}, {}).status()));
}

TEST(LongBenchTest, TheAverageIsOverTasksNotCategories) {
  const std::vector<LongBenchResult> results = {
      {"qasper", "QA", 10}, {"narrativeqa", "QA", 30}, {"lcc", "Code", 50}};
  const auto summary = SummariseLongBench(results);
  ASSERT_TRUE(summary.ok()) << summary.status();
  EXPECT_THAT(summary->by_category, ElementsAre(Pair("Code", 50), Pair("QA", 20)));
  EXPECT_EQ(summary->average, 30);
  EXPECT_TRUE(absl::IsInvalidArgument(SummariseLongBench({}).status()));
}

}  // namespace
}  // namespace mneme::scoring
