#include "common/scoring/answer_metric.h"

#include <gmock/gmock.h>

namespace mneme::scoring {
namespace {

TEST(AnswerMetricTest, LanguagesHaveTheirOwnSegmenters) {
  const Segmenters segmenters = {
      .chinese = [](absl::string_view) { return std::vector<std::string>{"x"}; },
      .japanese =
          [](absl::string_view text) { return std::vector<std::string>{std::string(text)}; },
  };
  for (const MetricKind kind : {MetricKind::kQaF1, MetricKind::kRougeL}) {
    EXPECT_GT(ScoreAnswer({kind, Language::kChinese}, "a", "b", {}, segmenters), 0.99);
    EXPECT_EQ(ScoreAnswer({kind, Language::kJapanese}, "a", "b", {}, segmenters), 0);
    EXPECT_EQ(ScoreAnswer({kind}, "a", "b", {}, segmenters), 0);
  }
}

TEST(AnswerMetricTest, ParagraphsAreNamedByTheLanguage) {
  const Metric english{MetricKind::kRetrieval};
  const Metric chinese{MetricKind::kRetrieval, Language::kChinese};
  EXPECT_EQ(ScoreAnswer(english, "5", "Paragraph 5", {}, {}), 1);
  EXPECT_EQ(ScoreAnswer(english, "5", "段落5", {}, {}), 0);
  EXPECT_EQ(ScoreAnswer(chinese, "5", "段落5", {}, {}), 1);
  EXPECT_EQ(ScoreAnswer(chinese, "5", "Paragraph 5", {}, {}), 0);
}

TEST(AnswerMetricTest, TheBestReferenceCounts) {
  const Metric f1{MetricKind::kQaF1};
  EXPECT_EQ(BestScore("hotpotqa", f1, {.prediction = "Paris", .references = {"Rome", "Paris"}}, {}),
            1);
  EXPECT_EQ(BestScore("hotpotqa", f1, {.prediction = "Paris"}, {}), 0);
}

TEST(AnswerMetricTest, OfFewShotTasksOnlyTheFirstLineCounts) {
  const AnsweredPrompt prompt{.prediction = "\n\nParis\nQuestion: x", .references = {"Paris"}};
  for (const char* const task : {"trec", "triviaqa", "samsum", "lsht"}) {
    EXPECT_EQ(BestScore(task, {MetricKind::kQaF1}, prompt, {}), 1) << task;
  }
  EXPECT_EQ(BestScore("hotpotqa", {MetricKind::kQaF1}, prompt, {}), 0.5);
}

TEST(AnswerMetricTest, ClassesBelongToThePrompt) {
  const AnsweredPrompt prompt{
      .prediction = "A or B\nC", .references = {"A"}, .classes = {"A", "B", "C"}};
  EXPECT_EQ(BestScore("trec", {MetricKind::kClassification}, prompt, {}), 0.5);
}

TEST(AnswerMetricTest, TheMeanIsOverPrompts) {
  const std::vector<AnsweredPrompt> prompts = {{.prediction = "7", .references = {"7"}},
                                               {.prediction = "x", .references = {"7"}},
                                               {.prediction = "7 8", .references = {"7"}}};
  const auto percent = MeanBestPercent("passage_count", {MetricKind::kCount}, prompts, {});
  ASSERT_TRUE(percent.ok()) << percent.status();
  EXPECT_EQ(*percent, 50);
  EXPECT_TRUE(absl::IsInvalidArgument(
      MeanBestPercent("passage_count", {MetricKind::kCount}, {}, {}).status()));
}

}  // namespace
}  // namespace mneme::scoring
