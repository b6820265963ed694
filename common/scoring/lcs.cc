#include "common/scoring/lcs.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "absl/container/flat_hash_map.h"

namespace mneme::scoring {
namespace {

constexpr size_t kBitsPerWord = 64;
// Rows between two that are kept.
constexpr size_t kBlockRows = 256;

// Computes the table row by row. Bit j - 1 of a row is 0 where L[i][j] > L[i][j-1].
class RowMaker {
 public:
  explicit RowMaker(absl::Span<const uint32_t> columns)
      : num_words_((columns.size() + kBitsPerWord - 1) / kBitsPerWord), matches_(num_words_, 0) {
    for (size_t j = 0; j < columns.size(); ++j) {
      places_[columns[j]].push_back(static_cast<uint32_t>(j));
    }
  }

  size_t num_words() const { return num_words_; }

  std::vector<uint64_t> FirstRow() const { return std::vector<uint64_t>(num_words_, ~uint64_t{0}); }

  // Makes `row` the one below it, whose symbol is `symbol`.
  void Advance(uint32_t symbol, absl::Span<uint64_t> row) {
    const auto places = places_.find(symbol);
    if (places == places_.end()) return;
    for (const uint32_t j : places->second) {
      matches_[j / kBitsPerWord] |= uint64_t{1} << (j % kBitsPerWord);
    }
    bool carry = false;
    for (size_t word = 0; word < num_words_; ++word) {
      const uint64_t matched = row[word] & matches_[word];
      uint64_t sum = 0;
      const bool overflows = __builtin_add_overflow(row[word], matched, &sum);
      const bool carries_on = __builtin_add_overflow(sum, uint64_t{carry}, &sum);
      carry = overflows || carries_on;
      row[word] = sum | (row[word] & ~matches_[word]);
    }
    for (const uint32_t j : places->second) matches_[j / kBitsPerWord] = 0;
  }

 private:
  const size_t num_words_;
  absl::flat_hash_map<uint32_t, std::vector<uint32_t>> places_;  // columns that hold a symbol
  std::vector<uint64_t> matches_;                                // all 0 between calls
};

bool Rises(absl::Span<const uint64_t> row, size_t column) {
  return (row[column / kBitsPerWord] >> (column % kBitsPerWord) & 1) == 0;
}

}  // namespace

int64_t LongestCommonLength(absl::Span<const uint32_t> rows, absl::Span<const uint32_t> columns) {
  RowMaker maker(columns);
  std::vector<uint64_t> row = maker.FirstRow();
  for (const uint32_t symbol : rows) maker.Advance(symbol, absl::MakeSpan(row));
  // Bits behind the last column are never matched and stay 1.
  int64_t length = 0;
  for (const uint64_t word : row) length += std::popcount(~word);
  return length;
}

std::vector<uint32_t> LongestCommonSubsequence(absl::Span<const uint32_t> rows,
                                               absl::Span<const uint32_t> columns) {
  std::vector<uint32_t> taken;
  if (rows.empty() || columns.empty()) return taken;
  RowMaker maker(columns);
  const size_t num_blocks = (rows.size() + kBlockRows - 1) / kBlockRows;
  std::vector<std::vector<uint64_t>> block_starts = {maker.FirstRow()};
  for (size_t block = 0; block + 1 < num_blocks; ++block) {
    std::vector<uint64_t> row = block_starts.back();
    for (const uint32_t symbol : rows.subspan(block * kBlockRows, kBlockRows)) {
      maker.Advance(symbol, absl::MakeSpan(row));
    }
    block_starts.push_back(std::move(row));
  }

  size_t i = rows.size();
  size_t j = columns.size();
  std::vector<std::vector<uint64_t>> block_rows;  // those below the block's start
  for (size_t block = num_blocks; block-- > 0 && j > 0;) {
    const size_t first = block * kBlockRows;
    block_rows.clear();
    for (const uint32_t symbol : rows.subspan(first, kBlockRows)) {
      block_rows.push_back(block_rows.empty() ? block_starts[block] : block_rows.back());
      maker.Advance(symbol, absl::MakeSpan(block_rows.back()));
    }
    while (i > first && j > 0) {
      if (rows[i - 1] == columns[j - 1]) {
        taken.push_back(rows[i - 1]);
        --i;
        --j;
      } else if (Rises(block_rows[i - 1 - first], j - 1)) {
        // The symbols differ, so the length here is the larger of the two neighbours': where it is
        // more than the left one's, the upper one is strictly larger.
        --i;
      } else {
        --j;
      }
    }
  }
  std::reverse(taken.begin(), taken.end());
  return taken;
}

}  // namespace mneme::scoring
