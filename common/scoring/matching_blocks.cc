#include "common/scoring/matching_blocks.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"

namespace mneme::scoring {
namespace {

constexpr size_t kShortestWithFrequent = 200;

struct Block {
  size_t a_begin;
  size_t b_begin;
  size_t size;
};

// Parts of both texts between two matches.
struct Gap {
  size_t a_begin, a_end;
  size_t b_begin, b_end;
};

class Matcher {
 public:
  Matcher(std::u32string_view a, std::u32string_view b)
      : a_(a), b_(b), lengths_(b.size() + 1, 0), lengths_above_(b.size() + 1, 0) {
    for (size_t j = 0; j < b.size(); ++j) places_[b[j]].push_back(j);
    if (b.size() < kShortestWithFrequent) return;
    const size_t most = b.size() / 100 + 1;
    absl::erase_if(places_, [most](const auto& entry) { return entry.second.size() > most; });
  }

  Block Longest(const Gap& gap) {
    Block best{.a_begin = gap.a_begin, .b_begin = gap.b_begin, .size = 0};
    absl::Span<const size_t> places_above;
    for (size_t i = gap.a_begin; i < gap.a_end; ++i) {
      const absl::Span<const size_t> places = PlacesOf(a_[i], gap);
      for (const size_t j : places) {
        const size_t size = j == gap.b_begin ? 1 : lengths_above_[j - 1] + 1;
        lengths_[j] = size;
        if (size > best.size) best = {i + 1 - size, j + 1 - size, size};
      }
      for (const size_t j : places_above) lengths_above_[j] = 0;
      std::swap(lengths_, lengths_above_);
      places_above = places;
    }
    for (const size_t j : places_above) lengths_above_[j] = 0;
    return Extended(best, gap);
  }

 private:
  // Where `character` is in the gap's part of b, in ascending order.
  absl::Span<const size_t> PlacesOf(char32_t character, const Gap& gap) const {
    const auto found = places_.find(character);
    if (found == places_.end()) return {};
    const std::vector<size_t>& all = found->second;
    const auto begin = std::lower_bound(all.begin(), all.end(), gap.b_begin);
    const auto end = std::lower_bound(begin, all.end(), gap.b_end);
    return absl::MakeConstSpan(all).subspan(begin - all.begin(), end - begin);
  }

  Block Extended(Block block, const Gap& gap) const {
    while (block.a_begin > gap.a_begin && block.b_begin > gap.b_begin &&
           a_[block.a_begin - 1] == b_[block.b_begin - 1]) {
      --block.a_begin;
      --block.b_begin;
      ++block.size;
    }
    while (block.a_begin + block.size < gap.a_end && block.b_begin + block.size < gap.b_end &&
           a_[block.a_begin + block.size] == b_[block.b_begin + block.size]) {
      ++block.size;
    }
    return block;
  }

  const std::u32string_view a_;
  const std::u32string_view b_;
  absl::flat_hash_map<char32_t, std::vector<size_t>> places_;  // in b
  // How long the common substring is that ends at the current (or the previous) character of a and
  // at each one of b. All 0 between calls.
  std::vector<size_t> lengths_;
  std::vector<size_t> lengths_above_;
};

}  // namespace

int64_t CountMatchingCharacters(std::u32string_view a, std::u32string_view b) {
  Matcher matcher(a, b);
  int64_t num_matching = 0;
  std::vector<Gap> gaps = {{0, a.size(), 0, b.size()}};
  while (!gaps.empty()) {
    const Gap gap = gaps.back();
    gaps.pop_back();
    if (gap.a_begin == gap.a_end || gap.b_begin == gap.b_end) continue;
    const Block block = matcher.Longest(gap);
    if (block.size == 0) continue;
    num_matching += static_cast<int64_t>(block.size);
    gaps.push_back({gap.a_begin, block.a_begin, gap.b_begin, block.b_begin});
    gaps.push_back({block.a_begin + block.size, gap.a_end, block.b_begin + block.size, gap.b_end});
  }
  return num_matching;
}

}  // namespace mneme::scoring
