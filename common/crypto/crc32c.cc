#include "common/crypto/crc32c.h"

#include <nmmintrin.h>
#include <wmmintrin.h>

#include <cstring>

namespace mneme::crypto {
namespace {

// The instruction takes three cycles and a new one can begin in each: three lanes side by side.
constexpr int64_t kLaneBytes = 1024;

// Returns x^n modulo the polynomial. As everywhere here the highest bit belongs to x^0.
constexpr uint32_t PowerOfX(int64_t n) {
  uint32_t power = uint32_t{1} << 31;
  for (; n > 0; --n) power = (power >> 1) ^ ((power & 1) != 0 ? 0x82F63B78u : 0);
  return power;
}

// What a checksum is multiplied with to be that of its text and `bytes` zeros: multiplying without
// carries gives x too much, and reducing the product with the instruction x^32.
constexpr uint32_t ShiftBy(int64_t bytes) { return PowerOfX(8 * bytes - 33); }

__attribute__((target("sse4.2,pclmul"))) inline uint64_t Shift(uint64_t sum, uint32_t by) {
  const __m128i product = _mm_clmulepi64_si128(_mm_cvtsi64_si128(static_cast<int64_t>(sum)),
                                               _mm_cvtsi64_si128(int64_t{by}), 0);
  return _mm_crc32_u64(0, static_cast<uint64_t>(_mm_cvtsi128_si64(product)));
}

__attribute__((target("sse4.2"))) inline uint64_t AddWord(uint64_t sum, const char* at) {
  uint64_t word;
  std::memcpy(&word, at, sizeof(word));
  return _mm_crc32_u64(sum, word);
}

}  // namespace

// Every machine that Mneme runs on has AVX2, and with it these instructions.
__attribute__((target("sse4.2,pclmul"))) uint32_t Crc32c(absl::string_view bytes,
                                                         uint32_t previous) {
  constexpr uint32_t kOneLane = ShiftBy(kLaneBytes);
  constexpr uint32_t kTwoLanes = ShiftBy(2 * kLaneBytes);
  const char* at = bytes.data();
  const char* const end = at + bytes.size();
  uint64_t sum = ~previous;
  for (; end - at >= 3 * kLaneBytes; at += 3 * kLaneBytes) {
    uint64_t second = 0;
    uint64_t third = 0;
    for (int64_t i = 0; i < kLaneBytes; i += 8) {
      sum = AddWord(sum, at + i);
      second = AddWord(second, at + kLaneBytes + i);
      third = AddWord(third, at + 2 * kLaneBytes + i);
    }
    sum = Shift(sum, kTwoLanes) ^ Shift(second, kOneLane) ^ third;
  }
  for (; end - at >= 8; at += 8) sum = AddWord(sum, at);
  auto rest = static_cast<uint32_t>(sum);
  for (; at != end; ++at) rest = _mm_crc32_u8(rest, static_cast<unsigned char>(*at));
  return ~rest;
}

}  // namespace mneme::crypto
