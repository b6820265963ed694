// UTF-8 as the reference tokenizers read it. Reading one character is in this header alone, so that
// folders that don't link the tokenizers can do it too.
#pragma once

#include <cstddef>
#include <cstdint>

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
inline Utf8Front ReadUtf8(absl::string_view bytes) {
  const auto byte = [&bytes](size_t index) { return static_cast<uint8_t>(bytes[index]); };
  const uint8_t lead = byte(0);
  if (lead < 0x80) return {Utf8Front::kCharacter, 1};
  // The second byte's range rules out overlong forms, surrogates and what is over U+10FFFF.
  size_t length = 0;
  uint8_t low = 0x80;
  uint8_t high = 0xbf;
  if (lead >= 0xc2 && lead <= 0xdf) {
    length = 2;
  } else if (lead >= 0xe0 && lead <= 0xef) {
    length = 3;
    if (lead == 0xe0) low = 0xa0;
    if (lead == 0xed) high = 0x9f;
  } else if (lead >= 0xf0 && lead <= 0xf4) {
    length = 4;
    if (lead == 0xf0) low = 0x90;
    if (lead == 0xf4) high = 0x8f;
  } else {
    return {Utf8Front::kInvalid, 1};
  }
  for (size_t index = 1; index < length; ++index) {
    if (index == bytes.size()) return {Utf8Front::kIncomplete, index};
    if (byte(index) < low || byte(index) > high) return {Utf8Front::kInvalid, index};
    low = 0x80;
    high = 0xbf;
  }
  return {Utf8Front::kCharacter, length};
}

// Returns the offset of the first byte that is not UTF-8, or npos. A cut character is not UTF-8.
size_t FindInvalidUtf8(absl::string_view bytes);
inline bool IsUtf8(absl::string_view bytes) {
  return FindInvalidUtf8(bytes) == absl::string_view::npos;
}

}  // namespace mneme::text
