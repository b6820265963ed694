#include "services/gateway/answer.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace mneme::gateway {
namespace {

using ::testing::ElementsAre;

constexpr int32_t kEnd = 5;

Vocabulary MakeVocabulary(bool strip) {
  text::TokenTable::Definition definition;
  definition.pieces = {" He", "llo", ", wo", "\xc3", "\xa9", "<end>"};
  definition.special_ids = {kEnd};
  auto middle = text::TokenTable::Create(definition).value();
  definition.strip_leading_space = strip;
  return {text::TokenTable::Create(definition).value(), std::move(middle), "", ""};
}

executor::v1::GenerateResponse Tokens(const std::vector<int32_t>& ids,
                                      inference::v1::FinishReason reason) {
  executor::v1::GenerateResponse response;
  for (const int32_t id : ids) {
    response.add_token_ids(id);
    response.add_logprobs()->set_token_id(id);
  }
  response.set_finish_reason(reason);
  return response;
}

class AnswerTest : public ::testing::Test {
 protected:
  Answer Make(std::vector<std::string> stop = {}) {
    return Answer(vocabulary_, {std::move(stop), {kEnd}, false, true});
  }
  const Vocabulary vocabulary_ = MakeVocabulary(false);
};

TEST_F(AnswerTest, EndTokenIsKeptInTheLogButNoText) {
  Answer answer = Make();
  ASSERT_TRUE(answer.Add(Tokens({0, 1, kEnd}, inference::v1::FINISH_REASON_STOP)).ok());
  EXPECT_EQ(answer.new_text(), " Hello");
  EXPECT_EQ(answer.new_logprobs().size(), 2U);
  answer.ClearNew();
  EXPECT_THAT(answer.TokensOfText(), ElementsAre(0, 1, kEnd));
  EXPECT_EQ(answer.num_tokens(), 3);
}

TEST_F(AnswerTest, StopStringInsideATokenDropsThatToken) {
  Answer answer = Make({"wo"});
  ASSERT_TRUE(answer.Add(Tokens({0, 1}, inference::v1::FINISH_REASON_UNSPECIFIED)).ok());
  ASSERT_TRUE(answer.Add(Tokens({2, 1}, inference::v1::FINISH_REASON_UNSPECIFIED)).ok());
  EXPECT_EQ(answer.finish_reason(), inference::v1::FINISH_REASON_STOP);
  EXPECT_EQ(answer.new_text(), " Hello, ");
  // The token that holds the stop string was never whole in the text.
  EXPECT_EQ(answer.new_logprobs().size(), 2U);
  answer.ClearNew();
  EXPECT_THAT(answer.TokensOfText(), ElementsAre(0, 1));
  ASSERT_TRUE(answer.Add(Tokens({1}, inference::v1::FINISH_REASON_STOP)).ok());
  EXPECT_EQ(answer.new_text(), "");
}

TEST_F(AnswerTest, CharacterAcrossTokensWaitsAndACutOneLeavesTheLog) {
  Answer answer = Make();
  ASSERT_TRUE(answer.Add(Tokens({0, 3}, inference::v1::FINISH_REASON_UNSPECIFIED)).ok());
  EXPECT_EQ(answer.new_text(), " He");
  answer.ClearNew();
  ASSERT_TRUE(answer.Add(Tokens({4, 3}, inference::v1::FINISH_REASON_LENGTH)).ok());
  EXPECT_EQ(answer.new_text(), "é\xef\xbf\xbd");
  answer.ClearNew();
  EXPECT_THAT(answer.TokensOfText(), ElementsAre(0, 3, 4));
}

TEST_F(AnswerTest, HiddenTokenInTheMiddleEndsTheLog) {
  Answer answer = Make();
  ASSERT_TRUE(answer.Add(Tokens({0, kEnd, 1}, inference::v1::FINISH_REASON_LENGTH)).ok());
  EXPECT_EQ(answer.new_text(), " Hello");
  answer.ClearNew();
  EXPECT_THAT(answer.TokensOfText(), ElementsAre(0));
}

TEST_F(AnswerTest, StrippedLeadingSpaceStaysInTheLog) {
  const Vocabulary stripped = MakeVocabulary(true);
  Answer answer(stripped, {{}, {kEnd}, false, true});
  ASSERT_TRUE(answer.Add(Tokens({0, 1, kEnd}, inference::v1::FINISH_REASON_STOP)).ok());
  EXPECT_EQ(answer.new_text(), "Hello");
  answer.ClearNew();
  EXPECT_THAT(answer.TokensOfText(), ElementsAre(0, 1, kEnd));
  Answer middle(stripped, {{}, {kEnd}, true, true});
  ASSERT_TRUE(middle.Add(Tokens({0}, inference::v1::FINISH_REASON_LENGTH)).ok());
  EXPECT_EQ(middle.new_text(), " He");
}

TEST_F(AnswerTest, TokenOutsideTheVocabularyIsInternal) {
  Answer answer = Make();
  EXPECT_EQ(answer.Add(Tokens({6}, inference::v1::FINISH_REASON_UNSPECIFIED)).code(),
            absl::StatusCode::kInternal);
}

}  // namespace
}  // namespace mneme::gateway
