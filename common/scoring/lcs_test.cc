// The bits against the whole table.
#include "common/scoring/lcs.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <random>

namespace mneme::scoring {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using Symbols = std::vector<uint32_t>;

Symbols Draw(size_t size, uint32_t num_symbols, std::mt19937* random) {
  Symbols symbols(size);
  for (uint32_t& symbol : symbols) symbol = (*random)() % num_symbols;
  return symbols;
}

// The definition, literally.
Symbols FromTable(const Symbols& rows, const Symbols& columns) {
  std::vector<std::vector<int>> table(rows.size() + 1, std::vector<int>(columns.size() + 1, 0));
  for (size_t i = 1; i <= rows.size(); ++i) {
    for (size_t j = 1; j <= columns.size(); ++j) {
      table[i][j] = rows[i - 1] == columns[j - 1] ? table[i - 1][j - 1] + 1
                                                  : std::max(table[i - 1][j], table[i][j - 1]);
    }
  }
  Symbols taken;
  size_t i = rows.size();
  size_t j = columns.size();
  while (i > 0 && j > 0) {
    if (rows[i - 1] == columns[j - 1]) {
      taken.push_back(rows[--i]);
      --j;
    } else if (table[i - 1][j] > table[i][j - 1]) {
      --i;
    } else {
      --j;
    }
  }
  std::reverse(taken.begin(), taken.end());
  return taken;
}

TEST(LcsTest, OfNothingIsNothing) {
  EXPECT_THAT(LongestCommonSubsequence({}, {1, 2}), IsEmpty());
  EXPECT_THAT(LongestCommonSubsequence({1, 2}, {}), IsEmpty());
  EXPECT_EQ(LongestCommonLength({}, {1, 2}), 0);
  EXPECT_EQ(LongestCommonLength({1, 2}, {}), 0);
}

TEST(LcsTest, OfSeveralTheOneThatMovesLeftOnTies) {
  // Rows 1 2, columns 2 1: at the corner both neighbours are 1, so the column 1 is left first.
  EXPECT_THAT(LongestCommonSubsequence({1, 2}, {2, 1}), ElementsAre(2));
  EXPECT_THAT(LongestCommonSubsequence({2, 1}, {1, 2}), ElementsAre(1));
}

TEST(LcsTest, EqualsTheTableOnBothSidesOfWordsAndBlocks) {
  std::mt19937 random(7);
  for (const size_t num_rows : {1, 63, 64, 65, 255, 256, 257, 513}) {
    for (const size_t num_columns : {1, 63, 64, 65, 128, 200}) {
      for (const uint32_t num_symbols : {2, 20, 400}) {
        const Symbols rows = Draw(num_rows, num_symbols, &random);
        const Symbols columns = Draw(num_columns, num_symbols, &random);
        const Symbols expected = FromTable(rows, columns);
        ASSERT_EQ(LongestCommonSubsequence(rows, columns), expected)
            << num_rows << " x " << num_columns << " of " << num_symbols;
        ASSERT_EQ(LongestCommonLength(rows, columns), static_cast<int64_t>(expected.size()));
      }
    }
  }
}

TEST(LcsTest, LongTextsNeedNoTable) {
  // 40,000 x 40,000 cells: 12.8 GB as numbers.
  std::mt19937 random(8);
  const Symbols rows = Draw(40'000, 1000, &random);
  const Symbols columns = Draw(40'000, 1000, &random);
  EXPECT_EQ(LongestCommonSubsequence(rows, columns).size(),
            static_cast<size_t>(LongestCommonLength(rows, columns)));
}

}  // namespace
}  // namespace mneme::scoring
