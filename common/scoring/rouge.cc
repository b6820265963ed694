#include "common/scoring/rouge.h"

#include <cstdint>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "common/scoring/lcs.h"
#include "common/scoring/words.h"

namespace mneme::scoring {
namespace {

constexpr double kSmallest = 1e-8;

using Sentence = std::vector<uint32_t>;  // ids of words

RougeScore ScoreOf(size_t num_hits, size_t num_predicted, size_t num_expected) {
  if (num_predicted == 0 || num_expected == 0) return {};
  RougeScore score;
  score.precision = static_cast<double>(num_hits) / static_cast<double>(num_predicted);
  score.recall = static_cast<double>(num_hits) / static_cast<double>(num_expected);
  score.f = 2 * (score.precision * score.recall / (score.precision + score.recall + kSmallest));
  return score;
}

// Gives every word a number, the same in both texts.
class WordIds {
 public:
  std::vector<Sentence> Sentences(absl::string_view text) {
    std::vector<Sentence> sentences;
    for (const absl::string_view piece : absl::StrSplit(text, '.', absl::SkipEmpty())) {
      Sentence& sentence = sentences.emplace_back();
      for (const std::string& word : SplitWords(piece)) sentence.push_back(Id(word));
      if (sentence.empty()) sentence.push_back(Id(""));
    }
    return sentences;
  }

  uint32_t Id(const std::string& word) {
    return ids_.try_emplace(word, static_cast<uint32_t>(ids_.size())).first->second;
  }

 private:
  absl::flat_hash_map<std::string, uint32_t> ids_;
};

size_t CountDistinct(const std::vector<Sentence>& sentences) {
  absl::flat_hash_set<uint32_t> words;
  for (const Sentence& sentence : sentences) words.insert(sentence.begin(), sentence.end());
  return words.size();
}

absl::flat_hash_set<std::string> DistinctRuns(absl::Span<const std::string> words, size_t size) {
  absl::flat_hash_set<std::string> runs;
  for (size_t i = 0; i + size <= words.size(); ++i) {
    runs.insert(absl::StrJoin(words.subspan(i, size), " "));
  }
  return runs;
}

double RougeOfRuns(absl::Span<const std::string> prediction,
                   absl::Span<const std::string> reference, size_t size) {
  const auto predicted = DistinctRuns(prediction, size);
  const auto expected = DistinctRuns(reference, size);
  size_t num_hits = 0;
  for (const std::string& run : predicted) num_hits += expected.count(run);
  return ScoreOf(num_hits, predicted.size(), expected.size()).f;
}

}  // namespace

RougeScore RougeL(absl::string_view prediction, absl::string_view reference) {
  WordIds ids;
  const std::vector<Sentence> predicted = ids.Sentences(prediction);
  const std::vector<Sentence> expected = ids.Sentences(reference);
  absl::flat_hash_set<uint32_t> hits;
  for (const Sentence& rows : expected) {
    for (const Sentence& columns : predicted) {
      const std::vector<uint32_t> common = LongestCommonSubsequence(rows, columns);
      hits.insert(common.begin(), common.end());
    }
  }
  return ScoreOf(hits.size(), CountDistinct(predicted), CountDistinct(expected));
}

RougeScore SegmentedRougeL(absl::Span<const std::string> prediction,
                           absl::Span<const std::string> reference) {
  return RougeL(absl::StrJoin(prediction, " "), absl::StrJoin(reference, " "));
}

NormalisedRouge RougeOfNormalised(absl::string_view prediction, absl::string_view reference) {
  const std::vector<std::string> predicted = NormalisedWords(prediction);
  const std::vector<std::string> expected = NormalisedWords(reference);
  return {.one = RougeOfRuns(predicted, expected, 1), .two = RougeOfRuns(predicted, expected, 2)};
}

}  // namespace mneme::scoring
