#include "common/weights/dequantize.h"

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "common/weights/gguf.h"
#include "common/weights/safetensors.h"
#include "common/weights/test_data.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace mneme::weights {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

// quants.gguf holds every bit pattern a type allows in its blocks; quants.safetensors what the
// format's own package makes of them. Both round every step to float32, so they agree to the bit.
TEST(DequantizeTest, EveryTypeMatchesTheReferencePackageExactly) {
  const auto file = GgufFile::Open(TestData("quants.gguf"));
  const auto expected = SafetensorsFile::Open(TestData("quants.safetensors"));
  ASSERT_TRUE(file.ok() && expected.ok()) << file.status() << expected.status();
  EXPECT_EQ((*file)->tensors().size(), (*expected)->tensors().size());
  for (const TensorView& tensor : (*file)->tensors()) {
    SCOPED_TRACE(tensor.name);
    const TensorView* reference = (*expected)->FindTensor(tensor.name);
    ASSERT_NE(reference, nullptr);
    EXPECT_EQ(tensor.shape, reference->shape);
    std::vector<float> values(static_cast<size_t>(tensor.num_elements()));
    ASSERT_TRUE(Dequantize(tensor, absl::MakeSpan(values)).ok());
    std::vector<float> wanted(values.size());
    ASSERT_TRUE(Dequantize(*reference, absl::MakeSpan(wanted)).ok());
    EXPECT_EQ(values, wanted);
  }
}

TEST(DequantizeTest, RowsAreTheSameRowsOfTheWhole) {
  const auto file = GgufFile::Open(TestData("quants.gguf"));
  ASSERT_TRUE(file.ok());
  for (const TensorView& tensor : (*file)->tensors()) {
    std::vector<float> whole(static_cast<size_t>(tensor.num_elements()));
    ASSERT_TRUE(Dequantize(tensor, absl::MakeSpan(whole)).ok());
    const auto width = tensor.row_size();
    std::vector<float> row(static_cast<size_t>(width));
    ASSERT_TRUE(DequantizeRows(tensor, 1, 1, absl::MakeSpan(row)).ok());
    EXPECT_EQ(row, std::vector<float>(whole.begin() + width, whole.begin() + 2 * width));
  }
}

TEST(DequantizeTest, RowsOutsideAndWrongSizesAreRefused) {
  const auto file = GgufFile::Open(TestData("quants.gguf"));
  const TensorView& tensor = *(*file)->FindTensor("tensor.Q4_0");
  std::vector<float> row(static_cast<size_t>(tensor.row_size()));
  for (const auto& [first, count] : std::vector<std::pair<int64_t, int64_t>>{
           {-1, 1}, {3, 1}, {0, 2}, {0, -1}, {std::numeric_limits<int64_t>::max(), 1}}) {
    EXPECT_EQ(DequantizeRows(tensor, first, count, absl::MakeSpan(row)).code(),
              absl::StatusCode::kInvalidArgument);
  }
  const std::vector<uint8_t> block(18);
  std::vector<float> out(33);
  EXPECT_THAT(std::string(Dequantize(TensorType::kQ4_0, block, absl::MakeSpan(out)).message()),
              HasSubstr("whole number"));
  out.resize(64);
  EXPECT_THAT(std::string(Dequantize(TensorType::kQ4_0, block, absl::MakeSpan(out)).message()),
              HasSubstr("too few bytes"));
}

TEST(HalfTest, EveryHalfGoesToFloatAndBack) {
  for (uint32_t bits = 0; bits <= 0xffff; ++bits) {
    const float value = HalfToFloat(static_cast<uint16_t>(bits));
    if ((bits & 0x7fff) > 0x7c00) {
      EXPECT_TRUE(std::isnan(value));
      EXPECT_TRUE(std::isnan(HalfToFloat(FloatToHalf(value))));
      continue;
    }
    ASSERT_EQ(FloatToHalf(value), bits);
    // The definition, for finite ones.
    if ((bits & 0x7fff) < 0x7c00) {
      const int exponent = bits >> 10 & 31;
      const int mantissa = bits & 0x3ff;
      const double magnitude =
          exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(mantissa + 1024, exponent - 25);
      ASSERT_EQ(value, bits & 0x8000 ? -magnitude : magnitude);
    }
  }
}

// The compiler's own conversion is the oracle, on values between, at and beyond the halves.
TEST(HalfTest, FloatToHalfRoundsAsTheCompilerDoes) {
  uint32_t state = 12345;
  for (int i = 0; i < 2000000; ++i) {
    state = state * 1664525 + 1013904223;
    uint32_t bits = state;
    // Half of the cases get few bits, so that ties are common.
    if (i % 2 == 0) bits &= 0xfffff000;
    const float value = std::bit_cast<float>(bits);
    if (std::isnan(value)) continue;
    const _Float16 expected = static_cast<_Float16>(value);
    ASSERT_EQ(FloatToHalf(value), std::bit_cast<uint16_t>(expected)) << value;
  }
  EXPECT_EQ(FloatToHalf(65519.99f), 0x7bff);
  EXPECT_EQ(FloatToHalf(65520.0f), 0x7c00);
  EXPECT_EQ(FloatToHalf(-std::numeric_limits<float>::infinity()), 0xfc00);
  EXPECT_EQ(FloatToHalf(std::ldexp(1.0f, -25)), 0);  // a tie, to even
  EXPECT_EQ(FloatToHalf(std::ldexp(1.5f, -25)), 1);
}

TEST(BFloat16Test, RoundsToNearestEvenAndKeepsNan) {
  for (uint32_t bits = 0; bits <= 0xffff; ++bits) {
    const float value = BFloat16ToFloat(static_cast<uint16_t>(bits));
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(BFloat16ToFloat(FloatToBFloat16(value))));
    } else {
      ASSERT_EQ(FloatToBFloat16(value), bits);
    }
  }
  EXPECT_EQ(FloatToBFloat16(std::bit_cast<float>(0x3f808000u)), 0x3f80);  // ties to even
  EXPECT_EQ(FloatToBFloat16(std::bit_cast<float>(0x3f818000u)), 0x3f82);
  EXPECT_EQ(FloatToBFloat16(std::bit_cast<float>(0x3f808001u)), 0x3f81);
  EXPECT_EQ(FloatToBFloat16(std::numeric_limits<float>::max()), 0x7f80);
  EXPECT_TRUE(std::isnan(BFloat16ToFloat(FloatToBFloat16(std::bit_cast<float>(0x7f800001u)))));
}

TEST(Float8Test, EndPointsOfBothFormats) {
  EXPECT_EQ(Float8E4M3ToFloat(0x7e), 448.0f);
  EXPECT_EQ(Float8E4M3ToFloat(0x38), 1.0f);
  EXPECT_EQ(Float8E4M3ToFloat(0x01), std::ldexp(1.0f, -9));
  EXPECT_EQ(Float8E4M3ToFloat(0xb8), -1.0f);
  EXPECT_TRUE(std::isnan(Float8E4M3ToFloat(0xff)));
  EXPECT_EQ(Float8E5M2ToFloat(0x7b), 57344.0f);
  EXPECT_EQ(Float8E5M2ToFloat(0x3c), 1.0f);
  EXPECT_EQ(Float8E5M2ToFloat(0x01), std::ldexp(1.0f, -16));
  EXPECT_TRUE(std::isinf(Float8E5M2ToFloat(0x7c)));
}

}  // namespace
}  // namespace mneme::weights
