#include "common/config/config.h"

#include <sys/stat.h>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "mneme/tokenizer/v1/config.pb.h"

namespace mneme::config {
namespace {

using ::testing::HasSubstr;

TEST(ConfigTest, UnknownFieldIsRefusedByName) {
  tokenizer::v1::TokenizerConfig config;
  const absl::Status status = FromJson(R"({"listen": "127.0.0.1:0", "lisen": "x"})", &config);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("lisen"));
}

TEST(ConfigTest, JsonOfMessageReadsBack) {
  tokenizer::v1::TokenizerConfig config;
  config.set_metrics_listen("127.0.0.1:9");
  config.add_models()->set_name("m");
  tokenizer::v1::TokenizerConfig again;
  ASSERT_TRUE(FromJson(ToJson(config), &again).ok());
  EXPECT_EQ(again.SerializeAsString(), config.SerializeAsString());
}

TEST(ConfigTest, MissingFileIsNotFoundWithItsPath) {
  tokenizer::v1::TokenizerConfig config;
  const absl::Status status = FromFile("/no/such/file.json", &config);
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr("/no/such/file.json"));
}

TEST(ConfigTest, AtomicWriteReplacesContentAndSetsMode) {
  const std::string path = ::testing::TempDir() + "/config_test_file";
  ASSERT_TRUE(WriteFileAtomically(path, "one").ok());
  ASSERT_TRUE(WriteFileAtomically(path, "two", 0600).ok());
  EXPECT_EQ(*ReadFile(path), "two");
  struct stat info;
  ASSERT_EQ(stat(path.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600u);
}

}  // namespace
}  // namespace mneme::config
