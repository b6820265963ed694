#include "common/text/utf8.h"

#include <cstdint>
#include <cstring>

namespace mneme::text {

Utf8Front ReadUtf8(absl::string_view bytes) {
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

size_t FindInvalidUtf8(absl::string_view bytes) {
  size_t offset = 0;
  while (offset < bytes.size()) {
    // Most text is ASCII: eight bytes at a time.
    uint64_t word = 0;
    while (bytes.size() - offset >= sizeof(word)) {
      std::memcpy(&word, bytes.data() + offset, sizeof(word));
      if ((word & 0x8080808080808080u) != 0) break;
      offset += sizeof(word);
    }
    if (offset == bytes.size()) break;
    const Utf8Front front = ReadUtf8(bytes.substr(offset));
    if (front.kind != Utf8Front::kCharacter) return offset;
    offset += front.size;
  }
  return absl::string_view::npos;
}

}  // namespace mneme::text
