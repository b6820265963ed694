// How a text without blanks becomes words. The published metrics call a Chinese (jieba) and a
// Japanese (a morphological analyser) segmenter; both need a dictionary, and Mneme ships neither.
// Whoever has one passes it in.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace mneme::scoring {

// Returns the words of a UTF-8 text in their order; joined they are the text. Must be callable from
// as many threads as the scores are computed on.
using Segmenter = std::function<std::vector<std::string>(absl::string_view)>;

// What jieba does with ASCII text: the matches of `[A-Za-z0-9]+(\.[0-9]+)?%?`, and every other
// character by itself. Outside ASCII this knows no words: each Chinese or Japanese character stands
// alone, so that scores of such texts are not those of a real segmenter.
std::vector<std::string> SegmentAscii(absl::string_view text);

// Every character by itself, as InfiniteBench counts Chinese.
std::vector<std::string> SegmentCharacters(absl::string_view text);

}  // namespace mneme::scoring
