#include "common/stored/encoding.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>

namespace mneme::stored {
namespace {

constexpr float kMaxInt8 = 127;
constexpr float kMaxFp8 = 448;

float DecodeFp8(uint8_t value) {
  const int exponent = value >> 3 & 15;
  const int mantissa = value & 7;
  float magnitude;
  if (exponent == 15 && mantissa == 7) {
    magnitude = std::numeric_limits<float>::quiet_NaN();
  } else if (exponent == 0) {
    magnitude = std::ldexp(static_cast<float>(mantissa), -9);
  } else {
    magnitude = std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);
  }
  return (value & 0x80) != 0 ? -magnitude : magnitude;
}

}  // namespace

bool IsKnown(v1::Encoding encoding) {
  return encoding == v1::ENCODING_FLOAT32 || encoding == v1::ENCODING_BFLOAT16 ||
         IsScaled(encoding);
}

bool IsScaled(v1::Encoding encoding) {
  return encoding == v1::ENCODING_INT8 || encoding == v1::ENCODING_FP8_E4M3;
}

int64_t NumberBytes(v1::Encoding encoding) {
  if (encoding == v1::ENCODING_FLOAT32) return 4;
  return encoding == v1::ENCODING_BFLOAT16 ? 2 : 1;
}

int64_t HeadBytes(v1::Encoding encoding, int64_t num_entries, int64_t head_size) {
  const int64_t scales = IsScaled(encoding) ? static_cast<int64_t>(sizeof(float)) : 0;
  return 2 * num_entries * (head_size * NumberBytes(encoding) + scales);
}

uint8_t ToFp8(float value) {
  const uint8_t sign = std::signbit(value) ? 0x80 : 0;
  const float magnitude = std::fabs(value);
  if (std::isnan(magnitude)) return sign | 0x7F;
  if (magnitude >= kMaxFp8) return sign | 0x7E;
  // Numbers below 2^-6 have the spacing 2^-9, others an eighth of their power of two.
  constexpr float kSmallestNormal = 0x1p-6F;
  if (magnitude < kSmallestNormal) {
    return sign | static_cast<uint8_t>(std::nearbyint(magnitude * 0x1p9F));
  }
  const uint32_t bits = std::bit_cast<uint32_t>(magnitude);
  const uint32_t rounded = bits + 0x7FFFF + (bits >> 20 & 1);
  // Exponent and mantissa lie side by side in both, so a carry of the one raises the other.
  const uint32_t code = (rounded >> 20) - ((127U - 7U) << 3);
  return sign | static_cast<uint8_t>(std::min(code, 0x7EU));
}

float FromFp8(uint8_t value) {
  static const std::array<float, 256> table = [] {
    std::array<float, 256> numbers{};
    for (int i = 0; i < 256; ++i) numbers[i] = DecodeFp8(static_cast<uint8_t>(i));
    return numbers;
  }();
  return table[value];
}

float ScaleOf(absl::Span<const float> numbers, v1::Encoding encoding) {
  float largest = 0;
  for (const float number : numbers) {
    if (std::isfinite(number)) largest = std::max(largest, std::fabs(number));
  }
  return largest / (encoding == v1::ENCODING_INT8 ? kMaxInt8 : kMaxFp8);
}

uint8_t Quantise(float number, float scale, v1::Encoding encoding) {
  if (std::isnan(number) || scale == 0) number = 0;
  const float most = encoding == v1::ENCODING_INT8 ? kMaxInt8 : kMaxFp8;
  const float stored = scale == 0 ? 0 : std::clamp(number / scale, -most, most);
  if (encoding == v1::ENCODING_FP8_E4M3) return ToFp8(stored);
  return static_cast<uint8_t>(static_cast<int8_t>(std::nearbyint(stored)));
}

float Dequantise(uint8_t stored, float scale, v1::Encoding encoding) {
  if (encoding == v1::ENCODING_FP8_E4M3) return scale * FromFp8(stored);
  return scale * static_cast<float>(static_cast<int8_t>(stored));
}

}  // namespace mneme::stored
