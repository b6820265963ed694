#include "common/scoring/word_f1.h"

#include <cstdint>

#include "absl/container/flat_hash_map.h"
#include "common/scoring/words.h"

namespace mneme::scoring {

double WordF1(absl::Span<const std::string> prediction, absl::Span<const std::string> reference) {
  absl::flat_hash_map<absl::string_view, int64_t> available;
  for (const std::string& word : reference) ++available[word];
  int64_t num_common = 0;
  for (const std::string& word : prediction) {
    const auto found = available.find(word);
    if (found == available.end() || found->second == 0) continue;
    --found->second;
    ++num_common;
  }
  if (num_common == 0) return 0;
  const double precision = static_cast<double>(num_common) / static_cast<double>(prediction.size());
  const double recall = static_cast<double>(num_common) / static_cast<double>(reference.size());
  return 2 * precision * recall / (precision + recall);
}

double EnglishF1(absl::string_view prediction, absl::string_view reference) {
  return WordF1(NormalisedWords(prediction), NormalisedWords(reference));
}

double SegmentedF1(absl::string_view prediction, absl::string_view reference,
                   const Segmenter& segment) {
  return WordF1(NormalisedSegments(segment(prediction)), NormalisedSegments(segment(reference)));
}

}  // namespace mneme::scoring
