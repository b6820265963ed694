#include "common/scoring/word_f1.h"

#include <gtest/gtest.h>

namespace mneme::scoring {
namespace {

TEST(WordF1Test, AWordCountsAsOftenAsBothHaveIt) {
  // 2 of 3 and 2 of 2.
  EXPECT_DOUBLE_EQ(WordF1({"x", "x", "x"}, {"x", "x"}), 0.8);
  EXPECT_DOUBLE_EQ(EnglishF1("yes yes no", "no"), 0.5);
}

TEST(WordF1Test, NothingInCommonIsZeroEvenForTwoEmptyTexts) {
  EXPECT_EQ(EnglishF1("", ""), 0);
  EXPECT_EQ(EnglishF1("the", "the"), 0);
  EXPECT_EQ(EnglishF1("", "x"), 0);
  EXPECT_EQ(EnglishF1("x", ""), 0);
  EXPECT_EQ(EnglishF1("x", "y"), 0);
}

TEST(WordF1Test, ChineseKeepsArticlesAndTakesTheGivenWords) {
  EXPECT_DOUBLE_EQ(SegmentedF1("the cat", "the", SegmentAscii), 2.0 / 3);
  const Segmenter halves = [](absl::string_view text) {
    return std::vector<std::string>{std::string(text.substr(0, 6)), std::string(text.substr(6))};
  };
  EXPECT_DOUBLE_EQ(SegmentedF1("北京上海", "上海北京", halves), 1);
  EXPECT_DOUBLE_EQ(SegmentedF1("北京上海", "北京大海", halves), 0.5);
}

TEST(WordF1Test, ChineseByCharacters) {
  EXPECT_DOUBLE_EQ(SegmentedF1("他去了北京", "北京", SegmentCharacters), 4.0 / 7);
  EXPECT_EQ(SegmentedF1("。，", "。", SegmentCharacters), 0);
}

}  // namespace
}  // namespace mneme::scoring
