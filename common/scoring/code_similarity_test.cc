#include "common/scoring/code_similarity.h"

#include <gtest/gtest.h>

namespace mneme::scoring {
namespace {

constexpr CodeMatching kBoth[] = {CodeMatching::kSubsequence, CodeMatching::kBlocks};

TEST(CodeSimilarityTest, TheLineIsTheFirstThatIsNoComment) {
  EXPECT_EQ(CodeLine("\n\n# a\n`b`\nx // c\n  return 1\nfoo"), "  return 1");
  EXPECT_EQ(CodeLine("# a\n\nfoo"), "");
  EXPECT_EQ(CodeLine("# a\n// b"), "");
  EXPECT_EQ(CodeLine("a / b\n"), "a / b");
  EXPECT_EQ(CodeLine(""), "");
}

TEST(CodeSimilarityTest, IsRoundedToPercents) {
  for (const CodeMatching matching : kBoth) {
    EXPECT_EQ(CodeSimilarity("Paris", "paris, France", matching), 0.44);
    EXPECT_EQ(CodeSimilarity("    int a = 3;", "    int a = 4;", matching), 0.93);
    // 12.5 % is halfway and goes to the even 12.
    EXPECT_EQ(CodeSimilarity("abcdefgh", "xxxxaxxx", matching), 0.12);
  }
}

TEST(CodeSimilarityTest, LeadingSpacesCount) {
  for (const CodeMatching matching : kBoth) {
    EXPECT_EQ(CodeSimilarity("  ab", "ab", matching), 0.67);
  }
}

TEST(CodeSimilarityTest, BlocksMayFindLessThanTheSubsequence) {
  // "abcabc", but "abcd" and "q": 12 and 10 of 17.
  EXPECT_EQ(CodeSimilarity("qabcdabc", "abcq abcd", CodeMatching::kSubsequence), 0.71);
  EXPECT_EQ(CodeSimilarity("qabcdabc", "abcq abcd", CodeMatching::kBlocks), 0.59);
}

TEST(CodeSimilarityTest, TwoEmptyTextsAreEqualOnlyToTheSubsequence) {
  EXPECT_EQ(CodeSimilarity("# a", "", CodeMatching::kSubsequence), 1);
  EXPECT_EQ(CodeSimilarity("# a", "", CodeMatching::kBlocks), 0);
  for (const CodeMatching matching : kBoth) {
    EXPECT_EQ(CodeSimilarity("", "x", matching), 0);
    EXPECT_EQ(CodeSimilarity("x", "", matching), 0);
    EXPECT_EQ(CodeSimilarity("x", "x", matching), 1);
  }
}

}  // namespace
}  // namespace mneme::scoring
