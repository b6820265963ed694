#include "kernels/weight_type.h"

#include <c10/util/Exception.h>
#include <c10/util/Half.h>
#include <gtest/gtest.h>

#include <cstring>
#include <vector>

namespace mneme::kernels {
namespace {

struct Expected {
  WeightType type;
  float picks[6];
  double weighted_sum;
};

// Printed by weight_type_golden.py (PyPI gguf 0.19.0). The values are exact: each is one product
// and at most one sum.
constexpr Expected kExpected[] = {
    {WeightType::kQ8_0,
     {-0x1.705e000000000p+0f, -0x1.27f4000000000p+0f, -0x1.1510000000000p-3f,
      -0x1.8668000000000p+0f, 0x1.c560000000000p-1f, 0x1.5408000000000p+1f},
     -1280.6638488769531},
    {WeightType::kQ4_0,
     {0x1.2e40000000000p-5f, -0x1.2e40000000000p-4f, -0x1.2e40000000000p-5f, 0x1.9300000000000p-5f,
      0x0.0p+0f, 0x1.2e40000000000p-3f},
     15.5946044921875},
    {WeightType::kQ4_1,
     {0x1.4d40000000000p-5f, 0x1.7020000000000p-4f, -0x1.5500000000000p-6f, 0x1.a280000000000p-4f,
      0x1.a378000000000p-2f, 0x1.c940000000000p-2f},
     868.1154174804688},
    {WeightType::kQ5_0,
     {0x1.60a0000000000p-3f, 0x1.2e40000000000p-3f, 0x1.c560000000000p-4f, -0x1.2e40000000000p-4f,
      -0x1.2e40000000000p-3f, 0x1.79d0000000000p-3f},
     85.67193603515625},
    {WeightType::kQ5_1,
     {0x1.4d40000000000p-5f, 0x1.4d40000000000p-5f, 0x1.03a0000000000p-3f, 0x1.c940000000000p-2f,
      0x1.c940000000000p-2f, 0x1.8190000000000p-3f},
     1990.4595947265625},
    {WeightType::kQ4K,
     {0x1.ec20000000000p+1f, 0x1.ec20000000000p+1f, 0x1.1437000000000p+2f, 0x1.a948000000000p+1f,
      0x1.22de000000000p+0f, 0x1.6e8d000000000p+1f},
     269996.82537841797},
    {WeightType::kQ5K,
     {0x1.76e8000000000p+3f, 0x1.b5e0000000000p+3f, 0x1.6939000000000p+2f, 0x1.0b8e800000000p+4f,
      0x1.082a800000000p+4f, 0x1.6ba5000000000p+3f},
     420592.7715148926},
    {WeightType::kQ6K,
     {0x1.4eb7e00000000p+4f, 0x1.3ec7800000000p+4f, -0x1.0f8d800000000p+3f, -0x1.c560000000000p+4f,
      0x0.0p+0f, -0x1.9626000000000p+3f},
     -6319.836456298828},
};

std::vector<int> HalfFields(WeightType type) {
  switch (type) {
    case WeightType::kQ4_1:
    case WeightType::kQ5_1:
    case WeightType::kQ4K:
    case WeightType::kQ5K:
      return {0, 2};
    case WeightType::kQ6K:
      return {208};
    default:
      return {0};
  }
}

TEST(WeightTypeTest, BlocksMeanWhatGgufSays) {
  constexpr int kBlocks = 3;
  for (const Expected& expected : kExpected) {
    const int64_t size = BlockBytes(expected.type);
    const int64_t elements = BlockElements(expected.type);
    std::vector<uint8_t> data(static_cast<size_t>(kBlocks * size));
    uint32_t state = 12345;
    for (uint8_t& byte : data) {
      state = state * 1664525 + 1013904223;
      byte = static_cast<uint8_t>(state >> 24);
    }
    for (int block = 0; block < kBlocks; ++block) {
      int index = 0;
      for (const int field : HalfFields(expected.type)) {
        const c10::Half value(static_cast<float>(0.0123 * (block + 1) - 0.07 * index++));
        std::memcpy(data.data() + block * size + field, &value, 2);
      }
    }
    std::vector<float> values(static_cast<size_t>(kBlocks * elements));
    DequantizeRow(expected.type, data.data(), kBlocks * elements, values.data());
    const int64_t picks[] = {0,
                             1,
                             elements / 2 - 1,
                             elements + 17,
                             2 * elements + elements / 2 + 3,
                             kBlocks * elements - 1};
    for (int i = 0; i < 6; ++i) {
      EXPECT_EQ(values[picks[i]], expected.picks[i]) << WeightTypeName(expected.type) << " " << i;
    }
    double sum = 0;
    for (size_t i = 0; i < values.size(); ++i) sum += values[i] * static_cast<double>(i % 97 + 1);
    EXPECT_NEAR(sum, expected.weighted_sum, 1e-6) << WeightTypeName(expected.type);
  }
}

TEST(WeightTypeTest, RowsMustBeWholeBlocks) {
  EXPECT_EQ(RowBytes(WeightType::kQ4_1, 576), 18 * 20);
  EXPECT_EQ(RowBytes(WeightType::kQ6K, 512), 420);
  EXPECT_EQ(RowBytes(WeightType::kBF16, 7), 14);
  EXPECT_THROW(RowBytes(WeightType::kQ4_1, 40), c10::ValueError);
  EXPECT_THROW(RowBytes(WeightType::kQ6K, 576), c10::ValueError);
  EXPECT_THROW(RowBytes(static_cast<WeightType>(kNumWeightTypes), 576), c10::ValueError);
}

}  // namespace
}  // namespace mneme::kernels
