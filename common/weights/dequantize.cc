#include "common/weights/dequantize.h"

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "absl/strings/str_cat.h"
#include "common/status/annotate.h"

namespace mneme::weights {
namespace {

template <typename T>
T Load(const uint8_t* data) {
  T value;
  std::memcpy(&value, data, sizeof(T));
  return value;
}

float LoadHalf(const uint8_t* data) { return HalfToFloat(Load<uint16_t>(data)); }

void DecodeQ8_0(const uint8_t* block, float* out) {
  const float d = LoadHalf(block);
  for (int j = 0; j < 32; ++j) out[j] = d * static_cast<int8_t>(block[2 + j]);
}

// The 4-bit value of element j out of 16 bytes.
int Nibble(const uint8_t* q, int j) { return j < 16 ? q[j] & 0xf : q[j - 16] >> 4; }

void DecodeQ4_0(const uint8_t* block, float* out) {
  const float d = LoadHalf(block);
  for (int j = 0; j < 32; ++j) out[j] = d * static_cast<float>(Nibble(block + 2, j) - 8);
}

void DecodeQ4_1(const uint8_t* block, float* out) {
  const float d = LoadHalf(block);
  const float m = LoadHalf(block + 2);
  for (int j = 0; j < 32; ++j) out[j] = d * static_cast<float>(Nibble(block + 4, j)) + m;
}

void DecodeQ5_0(const uint8_t* block, float* out) {
  const float d = LoadHalf(block);
  const uint32_t high = Load<uint32_t>(block + 2);
  for (int j = 0; j < 32; ++j) {
    const int value = Nibble(block + 6, j) | static_cast<int>(high >> j & 1) << 4;
    out[j] = d * static_cast<float>(value - 16);
  }
}

void DecodeQ5_1(const uint8_t* block, float* out) {
  const float d = LoadHalf(block);
  const float m = LoadHalf(block + 2);
  const uint32_t high = Load<uint32_t>(block + 4);
  for (int j = 0; j < 32; ++j) {
    const int value = Nibble(block + 8, j) | static_cast<int>(high >> j & 1) << 4;
    out[j] = d * static_cast<float>(value) + m;
  }
}

struct ScaleAndMin {
  int scale;
  int min;
};

// Unpacks the 6-bit pair of sub-block b from the 12 bytes s of a Q4_K or Q5_K block.
ScaleAndMin SubBlock(const uint8_t* s, int b) {
  if (b < 4) return {s[b] & 63, s[b + 4] & 63};
  return {(s[b + 4] & 0xf) | (s[b - 4] >> 6) << 4, (s[b + 4] >> 4) | (s[b] >> 6) << 4};
}

void DecodeQ4_K(const uint8_t* block, float* out) {
  const float d = LoadHalf(block);
  const float dmin = LoadHalf(block + 2);
  const uint8_t* q = block + 16;
  for (int b = 0; b < 8; ++b) {
    const ScaleAndMin sub = SubBlock(block + 4, b);
    const float scale = d * static_cast<float>(sub.scale);
    const float min = dmin * static_cast<float>(sub.min);
    for (int j = 0; j < 32; ++j) {
      const uint8_t byte = q[32 * (b / 2) + j];
      const int value = b % 2 == 0 ? byte & 0xf : byte >> 4;
      out[32 * b + j] = scale * static_cast<float>(value) - min;
    }
  }
}

void DecodeQ5_K(const uint8_t* block, float* out) {
  const float d = LoadHalf(block);
  const float dmin = LoadHalf(block + 2);
  const uint8_t* high = block + 16;
  const uint8_t* q = block + 48;
  for (int b = 0; b < 8; ++b) {
    const ScaleAndMin sub = SubBlock(block + 4, b);
    const float scale = d * static_cast<float>(sub.scale);
    const float min = dmin * static_cast<float>(sub.min);
    for (int j = 0; j < 32; ++j) {
      const uint8_t byte = q[32 * (b / 2) + j];
      const int value = (b % 2 == 0 ? byte & 0xf : byte >> 4) | (high[j] >> b & 1) << 4;
      out[32 * b + j] = scale * static_cast<float>(value) - min;
    }
  }
}

void DecodeQ6_K(const uint8_t* block, float* out) {
  const uint8_t* low = block;
  const uint8_t* high = block + 128;
  const uint8_t* scales = block + 192;
  const float d = LoadHalf(block + 208);
  for (int j = 0; j < 256; ++j) {
    const int half = j / 128;
    const int quarter = j % 128 / 32;
    const int i = j % 32;
    const uint8_t byte = low[64 * half + 32 * (quarter % 2) + i];
    const int value =
        (quarter < 2 ? byte & 0xf : byte >> 4) | (high[32 * half + i] >> (2 * quarter) & 3) << 4;
    const float scale = d * static_cast<float>(static_cast<int8_t>(scales[j / 16]));
    out[j] = scale * static_cast<float>(value - 32);
  }
}

template <typename T, typename Convert>
void DecodePlain(const uint8_t* data, absl::Span<float> out, Convert convert) {
  for (size_t i = 0; i < out.size(); ++i) out[i] = convert(Load<T>(data + i * sizeof(T)));
}

using BlockDecoder = void (*)(const uint8_t* block, float* out);

// Null for plain types.
BlockDecoder DecoderOf(TensorType type) {
  switch (type) {
    case TensorType::kQ8_0:
      return DecodeQ8_0;
    case TensorType::kQ4_0:
      return DecodeQ4_0;
    case TensorType::kQ4_1:
      return DecodeQ4_1;
    case TensorType::kQ5_0:
      return DecodeQ5_0;
    case TensorType::kQ5_1:
      return DecodeQ5_1;
    case TensorType::kQ4_K:
      return DecodeQ4_K;
    case TensorType::kQ5_K:
      return DecodeQ5_K;
    case TensorType::kQ6_K:
      return DecodeQ6_K;
    default:
      return nullptr;
  }
}

// An 8-bit float with the given exponent width, without treating its special values.
float SmallFloat(uint8_t bits, int mantissa_bits, int bias) {
  const int mantissa = bits & ((1 << mantissa_bits) - 1);
  const int exponent = (bits & 0x7f) >> mantissa_bits;
  const float magnitude = exponent == 0
                              ? std::ldexp(static_cast<float>(mantissa), 1 - bias - mantissa_bits)
                              : std::ldexp(static_cast<float>(mantissa | 1 << mantissa_bits),
                                           exponent - bias - mantissa_bits);
  return bits & 0x80 ? -magnitude : magnitude;
}

}  // namespace

float HalfToFloat(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16;
  const uint32_t exponent = bits >> 10 & 0x1f;
  const uint32_t mantissa = bits & 0x3ff;
  if (exponent == 0x1f) return std::bit_cast<float>(sign | 0x7f800000 | mantissa << 13);
  if (exponent == 0) {
    const float magnitude = std::ldexp(static_cast<float>(mantissa), -24);
    return sign != 0 ? -magnitude : magnitude;
  }
  return std::bit_cast<float>(sign | (exponent + 112) << 23 | mantissa << 13);
}

uint16_t FloatToHalf(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
  const uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return static_cast<uint16_t>(sign | 0x7e00);
  // 65520 is half way between the largest half, 65504, and the next power of two.
  if (magnitude >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);
  if (magnitude < 0x38800000) {
    // Subnormal: adding 0.5 moves the unit of 2^-24 to the last bit, with the right rounding.
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(shifted) - 0x3f000000));
  }
  const uint32_t rounded = magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1);
  return static_cast<uint16_t>(sign | rounded >> 13);
}

float BFloat16ToFloat(uint16_t bits) {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

uint16_t FloatToBFloat16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if (std::isnan(value)) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

float Float8E4M3ToFloat(uint8_t bits) {
  if ((bits & 0x7f) == 0x7f) return std::numeric_limits<float>::quiet_NaN();
  return SmallFloat(bits, /*mantissa_bits=*/3, /*bias=*/7);
}

float Float8E5M2ToFloat(uint8_t bits) {
  // The upper byte of a half.
  return HalfToFloat(static_cast<uint16_t>(bits << 8));
}

absl::Status Dequantize(TensorType type, absl::Span<const uint8_t> data, absl::Span<float> out) {
  const size_t block_size = static_cast<size_t>(BlockSize(type));
  const size_t block_bytes = static_cast<size_t>(BytesPerBlock(type));
  if (out.size() % block_size != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("no whole number of ", TypeName(type), " blocks: ", out.size(), " elements"));
  }
  if (data.size() / block_bytes < out.size() / block_size) {
    return absl::InvalidArgumentError(absl::StrCat(
        "too few bytes for ", out.size(), " elements of ", TypeName(type), ": ", data.size()));
  }
  if (const BlockDecoder decode = DecoderOf(type); decode != nullptr) {
    for (size_t block = 0; block < out.size() / block_size; ++block) {
      decode(data.data() + block * block_bytes, out.data() + block * block_size);
    }
    return absl::OkStatus();
  }
  const auto plain = [](auto value) { return static_cast<float>(value); };
  switch (type) {
    case TensorType::kF32:
      DecodePlain<float>(data.data(), out, plain);
      break;
    case TensorType::kF64:
      DecodePlain<double>(data.data(), out, plain);
      break;
    case TensorType::kF16:
      DecodePlain<uint16_t>(data.data(), out, HalfToFloat);
      break;
    case TensorType::kBF16:
      DecodePlain<uint16_t>(data.data(), out, BFloat16ToFloat);
      break;
    case TensorType::kF8E4M3:
      DecodePlain<uint8_t>(data.data(), out, Float8E4M3ToFloat);
      break;
    case TensorType::kF8E5M2:
      DecodePlain<uint8_t>(data.data(), out, Float8E5M2ToFloat);
      break;
    case TensorType::kI8:
      DecodePlain<int8_t>(data.data(), out, plain);
      break;
    case TensorType::kI16:
      DecodePlain<int16_t>(data.data(), out, plain);
      break;
    case TensorType::kI32:
      DecodePlain<int32_t>(data.data(), out, plain);
      break;
    case TensorType::kI64:
      DecodePlain<int64_t>(data.data(), out, plain);
      break;
    case TensorType::kU8:
      DecodePlain<uint8_t>(data.data(), out, plain);
      break;
    case TensorType::kBool:
      DecodePlain<uint8_t>(data.data(), out,
                           [](uint8_t value) { return value != 0 ? 1.0f : 0.0f; });
      break;
    default:
      return absl::InternalError(absl::StrCat("no decoder for type ", TypeName(type)));
  }
  return absl::OkStatus();
}

absl::Status Dequantize(const TensorView& tensor, absl::Span<float> out) {
  return DequantizeRows(tensor, 0, tensor.num_rows(), out);
}

absl::Status DequantizeRows(const TensorView& tensor, int64_t first_row, int64_t num_rows,
                            absl::Span<float> out) {
  const int64_t total = tensor.num_rows();
  if (first_row < 0 || num_rows < 0 || first_row > total || num_rows > total - first_row ||
      out.size() != static_cast<size_t>(num_rows * tensor.row_size())) {
    return absl::InvalidArgumentError(absl::StrCat(
        "rows outside the tensor, or an output of another size: rows ", first_row, " + ", num_rows,
        " into ", out.size(), " elements from ", tensor.name, " ", tensor.Describe()));
  }
  const size_t begin = static_cast<size_t>(first_row * tensor.row_bytes());
  const size_t size = static_cast<size_t>(num_rows * tensor.row_bytes());
  return status::Annotate(Dequantize(tensor.type, {tensor.data + begin, size}, out), tensor.name);
}

}  // namespace mneme::weights
