#include "common/text/utf8.h"

#include <cstdint>
#include <cstring>

namespace mneme::text {

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
