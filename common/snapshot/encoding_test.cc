#include "common/snapshot/encoding.h"

#include "gtest/gtest.h"

namespace mneme::snapshot {
namespace {

TEST(EncodingTest, UnknownOnesAreRefused) {
  EXPECT_EQ(*ResolveEncoding(v1::ENCODING_UNSPECIFIED, at::kFloat), v1::ENCODING_FLOAT32);
  EXPECT_EQ(*ResolveEncoding(v1::ENCODING_UNSPECIFIED, at::kBFloat16), v1::ENCODING_BFLOAT16);
  EXPECT_EQ(*ResolveEncoding(v1::ENCODING_INT8, at::kFloat), v1::ENCODING_INT8);
  EXPECT_EQ(ResolveEncoding(static_cast<v1::Encoding>(9), at::kFloat).status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace mneme::snapshot
