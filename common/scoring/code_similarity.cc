#include "common/scoring/code_similarity.h"

#include <cmath>
#include <cstdint>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_split.h"
#include "common/scoring/lcs.h"
#include "common/scoring/matching_blocks.h"
#include "common/scoring/unicode.h"
#include "common/scoring/words.h"

namespace mneme::scoring {
namespace {

int64_t CountMatching(const std::u32string& line, const std::u32string& reference,
                      CodeMatching matching) {
  if (matching == CodeMatching::kBlocks) return CountMatchingCharacters(line, reference);
  return LongestCommonLength(std::vector<uint32_t>(line.begin(), line.end()),
                             std::vector<uint32_t>(reference.begin(), reference.end()));
}

}  // namespace

absl::string_view CodeLine(absl::string_view prediction) {
  for (const absl::string_view line : absl::StrSplit(WithoutLeadingLineBreaks(prediction), '\n')) {
    if (!absl::StrContains(line, '`') && !absl::StrContains(line, '#') &&
        !absl::StrContains(line, "//")) {
      return line;
    }
  }
  return {};
}

double CodeSimilarity(absl::string_view prediction, absl::string_view reference,
                      CodeMatching matching) {
  const std::u32string line = ToCharacters(CodeLine(prediction));
  const std::u32string expected = ToCharacters(reference);
  if (matching == CodeMatching::kSubsequence && line == expected) return 1;
  if (line.empty() || expected.empty()) return 0;
  const double ratio = 2.0 * static_cast<double>(CountMatching(line, expected, matching)) /
                       static_cast<double>(line.size() + expected.size());
  return std::nearbyint(100 * ratio) / 100;
}

}  // namespace mneme::scoring
