// Counts as difflib.SequenceMatcher(None, a, b) of Python 3.11 has them.
#include "common/scoring/matching_blocks.h"

#include <gtest/gtest.h>

#include <string>

namespace mneme::scoring {
namespace {

std::u32string Repeat(std::u32string_view text, int count) {
  std::u32string repeated;
  for (int i = 0; i < count; ++i) repeated += text;
  return repeated;
}

TEST(MatchingBlocksTest, EmptyTextsMatchNothing) {
  EXPECT_EQ(CountMatchingCharacters(U"", U""), 0);
  EXPECT_EQ(CountMatchingCharacters(U"", U"abc"), 0);
  EXPECT_EQ(CountMatchingCharacters(U"abc", U""), 0);
}

TEST(MatchingBlocksTest, TheLongestBlockSplitsWhatIsLeft) {
  EXPECT_EQ(CountMatchingCharacters(U"abxcd", U"abcd"), 4);
  // "bcd" is taken and leaves nothing of b to its left: less than the common subsequence "xbcd".
  EXPECT_EQ(CountMatchingCharacters(U"bcdx", U"xbcd"), 3);
}

TEST(MatchingBlocksTest, OfEqualBlocksTheFirstIsTaken) {
  // "ab" before "cd": taken at the end of the other text, it leaves nothing for "cd".
  EXPECT_EQ(CountMatchingCharacters(U"abcd", U"cdab"), 2);
  // "ab" at its first place in b, so that "x" to the right of it matches too.
  EXPECT_EQ(CountMatchingCharacters(U"abx", U"abxab"), 3);
  // "abcd", and the "q" to its left; the common subsequence "abcabc" is longer.
  EXPECT_EQ(CountMatchingCharacters(U"qabcdabc", U"abcq abcd"), 5);
}

TEST(MatchingBlocksTest, CharactersAreNotBytes) {
  EXPECT_EQ(CountMatchingCharacters(U"é中x", U"è中x"), 2);
}

TEST(MatchingBlocksTest, FrequentCharactersOfLongTextsBeginNoMatch) {
  const std::u32string filler = Repeat(U"-", 200);
  // 200 characters, all the same: none begins a match, but the fronts are compared.
  EXPECT_EQ(CountMatchingCharacters(U"--", filler), 2);
  EXPECT_EQ(CountMatchingCharacters(U"x--", filler), 0);
  // One less and they do.
  EXPECT_EQ(CountMatchingCharacters(U"x--", std::u32string_view(filler).substr(1)), 2);
  // "q" is rare: found, and extended over the frequent ones beside it.
  EXPECT_EQ(CountMatchingCharacters(U"x--q-", filler + U"q" + filler), 4);
}

TEST(MatchingBlocksTest, AHundredthAndOneMoreIsNotYetFrequent) {
  // 3 of 200 characters are allowed, 4 are too many.
  const std::u32string filler = Repeat(U"-", 197);
  EXPECT_EQ(CountMatchingCharacters(U"qqq", filler + U"qqq"), 3);
  EXPECT_EQ(CountMatchingCharacters(U"qqqq", filler + U"qqqq"), 0);
}

}  // namespace
}  // namespace mneme::scoring
