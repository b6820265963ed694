// How the metrics cut a text into lines and words, and what they take off the words before they
// compare them. Source: "spec/activation-beacon.md" 7.3 and "spec/namm.md" 9.3, which agree here.
// All functions are pure and thread-safe; texts are UTF-8.
#pragma once

#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace mneme::scoring {

// Without the line breaks at its front.
absl::string_view WithoutLeadingLineBreaks(absl::string_view text);
// Up to the first line break after leading ones.
absl::string_view FirstLine(absl::string_view text);

// With a blank in place of each of `characters`, which are ASCII.
std::string BlankOut(absl::string_view text, absl::string_view characters);

// Without white space at both ends.
std::string Strip(absl::string_view text);
// Splits at white space; there are no empty words.
std::vector<std::string> SplitWords(absl::string_view text);

// The words of an English text: lower case, without ASCII punctuation ("u.s." is "us"), without
// the whole words a, an and the.
std::vector<std::string> NormalisedWords(absl::string_view text);

// The words of a Chinese or Japanese text that has been segmented into `words`: lower case,
// without ASCII and Chinese punctuation and white space; words of which nothing is left are
// dropped, articles are not.
std::vector<std::string> NormalisedSegments(absl::Span<const std::string> words);

}  // namespace mneme::scoring
