#include "services/cli/utf8.h"

#include <wchar.h>

namespace mneme::cli {
namespace {

bool Continues(unsigned char byte) { return (byte & 0xC0) == 0x80; }

// wcwidth depends on the locale being UTF-8; main() sets one. What it does not know is taken as one
// column.
size_t WidthOf(char32_t code) {
  const int width = wcwidth(static_cast<wchar_t>(code));
  return width < 0 ? (code < 0x20 ? 0 : 1) : static_cast<size_t>(width);
}

}  // namespace

size_t LengthByFirstByte(unsigned char first) {
  if (first >= 0xC2 && first <= 0xDF) return 2;
  if (first >= 0xE0 && first <= 0xEF) return 3;
  if (first >= 0xF0 && first <= 0xF4) return 4;
  return 1;
}

Utf8Character NextCharacter(absl::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const size_t length = LengthByFirstByte(byte(0));
  Utf8Character character;
  if (length == 1) {
    character.code = byte(0) < 0x80 ? byte(0) : 0xFFFD;
    character.width = WidthOf(character.code);
    return character;
  }
  char32_t code = byte(0) & (0xFF >> (length + 1));
  for (size_t i = 1; i < length; ++i) {
    if (i >= text.size() || !Continues(byte(i))) {
      character.code = 0xFFFD;
      return character;
    }
    code = code << 6 | (byte(i) & 0x3F);
  }
  character.code = code;
  character.bytes = length;
  character.width = WidthOf(code);
  return character;
}

size_t PreviousBoundary(absl::string_view text, size_t position) {
  size_t begin = position - 1;
  while (begin > 0 && position - begin < 4 && Continues(text[begin])) --begin;
  return begin;
}

}  // namespace mneme::cli
