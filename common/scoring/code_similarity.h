// How alike an answer's first line of code is to a reference line. Two rules of what matches, since
// the two benchmarks were run with two libraries; both are rounded to whole percents, halves to
// even. All functions are pure and thread-safe; texts are UTF-8 and counted in characters.
#pragma once

#include <string>

#include "absl/strings/string_view.h"

namespace mneme::scoring {

enum class CodeMatching {
  // A longest common subsequence. Equal texts score 1, also two empty ones.
  // Activation Beacon: "spec/activation-beacon.md" 7.3.
  kSubsequence,
  // The blocks of CountMatchingCharacters. 0 where a text is empty. NAMM: "spec/namm.md" 9.3.
  kBlocks,
};

// Returns the first line, after leading line breaks, without a back-tick, "#" or "//"; an empty
// text: none is. Spaces are kept.
absl::string_view CodeLine(absl::string_view prediction);

// Returns 2 * matching characters / (characters of both), 0 to 1, of the prediction's CodeLine and
// the whole reference.
double CodeSimilarity(absl::string_view prediction, absl::string_view reference,
                      CodeMatching matching);

}  // namespace mneme::scoring
