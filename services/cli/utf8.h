// Characters of UTF-8 text and the room they take on a terminal.
#pragma once

#include <cstddef>
#include <string>

#include "absl/strings/string_view.h"

namespace mneme::cli {

struct Utf8Character {
  char32_t code = 0;  // U+FFFD for a byte that begins no character
  size_t bytes = 1;
  size_t width = 1;  // columns: 0 for what combines with the character before, 2 for wide ones
};

// Returns the first character of a text that is not empty.
Utf8Character NextCharacter(absl::string_view text);

// Returns where the character before byte `position` (> 0) begins.
size_t PreviousBoundary(absl::string_view text, size_t position);

// Returns how many bytes a character has that begins with this byte; 1 for one that begins none.
size_t LengthByFirstByte(unsigned char first);

}  // namespace mneme::cli
