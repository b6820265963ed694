#include "common/snapshot/crc32c.h"

#include <nmmintrin.h>

#include <array>
#include <cstring>

namespace mneme::snapshot {
namespace {

constexpr uint32_t kPolynomial = 0x82F63B78;  // reflected

// kTables[k][b]: the remainder of byte b followed by k zero bytes.
constexpr std::array<std::array<uint32_t, 256>, 8> MakeTables() {
  std::array<std::array<uint32_t, 256>, 8> tables{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t crc = byte;
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ ((crc & 1) != 0 ? kPolynomial : 0);
    tables[0][byte] = crc;
  }
  for (size_t k = 1; k < tables.size(); ++k) {
    for (uint32_t byte = 0; byte < 256; ++byte) {
      const uint32_t crc = tables[k - 1][byte];
      tables[k][byte] = crc >> 8 ^ tables[0][crc & 0xFF];
    }
  }
  return tables;
}

constexpr std::array<std::array<uint32_t, 256>, 8> kTables = MakeTables();

uint64_t Load64(const char* bytes) {
  uint64_t value;
  std::memcpy(&value, bytes, sizeof(value));
  return value;
}

__attribute__((target("sse4.2"))) uint32_t Crc32cSse42(absl::string_view bytes) {
  const char* data = bytes.data();
  const char* const end = data + bytes.size();
  uint64_t crc = 0xFFFFFFFF;
  for (; end - data >= 8; data += 8) crc = _mm_crc32_u64(crc, Load64(data));
  uint32_t rest = static_cast<uint32_t>(crc);
  for (; data < end; ++data) rest = _mm_crc32_u8(rest, static_cast<uint8_t>(*data));
  return ~rest;
}

}  // namespace

uint32_t Crc32cPortable(absl::string_view bytes) {
  const char* data = bytes.data();
  const char* const end = data + bytes.size();
  uint32_t crc = 0xFFFFFFFF;
  for (; end - data >= 8; data += 8) {
    const uint64_t word = Load64(data) ^ crc;
    crc = 0;
    for (size_t i = 0; i < 8; ++i) crc ^= kTables[7 - i][word >> (8 * i) & 0xFF];
  }
  for (; data < end; ++data) crc = crc >> 8 ^ kTables[0][(crc ^ static_cast<uint8_t>(*data)) & 0xFF];
  return ~crc;
}

uint32_t Crc32c(absl::string_view bytes) {
  static const bool has_sse42 = __builtin_cpu_supports("sse4.2");
  return has_sse42 ? Crc32cSse42(bytes) : Crc32cPortable(bytes);
}

}  // namespace mneme::snapshot
