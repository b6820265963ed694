#include "common/scoring/words.h"

#include <gmock/gmock.h>

namespace mneme::scoring {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

TEST(WordsTest, TheFirstLineFollowsLeadingBreaks) {
  EXPECT_EQ(FirstLine("\n\nParis\nextra"), "Paris");
  EXPECT_EQ(FirstLine("Paris"), "Paris");
  EXPECT_EQ(FirstLine(" \nParis"), " ");
  EXPECT_EQ(FirstLine("\n\n"), "");
  EXPECT_EQ(FirstLine(""), "");
}

TEST(WordsTest, WhiteSpaceIsUnicodes) {
  EXPECT_THAT(SplitWords("\u3000a\tb\u00a0\n c "), ElementsAre("a", "b", "c"));
  EXPECT_EQ(Strip("\u3000 a b\n"), "a b");
  EXPECT_EQ(Strip(" \n"), "");
}

TEST(WordsTest, NormalisedWordsHaveNeitherCaseNorPunctuationNorArticles) {
  EXPECT_THAT(NormalisedWords("An apple, THE Pear; and 3 figs!"),
              ElementsAre("apple", "pear", "and", "3", "figs"));
  EXPECT_THAT(NormalisedWords("Élan VITAL"), ElementsAre("élan", "vital"));
  EXPECT_THAT(NormalisedWords("the a an The."), IsEmpty());
  EXPECT_THAT(NormalisedWords(""), IsEmpty());
}

TEST(WordsTest, PunctuationGoesBeforeArticles) {
  // "A.N." is "an", "a-b" one word.
  EXPECT_THAT(NormalisedWords("A.N. a-b the_a"), ElementsAre("ab", "thea"));
}

TEST(WordsTest, ArticlesAreWholeWordsButNotOnlyBetweenBlanks) {
  EXPECT_THAT(NormalisedWords("then banana"), ElementsAre("then", "banana"));
  EXPECT_THAT(NormalisedWords("in—the—end"), ElementsAre("in—", "—end"));
  EXPECT_THAT(NormalisedWords("a中 éa"), ElementsAre("a中", "éa"));
}

TEST(WordsTest, NormalisedSegmentsLosePunctuationOfBothScripts) {
  EXPECT_THAT(NormalisedSegments({"北京", "。", "ABC", "，", " ", "x-y！", "the", ""}),
              ElementsAre("北京", "abc", "xy", "the"));
}

TEST(WordsTest, SomeBracketsAreNotListedAsChinesePunctuation) {
  EXPECT_THAT(NormalisedSegments({"《", "书", "》", "〈", "〉"}),
              ElementsAre("《", "书", "〈", "〉"));
}

}  // namespace
}  // namespace mneme::scoring
