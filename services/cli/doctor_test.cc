#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "services/cli/chat_settings.h"
#include "services/cli/doctor_checks.h"
#include "services/cli/log_line.h"

namespace mneme::cli {
namespace {

using ::testing::HasSubstr;
using Level = Finding::Level;

TEST(DoctorTest, AProcessorWithoutAvx2IsBad) {
  EXPECT_EQ(JudgeCpu("model name\t: Old\nflags\t\t: fpu sse sse2 avx\n").level, Level::kBad);
  const Finding good = JudgeCpu("model name\t: New One\nflags\t\t: avx2 fma f16c avx512f\n");
  EXPECT_EQ(good.level, Level::kOk);
  EXPECT_THAT(good.found, HasSubstr("New One"));
  EXPECT_THAT(good.found, Not(HasSubstr("AVX-512")));
  EXPECT_THAT(
      JudgeCpu("flags : avx2 fma f16c avx512f avx512bw avx512vl avx512dq avx512_vnni\n").found,
      HasSubstr("AVX2, AVX-512, VNNI"));
}

TEST(DoctorTest, MemoryMustHoldTheModel) {
  const char* meminfo = "MemTotal:       4194304 kB\nMemAvailable:   2097152 kB\n";
  EXPECT_EQ(JudgeMemory(meminfo, int64_t{512} << 20).level, Level::kOk);
  const Finding bad = JudgeMemory(meminfo, int64_t{3} << 30);
  EXPECT_EQ(bad.level, Level::kBad);
  EXPECT_THAT(bad.advice, HasSubstr("3.0 GiB"));
}

TEST(LogLineTest, ShowsTheErrorOfAJsonLineAndOtherLinesAsTheyAre) {
  EXPECT_EQ(MessageOfLogLine(R"({"message":"service ended with an error","error":"no model"})"),
            "no model");
  EXPECT_EQ(MessageOfLogLine(R"({"message":"ready"})"), "ready");
  EXPECT_EQ(MessageOfLogLine("# Fatal error"), "# Fatal error");
}

}  // namespace
}  // namespace mneme::cli
