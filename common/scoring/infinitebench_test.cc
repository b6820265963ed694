#include "common/scoring/infinitebench.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace mneme::scoring {
namespace {

using nlohmann::json;

double Score(absl::string_view task, absl::string_view prediction, const json& label,
             absl::string_view prompt_set = "mistral") {
  const auto read = ReadLabel(label);
  EXPECT_TRUE(read.ok()) << read.status();
  const auto score = InfiniteBenchScore(task, prediction, *read, prompt_set);
  EXPECT_TRUE(score.ok()) << score.status();
  return score.value_or(-1);
}

TEST(InfiniteBenchTest, TheFirstDigitsAreTheKey) {
  for (const char* const task : {"passkey", "number_string"}) {
    EXPECT_EQ(Score(task, "The key is 71432, not 5.", "71432"), 1);
    EXPECT_EQ(Score(task, "12 34", {"12", "34"}), 1);
    EXPECT_EQ(Score(task, "12 34", {"34", "12"}), 0);
    EXPECT_EQ(Score(task, "012", "12"), 0);
    EXPECT_EQ(Score(task, "no", "12"), 0);
    EXPECT_EQ(Score(task, "", "12"), 0);
  }
}

TEST(InfiniteBenchTest, TheValueIsOneOfTheWords) {
  EXPECT_EQ(Score("kv_retrieval", "{\"key\":\"abc-1\"}", "abc-1"), 1);
  EXPECT_EQ(Score("kv_retrieval", "abc-1x", "abc-1"), 0);
  EXPECT_EQ(Score("kv_retrieval", "ABC-1", "abc-1"), 0);
  EXPECT_EQ(Score("kv_retrieval", "", "abc-1"), 0);
}

TEST(InfiniteBenchTest, DialoguesSpeakersAreInUpperCase) {
  EXPECT_EQ(Score("longdialogue_qa_eng", "it was José: hello", {"JOSÉ"}), 1);
  EXPECT_EQ(Score("longdialogue_qa_eng", "john", "john"), 0);
}

TEST(InfiniteBenchTest, CodeRunsLastWordIsTheResult) {
  EXPECT_EQ(Score("code_run", "It returns -3.", -3), 1);
  EXPECT_EQ(Score("code_run", "result:'12'", {12}), 1);
  EXPECT_EQ(Score("code_run", "12 or so", 12), 0);
  EXPECT_EQ(Score("code_run", "1,000", 1000), 0);
  EXPECT_EQ(Score("code_run", "3.0", 3), 0);
  EXPECT_EQ(Score("code_run", " .\n", 0), 0);
}

TEST(InfiniteBenchTest, OptionsComeFromTheLabel) {
  EXPECT_EQ(Score("code_debug", "answer is: B", {"sort", "B"}), 1);
  EXPECT_EQ(Score("longbook_choice_eng", "B. because", {"Because", "B"}), 1);
  EXPECT_EQ(Score("longbook_choice_eng", "B", "B"), 1);
}

TEST(InfiniteBenchTest, TheFirstNumberIsFound) {
  EXPECT_EQ(Score("math_find", "it is 12.5 or 3", 12.5), 1);
  EXPECT_EQ(Score("math_find", "it is 12.50", {12.5}), 1);
  EXPECT_EQ(Score("math_find", "7.", 7), 1);
  EXPECT_EQ(Score("math_find", "7", 7.0), 1);
  EXPECT_EQ(Score("math_find", "007", 7), 1);
  // A decimal is no integer, even if it is one in value; signs are not read.
  EXPECT_EQ(Score("math_find", "7.0", 7), 0);
  EXPECT_EQ(Score("math_find", "-7", -7), 0);
  EXPECT_EQ(Score("math_find", "seven", 7), 0);
  EXPECT_EQ(Score("math_find", "", 7.5), 0);
}

TEST(InfiniteBenchTest, CalculationsCountUpToTheFirstError) {
  EXPECT_EQ(Score("math_calc", "1, 4, 9, 16", {1, 4, 8, 16}), 0.5);
  EXPECT_EQ(Score("math_calc", "[01, 4", {1, 4}), 1);
  EXPECT_EQ(Score("math_calc", "1", {1, 4}), 0.5);
  EXPECT_EQ(Score("math_calc", "none", {1, 4}), 0);
  EXPECT_EQ(Score("math_calc", "99999999999999999999 1", {1}), 0);
}

TEST(InfiniteBenchTest, Gpt4sFirstNumberIsSkipped) {
  EXPECT_EQ(Score("math_calc", "5: 1, 4", {1, 4}, "gpt4"), 1);
  EXPECT_EQ(Score("math_calc", "5: 1, 4", {1, 4}, "claude2"), 0);
  EXPECT_EQ(Score("math_calc", "", {1, 4}, "gpt4"), 0);
}

TEST(InfiniteBenchTest, BookQuestionsTakeTheBestReference) {
  EXPECT_EQ(Score("longbook_qa_eng", "The old man", {"a woman", "old man"}), 1);
  EXPECT_EQ(Score("longbook_qa_eng", "The old man", "Old man."), 1);
  EXPECT_DOUBLE_EQ(Score("longbook_qa_chn", "他去了北京", {"上海", "北京"}), 4.0 / 7);
}

TEST(InfiniteBenchTest, SummariesTakeTheFirstReference) {
  EXPECT_GT(Score("longbook_sum_eng", "a story", {"a story", "x"}), 0.99);
  EXPECT_EQ(Score("longbook_sum_eng", "a story", {"x", "a story"}), 0);
}

TEST(InfiniteBenchTest, AnEmptySummaryIsReplacedByAText) {
  EXPECT_EQ(Score("longbook_sum_eng", "", "a story"), 0);
  EXPECT_GT(Score("longbook_sum_eng", "", "THIS_IS_A_NULL_STRING"), 0.99);
  EXPECT_EQ(Score("longbook_sum_eng", "...", "a story"), 0);
}

TEST(InfiniteBenchTest, LabelsOfTheWrongKindAreRefused) {
  for (const auto& [task, label] : std::vector<std::pair<const char*, Label>>{
           {"passkey", {}},
           {"passkey", {1.5}},
           {"code_debug", {std::string("B")}},
           {"math_find", {std::string("7")}},
       }) {
    EXPECT_TRUE(absl::IsInvalidArgument(InfiniteBenchScore(task, "x", label, "mistral").status()))
        << task;
  }
  EXPECT_TRUE(
      absl::IsNotFound(InfiniteBenchScore("qasper", "x", {int64_t{1}}, "mistral").status()));
}

TEST(InfiniteBenchTest, ATasksScoreIsTheMean) {
  EXPECT_EQ(*InfiniteBenchTaskScore({1, 0, 0.5, 0.5}), 0.5);
  EXPECT_TRUE(absl::IsInvalidArgument(InfiniteBenchTaskScore({}).status()));
}

}  // namespace
}  // namespace mneme::scoring
