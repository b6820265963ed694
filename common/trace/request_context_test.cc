#include "common/trace/request_context.h"

#include "gtest/gtest.h"

namespace mneme::trace {
namespace {

constexpr char kParent[] = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

TEST(RequestContextTest, TraceIdIsKeptAndSpanIdIsNew) {
  const RequestContext context = ContextFrom("abc-1", kParent);
  EXPECT_EQ(context.request_id, "abc-1");
  EXPECT_TRUE(IsTraceparent(context.traceparent));
  EXPECT_EQ(context.traceparent.substr(0, 35), std::string(kParent).substr(0, 35));
  EXPECT_NE(context.traceparent, kParent);
}

TEST(RequestContextTest, MalformedValuesAreReplaced) {
  const RequestContext context = ContextFrom("two words", "00-zz");
  EXPECT_TRUE(IsIdentifier(context.request_id));
  EXPECT_NE(context.request_id, "two words");
  EXPECT_TRUE(IsTraceparent(context.traceparent));
  EXPECT_FALSE(IsTraceparent("00-00000000000000000000000000000000-b7ad6b7169203331-01"));
}

}  // namespace
}  // namespace mneme::trace
