// Which option an answer to one of InfiniteBench's multiple-choice tasks names. Source:
// "spec/activation-beacon.md" 7.3. Pure and thread-safe; comparisons are case-sensitive.
#pragma once

#include <string>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace mneme::scoring {

// code_debug: says whether the answer names the function or its letter. It does so at its very
// front, as the letter and "." or ":", or one character after "answer is:", "is:" or "answer:", of
// which the first in this order decides that occurs.
bool NamesBug(absl::string_view prediction, absl::string_view function, absl::string_view letter);

// longbook_choice: says whether the answer is one of the accepted texts and letters. The first of
// these decides that applies: a first letter from A to D; the whole answer, if accepted; what
// begins one character after "answer is:", "answer:", "answer is" or "option is"; the first word
// that is a piece of "ABCD".
bool IsAcceptedChoice(absl::string_view prediction, absl::Span<const std::string> accepted);

}  // namespace mneme::scoring
