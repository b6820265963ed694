#include "kernels/weight_type.h"

#include <c10/util/BFloat16.h>
#include <c10/util/Exception.h>
#include <c10/util/Half.h>

#include <array>
#include <cstring>

namespace mneme::kernels {
namespace {

struct TypeInfo {
  const char* name;
  int64_t block_elements;
  int64_t block_bytes;
};

constexpr std::array<TypeInfo, kNumWeightTypes> kTypes = {{
    {"F32", 1, 4},
    {"F16", 1, 2},
    {"BF16", 1, 2},
    {"Q8_0", 32, 34},
    {"Q4_0", 32, 18},
    {"Q4_1", 32, 20},
    {"Q5_0", 32, 22},
    {"Q5_1", 32, 24},
    {"Q4_K", 256, 144},
    {"Q5_K", 256, 176},
    {"Q6_K", 256, 210},
}};

const TypeInfo& Info(WeightType type) {
  const auto index = static_cast<size_t>(type);
  TORCH_CHECK_VALUE(index < kTypes.size(), "weight type is not one that kernels know: ", index);
  return kTypes[index];
}

template <typename T>
T Read(const uint8_t* p) {
  T value;
  std::memcpy(&value, p, sizeof(T));
  return value;
}

float ReadHalf(const uint8_t* p) { return static_cast<float>(Read<c10::Half>(p)); }

// The eight 6-bit scales and minima of a Q4_K or Q5_K block lie in 12 bytes: the low six bits of
// the first four in bytes 0-3 and 4-7; of the last four, four bits in bytes 8-11 and the two high
// bits above those of the first four.
void KScale(const uint8_t* packed, int index, int* scale, int* min) {
  if (index < 4) {
    *scale = packed[index] & 63;
    *min = packed[index + 4] & 63;
  } else {
    *scale = (packed[index + 4] & 15) | ((packed[index - 4] >> 6) << 4);
    *min = (packed[index + 4] >> 4) | ((packed[index] >> 6) << 4);
  }
}

void DequantizeBlock(WeightType type, const uint8_t* p, float* out) {
  switch (type) {
    case WeightType::kF32:
      *out = Read<float>(p);
      return;
    case WeightType::kF16:
      *out = ReadHalf(p);
      return;
    case WeightType::kBF16:
      *out = static_cast<float>(Read<c10::BFloat16>(p));
      return;
    case WeightType::kQ8_0: {
      const float d = ReadHalf(p);
      for (int i = 0; i < 32; ++i) out[i] = d * static_cast<int8_t>(p[2 + i]);
      return;
    }
    case WeightType::kQ4_0: {
      const float d = ReadHalf(p);
      for (int i = 0; i < 16; ++i) {
        out[i] = d * static_cast<float>((p[2 + i] & 15) - 8);
        out[i + 16] = d * static_cast<float>((p[2 + i] >> 4) - 8);
      }
      return;
    }
    case WeightType::kQ4_1: {
      const float d = ReadHalf(p);
      const float m = ReadHalf(p + 2);
      for (int i = 0; i < 16; ++i) {
        out[i] = d * static_cast<float>(p[4 + i] & 15) + m;
        out[i + 16] = d * static_cast<float>(p[4 + i] >> 4) + m;
      }
      return;
    }
    case WeightType::kQ5_0: {
      const float d = ReadHalf(p);
      const auto high = Read<uint32_t>(p + 2);
      for (int i = 0; i < 16; ++i) {
        const int low_bit = static_cast<int>((high >> i) & 1) << 4;
        const int high_bit = static_cast<int>((high >> (i + 16)) & 1) << 4;
        out[i] = d * static_cast<float>(((p[6 + i] & 15) | low_bit) - 16);
        out[i + 16] = d * static_cast<float>(((p[6 + i] >> 4) | high_bit) - 16);
      }
      return;
    }
    case WeightType::kQ5_1: {
      const float d = ReadHalf(p);
      const float m = ReadHalf(p + 2);
      const auto high = Read<uint32_t>(p + 4);
      for (int i = 0; i < 16; ++i) {
        const int low_bit = static_cast<int>((high >> i) & 1) << 4;
        const int high_bit = static_cast<int>((high >> (i + 16)) & 1) << 4;
        out[i] = d * static_cast<float>((p[8 + i] & 15) | low_bit) + m;
        out[i + 16] = d * static_cast<float>((p[8 + i] >> 4) | high_bit) + m;
      }
      return;
    }
    case WeightType::kQ4K:
    case WeightType::kQ5K: {
      const float d = ReadHalf(p);
      const float d_min = ReadHalf(p + 2);
      const bool five = type == WeightType::kQ5K;
      const uint8_t* high = p + 16;
      const uint8_t* low = five ? p + 48 : p + 16;
      for (int s = 0; s < 8; ++s) {
        int scale, min;
        KScale(p + 4, s, &scale, &min);
        const float scaled = d * static_cast<float>(scale);
        const float offset = d_min * static_cast<float>(min);
        for (int i = 0; i < 32; ++i) {
          // Two runs of 32 share 32 bytes: the even run has the low nibbles.
          const uint8_t byte = low[(s / 2) * 32 + i];
          int q = s % 2 == 0 ? byte & 15 : byte >> 4;
          if (five) q |= ((high[i] >> s) & 1) << 4;
          out[s * 32 + i] = scaled * static_cast<float>(q) - offset;
        }
      }
      return;
    }
    case WeightType::kQ6K: {
      const float d = ReadHalf(p + 208);
      for (int half = 0; half < 2; ++half) {
        const uint8_t* low = p + half * 64;
        const uint8_t* high = p + 128 + half * 32;
        const auto* scales = reinterpret_cast<const int8_t*>(p + 192) + half * 8;
        for (int run = 0; run < 4; ++run) {
          for (int i = 0; i < 32; ++i) {
            const uint8_t byte = low[(run % 2) * 32 + i];
            const int nibble = run < 2 ? byte & 15 : byte >> 4;
            const int q = (nibble | (((high[i] >> (2 * run)) & 3) << 4)) - 32;
            const float scaled = d * static_cast<float>(scales[run * 2 + i / 16]);
            out[half * 128 + run * 32 + i] = scaled * static_cast<float>(q);
          }
        }
      }
      return;
    }
  }
}

}  // namespace

const char* WeightTypeName(WeightType type) { return Info(type).name; }
int64_t BlockElements(WeightType type) { return Info(type).block_elements; }
int64_t BlockBytes(WeightType type) { return Info(type).block_bytes; }

int64_t RowBytes(WeightType type, int64_t k) {
  const TypeInfo& info = Info(type);
  TORCH_CHECK_VALUE(k >= 0 && k % info.block_elements == 0, "a row of ", info.name,
                    " weights must be a multiple of ", info.block_elements, " long, not ", k);
  return k / info.block_elements * info.block_bytes;
}

void DequantizeRow(WeightType type, const void* row, int64_t k, float* out) {
  const TypeInfo& info = Info(type);
  const auto* p = static_cast<const uint8_t*>(row);
  for (int64_t i = 0; i < k; i += info.block_elements, p += info.block_bytes) {
    DequantizeBlock(type, p, out + i);
  }
}

}  // namespace mneme::kernels
