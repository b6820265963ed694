// Scores an answer that should name one of several classes.
#pragma once

#include <string>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace mneme::scoring {

// Lists the classes that the prediction contains, in their order, drops those that are proper
// substrings of `truth`, and returns 1 / how many are left if the truth is among them, else 0.
//
// As published, the list changes while it is gone through: after a drop the next class is skipped
// unchecked (classes ab, bc, abcd, all contained, truth abcd: ab goes, bc stays, 1/2). The
// published choice of the most similar class where none is contained is never reached. Source:
// "spec/activation-beacon.md" 7.3, "spec/namm.md" 9.3. Thread-safe.
double ClassificationScore(absl::string_view prediction, absl::string_view truth,
                           absl::Span<const std::string> classes);

}  // namespace mneme::scoring
