// ROUGE as the Python package `rouge` 1.0.1 computes it, which counts *distinct* words and adds
// 1e-8 to the denominator of F, so that equal texts score a little less than 1.
// Source: "spec/activation-beacon.md" 7.3 and "spec/namm.md" 9.3, which agree here. All functions
// are pure and thread-safe; texts are UTF-8.
#pragma once

#include <string>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace mneme::scoring {

struct RougeScore {
  double precision = 0;  // share of the prediction's distinct words, 0 to 1
  double recall = 0;     // share of the reference's
  double f = 0;          // 2PR / (P + R + 1e-8)
};

// Compares two texts by their sentences, which end at "."; words are split at white space and keep
// their case. Hits are the distinct words of one longest common subsequence (lcs.h, the reference's
// sentence as rows) for each pair of sentences. Empty sentences are none; one of white space has
// one word, the empty one. All 0 where a text has no sentence, for which the package raises an
// error.
RougeScore RougeL(absl::string_view prediction, absl::string_view reference);

// The same of two Chinese or Japanese texts: their words, as a segmenter gave them, joined by
// blanks.
RougeScore SegmentedRougeL(absl::Span<const std::string> prediction,
                           absl::Span<const std::string> reference);

// Activation Beacon's generic `rouge` metric: F of the distinct words and of the distinct pairs of
// neighbours, after normalisation (NormalisedWords). What it calls "rouge-l" is `two` again.
struct NormalisedRouge {
  double one = 0;
  double two = 0;
};
NormalisedRouge RougeOfNormalised(absl::string_view prediction, absl::string_view reference);

}  // namespace mneme::scoring
