// Numbers in answers: runs of the digits 0 to 9. All functions are pure and thread-safe.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace mneme::scoring {

// How many digits the text begins with.
size_t CountLeadingDigits(absl::string_view text);
// How many bytes of decimals it begins with: a "." and all digits behind it; 0: not both are there.
size_t DecimalsSize(absl::string_view text);

// The longest runs of digits, in their order. They are views of `text`.
std::vector<absl::string_view> DigitRuns(absl::string_view text);

// Returns the integer that the whole text is, in one spelling: digits after at most one sign; no
// leading zeros, no "+", no "-0". Any size. Nothing: it is no integer.
std::optional<std::string> ReadInteger(absl::string_view text);

// Returns the share of the prediction's digit runs that equal `truth` as text; 0: it has none.
double CountScore(absl::string_view prediction, absl::string_view truth);

// The same with the paragraph's number in `truth`, the first digits right behind `word`
// ("Paragraph ", "段落"); 0 where there are none.
double RetrievalScore(absl::string_view prediction, absl::string_view truth,
                      absl::string_view word);

}  // namespace mneme::scoring
