#include "common/scoring/rouge.h"

#include <gtest/gtest.h>

namespace mneme::scoring {
namespace {

constexpr double kTolerance = 1e-12;

double F(double precision, double recall) {
  return 2 * precision * recall / (precision + recall + 1e-8);
}

TEST(RougeTest, EqualTextsScoreALittleLessThanOne) {
  EXPECT_NEAR(RougeL("same", "same").f, 2 / (2 + 1e-8), kTolerance);
  EXPECT_LT(RougeL("same", "same").f, 1);
}

TEST(RougeTest, WordsKeepTheirCaseAndPunctuation) {
  EXPECT_EQ(RougeL("Paris", "paris").f, 0);
  EXPECT_EQ(RougeL("paris,", "paris").f, 0);
}

TEST(RougeTest, RepeatedWordsCountOnce) {
  const RougeScore score = RougeL("same same other", "same");
  EXPECT_DOUBLE_EQ(score.precision, 0.5);
  EXPECT_DOUBLE_EQ(score.recall, 1);
  EXPECT_NEAR(score.f, F(0.5, 1), kTolerance);
}

TEST(RougeTest, HitsOfAllPairsOfSentencesAreUnited) {
  // Each sentence of one word meets its word in the other text, whatever the order.
  EXPECT_DOUBLE_EQ(RougeL("one. two. three.", "three two one").recall, 1);
  EXPECT_DOUBLE_EQ(RougeL("one two three", "three two one").recall, 1.0 / 3);
}

TEST(RougeTest, ASentenceOfWhiteSpaceIsOneEmptyWord) {
  EXPECT_DOUBLE_EQ(RougeL("end with dot. ", "end with dot").precision, 0.75);
  EXPECT_DOUBLE_EQ(RougeL("end with dot.", "end with dot").precision, 1);
  EXPECT_DOUBLE_EQ(RougeL(" ", "x. ").precision, 1);
}

TEST(RougeTest, WithoutASentenceThereIsNoScore) {
  for (const char* const text : {"", ".", "..."}) {
    EXPECT_EQ(RougeL(text, "x").f, 0) << text;
    EXPECT_EQ(RougeL("x", text).f, 0) << text;
    EXPECT_EQ(RougeL(text, text).f, 0) << text;
  }
}

TEST(RougeTest, WhiteSpaceOfAnyKindSeparates) {
  EXPECT_DOUBLE_EQ(RougeL("a\u3000b\tc", "a b\nc").recall, 1);
}

TEST(RougeTest, SegmentsAreJoinedByBlanks) {
  EXPECT_NEAR(SegmentedRougeL({"北京", "是", "中国", "。"}, {"中国", "北京", "。"}).f,
              F(0.5, 2.0 / 3), kTolerance);
  // "3.5" is one segment but has a sentence's end in it.
  EXPECT_DOUBLE_EQ(SegmentedRougeL({"3.5"}, {"5"}).recall, 1);
  EXPECT_EQ(SegmentedRougeL({}, {"x"}).f, 0);
}

TEST(RougeTest, NormalisedRougeComparesWordsAndPairs) {
  const NormalisedRouge score = RougeOfNormalised("The cat sat, the CAT sat.", "a cat sat down");
  EXPECT_NEAR(score.one, F(1, 2.0 / 3), kTolerance);
  // cat-sat and sat-cat against cat-sat and sat-down.
  EXPECT_NEAR(score.two, F(0.5, 0.5), kTolerance);
  EXPECT_EQ(RougeOfNormalised("the", "x").one, 0);
  EXPECT_EQ(RougeOfNormalised("x", "x").two, 0);
}

}  // namespace
}  // namespace mneme::scoring
