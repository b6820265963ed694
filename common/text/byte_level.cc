#include "common/text/byte_level.h"

#include <array>
#include <cstdint>

#include "common/text/utf8.h"

namespace mneme::text {
namespace {

// Printable Latin-1 bytes stand for themselves; the other 68 take the code points from 256 on.
constexpr bool IsPrintable(int byte) {
  return (byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte <= 0xac) ||
         (byte >= 0xae && byte <= 0xff);
}

constexpr int kAlphabetEnd = 256 + 68;

struct Alphabet {
  std::array<uint16_t, 256> code_point{};
  std::array<int16_t, kAlphabetEnd> byte{};  // -1: not in the alphabet
};

constexpr Alphabet MakeAlphabet() {
  Alphabet alphabet;
  for (auto& byte : alphabet.byte) byte = -1;
  int next = 256;
  for (int byte = 0; byte < 256; ++byte) {
    const int code_point = IsPrintable(byte) ? byte : next++;
    alphabet.code_point[byte] = static_cast<uint16_t>(code_point);
    alphabet.byte[code_point] = static_cast<int16_t>(byte);
  }
  return alphabet;
}

constexpr Alphabet kAlphabet = MakeAlphabet();

}  // namespace

std::string BytesOfByteLevel(absl::string_view token) {
  std::string bytes;
  bytes.reserve(token.size());
  for (absl::string_view rest = token; !rest.empty();) {
    const Utf8Front front = ReadUtf8(rest);
    int code_point = -1;
    if (front.kind == Utf8Front::kCharacter && front.size == 1) {
      code_point = rest[0];
    } else if (front.kind == Utf8Front::kCharacter && front.size == 2) {
      code_point = (rest[0] & 0x1f) << 6 | (rest[1] & 0x3f);
    }
    if (code_point < 0 || code_point >= kAlphabetEnd || kAlphabet.byte[code_point] < 0) {
      return std::string(token);
    }
    bytes.push_back(static_cast<char>(kAlphabet.byte[code_point]));
    rest.remove_prefix(front.size);
  }
  return bytes;
}

std::string ToByteLevel(absl::string_view bytes) {
  std::string token;
  token.reserve(bytes.size() * 2);
  for (const char byte : bytes) {
    const int code_point = kAlphabet.code_point[static_cast<uint8_t>(byte)];
    if (code_point < 0x80) {
      token.push_back(static_cast<char>(code_point));
    } else {
      token.push_back(static_cast<char>(0xc0 | code_point >> 6));
      token.push_back(static_cast<char>(0x80 | (code_point & 0x3f)));
    }
  }
  return token;
}

}  // namespace mneme::text
