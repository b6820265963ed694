#include "common/log/log.h"

#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace mneme::log {
namespace {

TEST(LogTest, JsonStringOfAnyBytesIsValidJson) {
  std::string bytes;
  for (int i = 0; i < 256; ++i) bytes.push_back(static_cast<char>(i));
  bytes += "\xed\xa0\x80\xf4\x90\x80\x80\xc0\x80 Grüße 你好 🙂";
  const nlohmann::json parsed = nlohmann::json::parse(JsonString(bytes));
  EXPECT_NE(parsed.get<std::string>().find("Grüße 你好 🙂"), std::string::npos);
}

TEST(LogTest, LineHoldsMessageAndFields) {
  Init("test");
  ::testing::internal::CaptureStderr();
  Info("session evicted", {{"session", "s\n1"}, {"bytes", 12}, {"ratio", 0.5}, {"hot", true}});
  Debug("not written");
  const std::string text = ::testing::internal::GetCapturedStderr();
  const nlohmann::json line = nlohmann::json::parse(text);
  EXPECT_EQ(line["message"], "session evicted");
  EXPECT_EQ(line["service"], "test");
  EXPECT_EQ(line["session"], "s\n1");
  EXPECT_EQ(line["bytes"], 12);
  EXPECT_EQ(line["ratio"], 0.5);
  EXPECT_EQ(line["hot"], true);
}

}  // namespace
}  // namespace mneme::log
