#include "common/redis/reply.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace mneme::redis {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

struct Case {
  const char* error;
  absl::StatusCode code;
  const char* words;
};

class ErrorTest : public ::testing::TestWithParam<Case> {};

TEST_P(ErrorTest, ErrorOfRedisBecomesStatusWithAddressAndFix) {
  const absl::Status status = StatusOfError(GetParam().error, "10.0.0.1:6379");
  EXPECT_EQ(status.code(), GetParam().code);
  EXPECT_THAT(std::string(status.message()), HasSubstr(GetParam().words));
  EXPECT_THAT(std::string(status.message()), HasSubstr("10.0.0.1:6379"));
}

INSTANTIATE_TEST_SUITE_P(
    Known, ErrorTest,
    ::testing::Values(Case{"OOM command not allowed when used memory > 'maxmemory'.",
                           absl::StatusCode::kResourceExhausted, "maxmemory"},
                      Case{"LOADING Redis is loading the dataset in memory",
                           absl::StatusCode::kUnavailable, "loading"},
                      Case{"READONLY You can't write against a read only replica.",
                           absl::StatusCode::kUnavailable, "redis.address"},
                      Case{"MISCONF Redis is configured to save RDB snapshots",
                           absl::StatusCode::kUnavailable, "disk"},
                      Case{"WRONGPASS invalid username-password pair or user is disabled.",
                           absl::StatusCode::kFailedPrecondition, "redis.password_file"},
                      Case{"NOAUTH Authentication required.", absl::StatusCode::kFailedPrecondition,
                           "redis.password_file"},
                      Case{"ERR DB index is out of range", absl::StatusCode::kFailedPrecondition,
                           "redis.database"},
                      Case{"WRONGTYPE Operation against a key", absl::StatusCode::kInternal,
                           "WRONGTYPE"}));

TEST(ReplyTest, QuotedArgumentsOfAnErrorAreNotPassedOn) {
  const absl::Status status = StatusOfError(
      "ERR unknown command 'X', with args beginning with: 'what the user wrote'", "a:1");
  EXPECT_THAT(std::string(status.message()), Not(HasSubstr("user wrote")));
}

TEST(ReplyTest, NilIsNeitherNumberNorString) {
  EXPECT_EQ(Reply().Integer().status().code(), absl::StatusCode::kInternal);
  EXPECT_EQ(Reply().String().status().code(), absl::StatusCode::kInternal);
}

}  // namespace
}  // namespace mneme::redis
