#include "common/scoring/segmenter.h"

#include "absl/strings/ascii.h"
#include "common/scoring/numbers.h"
#include "common/text/utf8.h"

namespace mneme::scoring {
namespace {

// Bytes of the ASCII word at the front; 0: none begins there.
size_t AsciiWordSize(absl::string_view text) {
  size_t size = 0;
  while (size < text.size() && absl::ascii_isalnum(static_cast<unsigned char>(text[size]))) ++size;
  if (size == 0) return 0;
  size += DecimalsSize(text.substr(size));
  if (size < text.size() && text[size] == '%') ++size;
  return size;
}

}  // namespace

std::vector<std::string> SegmentAscii(absl::string_view text) {
  std::vector<std::string> words;
  while (!text.empty()) {
    size_t size = AsciiWordSize(text);
    if (size == 0) size = text::ReadUtf8(text).size;
    words.emplace_back(text.substr(0, size));
    text.remove_prefix(size);
  }
  return words;
}

std::vector<std::string> SegmentCharacters(absl::string_view text) {
  std::vector<std::string> characters;
  while (!text.empty()) {
    const size_t size = text::ReadUtf8(text).size;
    characters.emplace_back(text.substr(0, size));
    text.remove_prefix(size);
  }
  return characters;
}

}  // namespace mneme::scoring
