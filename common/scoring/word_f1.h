// Word overlap of an answer with a reference: "QA F1".
#pragma once

#include <string>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "common/scoring/segmenter.h"

namespace mneme::scoring {

// Returns the F1 of two bags of words, 2PR / (P + R): a word counts as often as both have it. 0
// where they have none in common, so also where both are empty. Thread-safe.
double WordF1(absl::Span<const std::string> prediction, absl::Span<const std::string> reference);

// The same of two English texts, by their NormalisedWords.
double EnglishF1(absl::string_view prediction, absl::string_view reference);

// The same of two Chinese or Japanese texts, by the NormalisedSegments that `segment` finds.
double SegmentedF1(absl::string_view prediction, absl::string_view reference,
                   const Segmenter& segment);

}  // namespace mneme::scoring
