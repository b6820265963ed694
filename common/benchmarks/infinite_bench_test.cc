#include "common/benchmarks/infinite_bench.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace mneme::benchmarks {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

TaskPrompt Task(absl::string_view text) {
  TaskPrompt task;
  const auto parsed = PromptTemplate::Parse(text, kInfiniteBenchPlaces);
  EXPECT_TRUE(parsed.ok()) << parsed.status();
  task.prompt = *parsed;
  return task;
}

std::string Prompt(absl::string_view text, const std::string& input) {
  const auto sample = MakeInfiniteBenchSample(Task(text), {.context = "C", .input = input});
  return sample.ok() ? sample->prompt : std::string(sample.status().message());
}

InfiniteBenchExample Choice(json answer) {
  return {.context = "C", .options = {"w", "x", "y", "z"}, .answer = std::move(answer)};
}

constexpr absl::string_view kChoice = "{option_a}{option_b}{option_c}{option_d}";

TEST(InfiniteBenchTest, FunctionIsTheFirstCallInTheInput) {
  EXPECT_EQ(Prompt("{function} {function_call}", "func_x func_3 func_12(-3), func_4(5)"),
            "func_12 func_12(-3)");
  EXPECT_EQ(Prompt("{function_call}", "func_func_7(10)"), "func_7(10)");
  EXPECT_THAT(Prompt("{function}", "func_1(--2) func_2(3"), HasSubstr("names no function call"));
}

TEST(InfiniteBenchTest, WantedNumberIsNamedInLowerCase) {
  EXPECT_EQ(Prompt("{wanted}", "Find it. The 2nd Largest number of the list?"),
            "the 2nd largest number");
  EXPECT_EQ(Prompt("{wanted}", "a\nThe median of two parts of it"), "the median of two parts");
  EXPECT_THAT(Prompt("{wanted}", "The \n of"), HasSubstr("which number is wanted"));
  EXPECT_THAT(Prompt("{wanted}", "of The list"), HasSubstr("which number is wanted"));
}

TEST(InfiniteBenchTest, ChoicesHaveTextAndLetterAsLabel) {
  const TaskPrompt task = Task(kChoice);
  EXPECT_EQ(MakeInfiniteBenchSample(task, Choice("y"))->label, json({"y", "C"}));
  EXPECT_EQ(MakeInfiniteBenchSample(task, Choice("y"))->prompt, "wxyz");
  EXPECT_EQ(MakeInfiniteBenchSample(task, Choice(json::array({"z"})))->label, json({"z", "D"}));
  EXPECT_EQ(MakeInfiniteBenchSample(task, Choice({"other", "A"}))->label, json({"other", "A"}));
}

TEST(InfiniteBenchTest, OtherLabelsAreTheAnswer) {
  const TaskPrompt task = Task("{context}{input}");
  for (const json& answer : {json("a"), json(3.5), json({1, 2, 3}), json()}) {
    EXPECT_EQ(MakeInfiniteBenchSample(task, {.answer = answer})->label, answer);
  }
}

TEST(InfiniteBenchTest, ChoicesThatDoNotFitAreInvalid) {
  const TaskPrompt task = Task(kChoice);
  for (const json& answer :
       {json("v"), json({"y", "E"}), json({"y", "C", "D"}), json(2), json::array(), json()}) {
    EXPECT_EQ(MakeInfiniteBenchSample(task, Choice(answer)).status().code(),
              absl::StatusCode::kInvalidArgument)
        << answer;
  }
  const auto few = MakeInfiniteBenchSample(task, {.options = {"w"}, .answer = "w"});
  EXPECT_THAT(std::string(few.status().message()), HasSubstr("too few options for its task: 1 of"));
}

TEST(InfiniteBenchTest, PlacesWithinTheContextAreText) {
  const auto sample = MakeInfiniteBenchSample(Task("{context}{input}"),
                                              {.context = "{input}", .input = "{wanted}"});
  ASSERT_TRUE(sample.ok());
  EXPECT_EQ(sample->prompt, "{input}{wanted}");
}

}  // namespace
}  // namespace mneme::benchmarks
