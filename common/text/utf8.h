// UTF-8 as the reference tokenizers read it.
#pragma once

#include <cstddef>

#include "absl/strings/string_view.h"

namespace mneme::text {

// U+FFFD, the replacement character.
inline constexpr absl::string_view kReplacement = "\xef\xbf\xbd";

// What stands at the front of some bytes.
struct Utf8Front {
  enum Kind {
    kCharacter,   // `size` bytes are one character
    kInvalid,     // `size` bytes (at least 1) are a maximal subpart that no bytes can complete
    kIncomplete,  // all bytes are the beginning of a character
  };
  Kind kind;
  size_t size;
};

// Looks at the front of `bytes`, which are not empty.
Utf8Front ReadUtf8(absl::string_view bytes);

// Returns the offset of the first byte that is not UTF-8, or npos. A cut character is not UTF-8.
size_t FindInvalidUtf8(absl::string_view bytes);
inline bool IsUtf8(absl::string_view bytes) {
  return FindInvalidUtf8(bytes) == absl::string_view::npos;
}

}  // namespace mneme::text
