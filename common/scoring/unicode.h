// Text as Unicode characters, and the few of their properties that the metrics ask for. The
// benchmarks define their metrics in Python, so case, letters and white space are those of Python's
// `str` (unicode_tables.py writes them down). All functions are pure and thread-safe.
#pragma once

#include <string>
#include <string_view>

#include "absl/strings/string_view.h"

namespace mneme::scoring {

// Returns the characters of a text. What is not UTF-8 becomes U+FFFD, one for each maximal part.
std::u32string ToCharacters(absl::string_view text);
std::string ToUtf8(std::u32string_view characters);

// Change the case; a character may become several. A capital sigma becomes the ordinary small one,
// also at the end of a word, where Python takes the final one.
std::u32string ToLower(std::u32string_view text);
std::u32string ToUpper(std::u32string_view text);

// Says whether the character is a letter or number of any script: whether words go on across it.
bool IsAlphanumeric(char32_t character);
bool IsSpace(char32_t character);
// The 32 ASCII characters that are neither letter, digit, space nor control character.
bool IsAsciiPunctuation(char32_t character);

}  // namespace mneme::scoring
