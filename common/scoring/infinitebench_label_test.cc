#include "common/scoring/infinitebench_label.h"

#include <gmock/gmock.h>

#include <nlohmann/json.hpp>

namespace mneme::scoring {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;

TEST(InfiniteBenchLabelTest, ValuesAndListsAreRead) {
  EXPECT_THAT(*ReadLabel("x"), ElementsAre(LabelValue(std::string("x"))));
  EXPECT_THAT(*ReadLabel(-3), ElementsAre(LabelValue(int64_t{-3})));
  EXPECT_THAT(*ReadLabel(json::parse("[1, 2.0, \"\"]")),
              ElementsAre(LabelValue(int64_t{1}), LabelValue(2.0), LabelValue(std::string())));
}

TEST(InfiniteBenchLabelTest, WhatIsNoLabelIsRefused) {
  for (const char* const text :
       {"null", "true", "[]", "{}", "[[1]]", "[null]", "18446744073709551615"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(ReadLabel(json::parse(text)).status())) << text;
  }
}

TEST(InfiniteBenchLabelTest, NumbersWithDecimalsHaveNoText) {
  EXPECT_EQ(*TextOf(int64_t{71432}), "71432");
  EXPECT_TRUE(absl::IsInvalidArgument(TextOf(1.5).status()));
}

TEST(InfiniteBenchLabelTest, IntegersEqualValuesOfEveryKind) {
  EXPECT_TRUE(EqualsInteger(int64_t{-3}, "-3"));
  EXPECT_FALSE(EqualsInteger(int64_t{-3}, "3"));
  EXPECT_TRUE(EqualsInteger(12.0, "12"));
  EXPECT_FALSE(EqualsInteger(12.5, "12"));
  EXPECT_TRUE(EqualsInteger(std::string("012"), "12"));
  EXPECT_FALSE(EqualsInteger(std::string("x"), "12"));
  EXPECT_FALSE(EqualsInteger(int64_t{1}, "100000000000000000001"));
}

}  // namespace
}  // namespace mneme::scoring
