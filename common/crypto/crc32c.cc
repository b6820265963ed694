#include "common/crypto/crc32c.h"

#include <nmmintrin.h>

#include <cstring>

namespace mneme::crypto {

// Every machine that Mneme runs on has AVX2, and with it this instruction.
__attribute__((target("sse4.2"))) uint32_t Crc32c(absl::string_view bytes, uint32_t previous) {
  const char* at = bytes.data();
  const char* const end = at + bytes.size();
  uint64_t sum = ~previous;
  for (; end - at >= 8; at += 8) {
    uint64_t word;
    std::memcpy(&word, at, sizeof(word));
    sum = _mm_crc32_u64(sum, word);
  }
  auto rest = static_cast<uint32_t>(sum);
  for (; at != end; ++at) rest = _mm_crc32_u8(rest, static_cast<unsigned char>(*at));
  return ~rest;
}

}  // namespace mneme::crypto
