#include "common/scoring/infinitebench_option.h"

#include <gtest/gtest.h>

namespace mneme::scoring {
namespace {

bool NamesSortOrB(absl::string_view prediction) { return NamesBug(prediction, "sort", "B"); }

bool IsOldManOrC(absl::string_view prediction) {
  return IsAcceptedChoice(prediction, {"an old man", "C"});
}

TEST(InfiniteBenchOptionTest, TheLetterAtTheVeryFrontNamesTheBug) {
  EXPECT_TRUE(NamesSortOrB("B. sort"));
  EXPECT_TRUE(NamesSortOrB("B: the answer is: A"));
  // Only of the answer as it is, and only with "." or ":".
  EXPECT_FALSE(NamesSortOrB(" B. sort"));
  EXPECT_FALSE(NamesSortOrB("B"));
  EXPECT_FALSE(NamesSortOrB("sort"));
  EXPECT_FALSE(NamesSortOrB(""));
}

TEST(InfiniteBenchOptionTest, ThePhrasesDecideInTheirOrder) {
  EXPECT_TRUE(NamesSortOrB("The correct option is: B"));
  EXPECT_TRUE(NamesSortOrB("answer: sort."));
  EXPECT_TRUE(NamesSortOrB("The **answer is:** `sort`"));
  // "answer is:" comes first in the order though last in the text.
  EXPECT_TRUE(NamesSortOrB("answer: A, this is: A, the answer is: B"));
  EXPECT_FALSE(NamesSortOrB("answer: B, this is: A"));
  EXPECT_FALSE(NamesSortOrB("B is it"));
}

TEST(InfiniteBenchOptionTest, OneCharacterIsSkippedBehindThePhrase) {
  EXPECT_FALSE(NamesSortOrB("answer:B"));
  EXPECT_TRUE(NamesSortOrB("answer:éB"));
  EXPECT_FALSE(NamesSortOrB("answer:"));
  EXPECT_FALSE(NamesSortOrB("the answer is: "));
  // What becomes blank joins the blank that is skipped.
  EXPECT_TRUE(NamesSortOrB("answer:\n- Option 'sort'"));
}

TEST(InfiniteBenchOptionTest, AFirstLetterDecidesAChoice) {
  EXPECT_TRUE(IsOldManOrC("C"));
  EXPECT_TRUE(IsOldManOrC("\n Certainly not"));
  EXPECT_FALSE(IsOldManOrC("A man, so the answer is C"));
  EXPECT_FALSE(IsOldManOrC(""));
  EXPECT_FALSE(IsOldManOrC(" \n"));
}

TEST(InfiniteBenchOptionTest, TheWholeAnswerMayBeAccepted) {
  EXPECT_TRUE(IsOldManOrC(" an old man\n"));
  EXPECT_FALSE(IsOldManOrC("an old man."));
}

TEST(InfiniteBenchOptionTest, APhraseDecidesAChoice) {
  EXPECT_TRUE(IsOldManOrC("The answer is C"));
  EXPECT_TRUE(IsOldManOrC("The answer is: an old man, I think"));
  EXPECT_TRUE(IsOldManOrC("I say option is \"C\""));
  EXPECT_FALSE(IsOldManOrC("The answer is B, not C"));
  EXPECT_FALSE(IsOldManOrC("The answer is"));
  // "answer is:" is looked for first, "answer is" would be followed by ":".
  EXPECT_TRUE(IsOldManOrC("my answer is B? The answer is: C"));
}

TEST(InfiniteBenchOptionTest, WithoutAPhraseTheFirstLettersDecide) {
  EXPECT_TRUE(IsOldManOrC("I choose C or B"));
  EXPECT_FALSE(IsOldManOrC("I choose B or C"));
  EXPECT_FALSE(IsOldManOrC("I choose BC or C"));
  // The colon is no blank here.
  EXPECT_FALSE(IsOldManOrC("I choose C: fine"));
  EXPECT_TRUE(IsOldManOrC("I choose AC: or {C}"));
  EXPECT_FALSE(IsOldManOrC("nothing"));
}

}  // namespace
}  // namespace mneme::scoring
