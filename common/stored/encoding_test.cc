// Numbers in 8 bits.
#include "common/stored/encoding.h"

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "gtest/gtest.h"

namespace mneme::stored {
namespace {

TEST(Fp8Test, EveryCodeComesBack) {
  for (int code = 0; code < 256; ++code) {
    const float number = FromFp8(static_cast<uint8_t>(code));
    if ((code & 0x7F) == 0x7F) {
      EXPECT_TRUE(std::isnan(number));
    } else {
      EXPECT_EQ(ToFp8(number), code) << number;
    }
  }
  EXPECT_EQ(FromFp8(0x7E), 448);
  EXPECT_EQ(FromFp8(0x01), 0x1p-9F);
  EXPECT_EQ(FromFp8(0x38), 1);
}

TEST(Fp8Test, NumbersBecomeTheNearestOneAndTiesTheEvenOne) {
  std::mt19937_64 random(1);
  std::uniform_real_distribution<float> exponent(-12, 9);
  for (int i = 0; i < 20000; ++i) {
    const float number = std::exp2(exponent(random)) * (i % 2 == 0 ? 1.F : -1.F);
    const float stored = FromFp8(ToFp8(number));
    float nearest = 448;
    for (int code = 0; code < 0x7F; ++code) {
      const float candidate = std::copysign(FromFp8(static_cast<uint8_t>(code)), number);
      if (std::fabs(candidate - number) < std::fabs(nearest - number)) nearest = candidate;
    }
    EXPECT_EQ(std::fabs(stored - number), std::fabs(nearest - number)) << number;
  }
  for (int code = 0; code < 0x7E; ++code) {
    const float low = FromFp8(static_cast<uint8_t>(code));
    const float high = FromFp8(static_cast<uint8_t>(code + 1));
    EXPECT_EQ(ToFp8((low + high) / 2), code % 2 == 0 ? code : code + 1);
  }
  EXPECT_EQ(ToFp8(1e9F), 0x7E);
  EXPECT_EQ(ToFp8(-std::numeric_limits<float>::infinity()), 0xFE);
}

TEST(ScaledTest, WhatIsNotFiniteDoesNotSpoilTheRest) {
  for (const v1::Encoding encoding : {v1::ENCODING_INT8, v1::ENCODING_FP8_E4M3}) {
    const std::vector<float> numbers = {1, -2, std::numeric_limits<float>::quiet_NaN(),
                                        std::numeric_limits<float>::infinity()};
    const float scale = ScaleOf(numbers, encoding);
    const auto back = [&](float number) {
      return Dequantise(Quantise(number, scale, encoding), scale, encoding);
    };
    EXPECT_NEAR(back(numbers[0]), 1, 0.04);
    EXPECT_NEAR(back(numbers[1]), -2, 1e-6);
    EXPECT_EQ(back(numbers[2]), 0);
    EXPECT_NEAR(back(numbers[3]), 2, 1e-6);
    EXPECT_EQ(ScaleOf(std::vector<float>{0, 0}, encoding), 0);
    EXPECT_EQ(Dequantise(Quantise(0, 0, encoding), 0, encoding), 0);
  }
}

}  // namespace
}  // namespace mneme::stored
