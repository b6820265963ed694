#include "common/benchmarks/hidden_fact.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/dataset/byte_encoder.h"

namespace mneme::benchmarks {
namespace {

using dataset::TemplateName;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

dataset::ByteEncoder Encoder() { return dataset::ByteEncoder({}, 256); }

// Instruction 2, fact 3, question 1 tokens.
PasskeyTexts Passkey() {
  return {.instruction = "I:",
          .filler = "abcdefghij",
          .fact = *PromptTemplate::Parse("<{passkey}>", {"passkey"}),
          .question = "?"};
}

std::string PasskeyAt(int64_t length, int64_t depth) {
  const auto sample = PasskeySample(Passkey(), {.length = length, .depth = depth, .passkey = "7"},
                                    TemplateName::kNo, Encoder());
  return sample.ok() ? sample->text : std::string(sample.status().message());
}

std::string NeedleAt(absl::string_view haystack, int64_t length, int64_t depth) {
  const NeedleTexts texts = {.instruction = "I:", .needle = "<7>", .question = "?"};
  const auto sample = NeedleSample(texts, haystack, length, depth, TemplateName::kNo, Encoder());
  return sample.ok() ? sample->text : std::string(sample.status().message());
}

TEST(HiddenFactTest, ValuesAreEquallySpacedAndCut) {
  EXPECT_THAT(*EquallySpaced(0, 100, 4), ElementsAre(0, 33, 66, 100));
  EXPECT_THAT(*EquallySpaced(5, 5, 2), ElementsAre(5, 5));
  EXPECT_THAT(*EquallySpaced(8192, 131072, 1), ElementsAre(8192));
  EXPECT_EQ(EquallySpaced(0, 1, 0).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(EquallySpaced(2, 1, 2).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(HiddenFactTest, PasskeysAreThoseOfNumPy) {
  const auto cases = DrawPasskeyCases({500, 900}, {0, 50}, 5, 123);
  ASSERT_TRUE(cases.ok());
  std::vector<std::string> drawn;
  for (const PasskeyCase& one : *cases) {
    drawn.push_back(absl::StrCat(one.length, "/", one.depth, "/", one.passkey));
  }
  EXPECT_THAT(drawn, ElementsAre("500/0/11389", "500/50/71411", "900/0/63365", "900/50/14843"));
  EXPECT_EQ(DrawPasskeyCases({1}, {1}, 10, 1).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(DrawPasskeyCases({1}, {1}, 9, 1)->front().passkey.size(), 9u);
}

TEST(HiddenFactTest, PasskeyIsAtItsDepthOfTheFiller) {
  EXPECT_EQ(PasskeyAt(20, 0), "I:<7>abcdefghijabcd?");
  EXPECT_EQ(PasskeyAt(20, 50), "I:abcdef<7>abcdefgh?");  // 6.5, to the even number
  EXPECT_EQ(PasskeyAt(18, 50), "I:abcdef<7>abcdef?");    // 5.5
  EXPECT_EQ(PasskeyAt(20, 100), "I:abcdefghijabc<7>a?");
}

TEST(HiddenFactTest, NeedleIsDeeperByTheInstruction) {
  EXPECT_EQ(NeedleAt("a b c d e f g h i j k l m n o p q r s t u", 20, 0), "I:a <7>b c d e f g ?");
  EXPECT_EQ(NeedleAt("a b c d e f g h i j k l m n o p q r s t u", 20, 100), "I:a b c d e f g <7>?");
  // One word: repeated until there is enough.
  EXPECT_EQ(NeedleAt("xy", 20, 50), "I:xyxyxyxy<7>xyxyxy?");
}

TEST(HiddenFactTest, SamplesAreInTheChatTemplateAndTokenised) {
  const auto sample =
      PasskeySample(Passkey(), {.length = 8, .depth = 0, .passkey = "7"}, TemplateName::kMistral,
                    dataset::ByteEncoder({{"[INST]", 257}, {"[/INST]", 258}}, 256));
  ASSERT_TRUE(sample.ok());
  EXPECT_EQ(sample->text, "[INST] I:<7>? [/INST]");
  EXPECT_THAT(sample->input_ids,
              ElementsAre(256, 257, ' ', 'I', ':', '<', '7', '>', '?', ' ', 258));
}

TEST(HiddenFactTest, WhatCannotBeIsInvalid) {
  EXPECT_EQ(PasskeyAt(7, 100), "I:<7>?");
  EXPECT_THAT(PasskeyAt(6, 0), HasSubstr("use at least 7 tokens: 6"));
  EXPECT_THAT(PasskeyAt(20, 101), HasSubstr("use 0 to 100: 101"));
  EXPECT_THAT(NeedleAt("x", 20, -1), HasSubstr("use 0 to 100: -1"));
  EXPECT_THAT(NeedleAt(" \n", 20, 0), HasSubstr("haystack has no word"));
}

}  // namespace
}  // namespace mneme::benchmarks
