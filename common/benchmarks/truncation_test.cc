#include "common/benchmarks/truncation.h"

#include <gtest/gtest.h>

#include "common/dataset/byte_encoder.h"

namespace mneme::benchmarks {
namespace {

using dataset::ByteEncoder;

TEST(TruncationTest, ShortPromptsStay) {
  EXPECT_EQ(*TruncateMiddle("abcd", 4, ByteEncoder({}, std::nullopt)), "abcd");
  EXPECT_EQ(*TruncateMiddle("abcd", 5, ByteEncoder({}, 256)), "abcd");
  EXPECT_EQ(*TruncateMiddle("", 2, ByteEncoder({}, 256)), "");
}

TEST(TruncationTest, BothEndsOfLongPromptsStay) {
  EXPECT_EQ(*TruncateMiddle("abcdefgh", 4, ByteEncoder({}, std::nullopt)), "abgh");
  EXPECT_EQ(*TruncateMiddle("abcdefgh", 5, ByteEncoder({}, std::nullopt)), "abgh");
}

TEST(TruncationTest, BosCountsAndIsLeftOut) {
  EXPECT_EQ(*TruncateMiddle("abcd", 4, ByteEncoder({}, 256)), "acd");
}

TEST(TruncationTest, LengthBelowTwoIsInvalid) {
  EXPECT_EQ(TruncateMiddle("a", 1, ByteEncoder({}, std::nullopt)).status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace mneme::benchmarks
