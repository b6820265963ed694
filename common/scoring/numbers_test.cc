#include "common/scoring/numbers.h"

#include <gmock/gmock.h>

namespace mneme::scoring {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::Optional;

TEST(NumbersTest, RunsOfDigits) {
  EXPECT_THAT(DigitRuns("a12b3.40"), ElementsAre("12", "3", "40"));
  EXPECT_THAT(DigitRuns("段落５"), IsEmpty());
  EXPECT_THAT(DigitRuns(""), IsEmpty());
}

TEST(NumbersTest, DecimalsNeedDigits) {
  EXPECT_EQ(DecimalsSize(".50 x"), 3);
  EXPECT_EQ(DecimalsSize("."), 0);
  EXPECT_EQ(DecimalsSize("5"), 0);
  EXPECT_EQ(DecimalsSize(""), 0);
}

TEST(NumbersTest, IntegersHaveOneSpelling) {
  EXPECT_THAT(ReadInteger("-3"), Optional(std::string("-3")));
  EXPECT_THAT(ReadInteger("+007"), Optional(std::string("7")));
  EXPECT_THAT(ReadInteger("-0"), Optional(std::string("0")));
  EXPECT_THAT(ReadInteger("123456789012345678901234567890"),
              Optional(std::string("123456789012345678901234567890")));
  for (const char* const text : {"", "-", "--3", "3.0", "1,000", "x3", "3x", " 3"}) {
    EXPECT_EQ(ReadInteger(text), std::nullopt) << text;
  }
}

TEST(NumbersTest, CountIsTheShareOfTheRightNumber) {
  EXPECT_EQ(CountScore("7 7 7 3", "7"), 0.75);
  EXPECT_EQ(CountScore("seven", "7"), 0);
  EXPECT_EQ(CountScore("", ""), 0);
  // Compared as text.
  EXPECT_EQ(CountScore("07", "7"), 0);
  EXPECT_EQ(CountScore("7.0", "7"), 0.5);
}

TEST(NumbersTest, RetrievalTakesTheParagraphsNumber) {
  EXPECT_EQ(RetrievalScore("It is Paragraph 3 or 12", "Paragraph 12", "Paragraph "), 0.5);
  EXPECT_EQ(RetrievalScore("段落5和段落8", "段落8", "段落"), 0.5);
  EXPECT_EQ(RetrievalScore("12", "Paragraph x, 7 Paragraph 12", "Paragraph "), 1);
  EXPECT_EQ(RetrievalScore("none", "Paragraph 12", "Paragraph "), 0);
}

TEST(NumbersTest, ATruthWithoutAParagraphIsNotRetrieved) {
  EXPECT_EQ(RetrievalScore("12", "12", "Paragraph "), 0);
  EXPECT_EQ(RetrievalScore("12", "Paragraph  12", "Paragraph "), 0);
  EXPECT_EQ(RetrievalScore("", "", "Paragraph "), 0);
}

}  // namespace
}  // namespace mneme::scoring
