// How alike two texts are to Python's difflib.SequenceMatcher.
#pragma once

#include <cstdint>
#include <string_view>

namespace mneme::scoring {

// Returns how many characters match: the longest common substring (of several the first in `a`,
// then in `b`), and the same, recursively, to its left and to its right.
//
// In a `b` of 200 or more characters, those that make up over 1 % of it (more than size / 100 + 1
// times) begin no match: a substring found without them is extended over equal neighbours of any
// kind afterwards, and where there is none, equal characters at the front of both count. This is
// the matcher's `autojunk`.
//
// Time O(|a| |b|) per recursion at worst, memory O(|a| + |b|). Thread-safe.
int64_t CountMatchingCharacters(std::u32string_view a, std::u32string_view b);

}  // namespace mneme::scoring
