#include "services/cli/arguments.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace mneme::cli {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class ArgumentsTest : public ::testing::Test {
 protected:
  ArgumentsTest() : arguments_("mneme try", "Tries.") {
    arguments_.Option("http-port", "N", &port_, "the port");
    arguments_.Option("temperature", "T", &temperature_, "how wild");
    arguments_.Option("data", "DIR", &data_, "the folder");
    arguments_.Flag("json", &json_, "as JSON");
    arguments_.Positional("FILE", 1, 2, &files_, "what to try");
  }

  std::string ErrorOf(const std::vector<std::string>& words) {
    return std::string(arguments_.Parse(words).message());
  }

  Arguments arguments_;
  std::optional<int> port_;
  std::optional<double> temperature_;
  std::string data_;
  bool json_ = false;
  std::vector<std::string> files_;
};

TEST_F(ArgumentsTest, ReadsValuesInBothForms) {
  ASSERT_TRUE(arguments_
                  .Parse({"a", "--http-port", "80", "--temperature=0.5", "--json", "--data=x=y",
                          "--", "--b"})
                  .ok());
  EXPECT_EQ(port_, 80);
  EXPECT_EQ(temperature_, 0.5);
  EXPECT_TRUE(json_);
  EXPECT_EQ(data_, "x=y");
  EXPECT_THAT(files_, ElementsAre("a", "--b"));
}

TEST_F(ArgumentsTest, SuggestsWhatAnUnknownOptionMayMean) {
  EXPECT_THAT(ErrorOf({"a", "--htpp-port", "1"}), HasSubstr("did you mean --http-port?"));
  EXPECT_THAT(ErrorOf({"a", "--temp", "1"}), HasSubstr("did you mean --temperature?"));
  EXPECT_THAT(ErrorOf({"a", "--zzzzzz"}), Not(HasSubstr("did you mean")));
  EXPECT_THAT(ErrorOf({"a", "-x"}), HasSubstr("unknown option -x"));
}

TEST_F(ArgumentsTest, RefusesWrongValues) {
  EXPECT_THAT(ErrorOf({"a", "--http-port", "80x"}), HasSubstr("--http-port is not a whole number"));
  EXPECT_THAT(ErrorOf({"a", "--http-port", "99999999999"}), HasSubstr("is not a whole number"));
  EXPECT_THAT(ErrorOf({"a", "--temperature", "warm"}), HasSubstr("is not a number: warm"));
  EXPECT_THAT(ErrorOf({"a", "--http-port"}), HasSubstr("--http-port needs a value: N"));
  EXPECT_THAT(ErrorOf({"a", "--json=yes"}), HasSubstr("--json takes no value"));
}

TEST_F(ArgumentsTest, CountsPositionalArguments) {
  EXPECT_THAT(ErrorOf({}), HasSubstr("missing argument: FILE"));
  EXPECT_THAT(ErrorOf({"a", "b", "c"}), HasSubstr("unexpected argument: c"));
}

TEST_F(ArgumentsTest, HelpNamesEveryOption) {
  ASSERT_TRUE(arguments_.Parse({"--help", "--nonsense"}).ok());
  EXPECT_TRUE(arguments_.help_wanted());
  const std::string help = arguments_.Help();
  for (const char* part : {"Tries.", "usage: mneme try [options] FILE", "--http-port N", "how wild",
                           "--json", "what to try"}) {
    EXPECT_THAT(help, HasSubstr(part));
  }
}

TEST(NearestWordTest, FindsOnlyWhatIsNear) {
  EXPECT_EQ(NearestWord("statsu", {"up", "status"}), "status");
  EXPECT_EQ(NearestWord("don", {"up", "down"}), "down");
  EXPECT_EQ(NearestWord("fly", {"up", "down"}), "");
}

}  // namespace
}  // namespace mneme::cli
