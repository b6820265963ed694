#include "common/scoring/unicode.h"

#include <algorithm>
#include <iterator>

#include "absl/strings/ascii.h"
#include "common/scoring/unicode_tables.h"
#include "common/text/utf8.h"

namespace mneme::scoring {
namespace {

constexpr char32_t kReplacement = 0xfffd;
constexpr char32_t kEndOfAscii = 0x80;

// Bits of a character that its first byte holds, by the number of bytes.
constexpr unsigned kLeadBits[] = {0, 0x7f, 0x1f, 0x0f, 0x07};

char32_t Decode(absl::string_view bytes) {
  char32_t character = static_cast<unsigned char>(bytes[0]) & kLeadBits[bytes.size()];
  for (const char byte : bytes.substr(1)) {
    character = character << 6 | (static_cast<unsigned char>(byte) & 0x3f);
  }
  return character;
}

void AppendUtf8(char32_t character, std::string* text) {
  const auto append = [text](char32_t byte) { text->push_back(static_cast<char>(byte)); };
  const auto append_rest = [&](int shift) { append(0x80 | (character >> shift & 0x3f)); };
  if (character < 0x80) {
    append(character);
  } else if (character < 0x800) {
    append(0xc0 | character >> 6);
    append_rest(0);
  } else if (character < 0x10000) {
    append(0xe0 | character >> 12);
    append_rest(6);
    append_rest(0);
  } else {
    append(0xf0 | character >> 18);
    append_rest(12);
    append_rest(6);
    append_rest(0);
  }
}

// Returns the first of the rows, which are sorted and apart, that does not end before `character`.
template <typename Row, size_t kSize>
const Row* FindRow(const Row (&rows)[kSize], char32_t character) {
  return std::lower_bound(std::begin(rows), std::end(rows), character,
                          [](const Row& row, char32_t wanted) { return row.last < wanted; });
}

template <size_t kNumRuns, size_t kNumExpansions>
std::u32string ChangeCase(std::u32string_view text, const CaseRun (&runs)[kNumRuns],
                          const CaseExpansion (&expansions)[kNumExpansions]) {
  std::u32string changed;
  changed.reserve(text.size());
  for (const char32_t character : text) {
    const CaseRun* const run = FindRow(runs, character);
    if (run != std::end(runs) && run->first <= character &&
        (character - run->first) % run->step == 0) {
      changed.push_back(character + static_cast<char32_t>(run->offset));
      continue;
    }
    const CaseExpansion* const expansion = std::lower_bound(
        std::begin(expansions), std::end(expansions), character,
        [](const CaseExpansion& row, char32_t wanted) { return row.from < wanted; });
    if (expansion == std::end(expansions) || expansion->from != character) {
      changed.push_back(character);
      continue;
    }
    for (const char32_t part : expansion->to) {
      if (part != 0) changed.push_back(part);
    }
  }
  return changed;
}

}  // namespace

std::u32string ToCharacters(absl::string_view text) {
  std::u32string characters;
  characters.reserve(text.size());
  while (!text.empty()) {
    const text::Utf8Front front = text::ReadUtf8(text);
    const bool is_valid = front.kind == text::Utf8Front::kCharacter;
    characters.push_back(is_valid ? Decode(text.substr(0, front.size)) : kReplacement);
    text.remove_prefix(front.size);
  }
  return characters;
}

std::string ToUtf8(std::u32string_view characters) {
  std::string text;
  text.reserve(characters.size());
  for (const char32_t character : characters) AppendUtf8(character, &text);
  return text;
}

std::u32string ToLower(std::u32string_view text) {
  return ChangeCase(text, kLower, kLowerExpansions);
}

std::u32string ToUpper(std::u32string_view text) {
  return ChangeCase(text, kUpper, kUpperExpansions);
}

bool IsAlphanumeric(char32_t character) {
  const CharacterRange* const range = FindRow(kAlphanumeric, character);
  return range != std::end(kAlphanumeric) && range->first <= character;
}

bool IsSpace(char32_t character) {
  return (character >= 0x09 && character <= 0x0d) || (character >= 0x1c && character <= 0x20) ||
         character == 0x85 || character == 0xa0 || character == 0x1680 ||
         (character >= 0x2000 && character <= 0x200a) || character == 0x2028 ||
         character == 0x2029 || character == 0x202f || character == 0x205f || character == 0x3000;
}

bool IsAsciiPunctuation(char32_t character) {
  return character < kEndOfAscii && absl::ascii_ispunct(static_cast<unsigned char>(character));
}

}  // namespace mneme::scoring
