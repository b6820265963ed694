#include "common/scoring/classification.h"

#include <algorithm>
#include <vector>

#include "absl/strings/match.h"

namespace mneme::scoring {

double ClassificationScore(absl::string_view prediction, absl::string_view truth,
                           absl::Span<const std::string> classes) {
  std::vector<absl::string_view> named;
  for (const std::string& name : classes) {
    if (absl::StrContains(prediction, name)) named.push_back(name);
  }
  // The step after a drop is the quirk.
  for (size_t i = 0; i < named.size(); ++i) {
    if (named[i] != truth && absl::StrContains(truth, named[i])) {
      named.erase(named.begin() + static_cast<std::ptrdiff_t>(i));
    }
  }
  if (std::find(named.begin(), named.end(), truth) == named.end()) return 0;
  return 1 / static_cast<double>(named.size());
}

}  // namespace mneme::scoring
