#include "common/dataset/chat_template.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/dataset/answer_labels.h"
#include "common/dataset/byte_encoder.h"

namespace mneme::dataset {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr int32_t kBos = 256;

ByteEncoder Encoder(std::optional<int32_t> bos = kBos) {
  return ByteEncoder({{"<s>", kBos},
                      {"</s>", 257},
                      {"[INST]", 258},
                      {"[/INST]", 259},
                      {"<|im_start|>", 260},
                      {"<|im_end|>", 261},
                      {"<|start_header_id|>", 262},
                      {"<|end_header_id|>", 263},
                      {"<|eot_id|>", 264},
                      {"user", 265},
                      {"assistant", 266},
                      {"\n\n", 267}},
                     bos);
}

Turn User(std::string text) { return {.role = Role::kUser, .content = std::move(text)}; }
Turn Assistant(std::string text) { return {.role = Role::kAssistant, .content = std::move(text)}; }

absl::StatusOr<std::string> Render(TemplateName name, const Conversation& conversation) {
  return RenderConversation(name, conversation, Encoder());
}

// What the labels leave of the text.
std::string Trained(TemplateName name, const Conversation& conversation) {
  const ByteEncoder encoder =
      name == TemplateName::kQwen ? Encoder(/*bos=*/std::nullopt) : Encoder();
  const auto encoded = EncodeConversation(name, conversation, encoder, /*with_labels=*/true);
  EXPECT_TRUE(encoded.ok()) << encoded.status();
  EXPECT_EQ(encoded->labels.size(), encoded->input_ids.size());
  std::vector<int32_t> kept;
  for (size_t i = 0; i < encoded->labels.size(); ++i) {
    if (encoded->labels[i] == kIgnoredLabel) continue;
    EXPECT_EQ(encoded->labels[i], encoded->input_ids[i]);
    kept.push_back(encoded->labels[i]);
  }
  return *encoder.Decode(kept, /*skip_special_tokens=*/false);
}

void ExpectInvalid(const absl::Status& status, const char* words) {
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr(words));
}

TEST(ChatTemplateTest, NamesAreThoseOfThePublishedImplementation) {
  EXPECT_EQ(*ParseTemplateName("hf"), TemplateName::kHf);
  EXPECT_EQ(*ParseTemplateName("no"), TemplateName::kNo);
  EXPECT_EQ(*ParseTemplateName("mistral"), TemplateName::kMistral);
  EXPECT_EQ(*ParseTemplateName("llama-2"), TemplateName::kLlama2);
  EXPECT_EQ(*ParseTemplateName("llama-3"), TemplateName::kLlama3);
  EXPECT_EQ(*ParseTemplateName("qwen"), TemplateName::kQwen);
  ExpectInvalid(ParseTemplateName("llama3").status(), "use hf, no, mistral, llama-2");
}

TEST(ChatTemplateTest, SystemMessageGoesIntoTheFirstUsersTextOnly) {
  const Conversation conversation = {.system = "S",
                                     .turns = {User("a"), Assistant("b"), User("c")}};
  EXPECT_EQ(*Render(TemplateName::kMistral, conversation), "[INST] S\na [/INST] b</s>[INST] c ");
  EXPECT_EQ(*Render(TemplateName::kLlama2, conversation),
            "[INST] <<SYS>>\nS\n<</SYS>>\n\na [/INST] b </s><s>[INST] c ");
}

TEST(ChatTemplateTest, GenerationPromptOpensTheAnswer) {
  const Conversation conversation = {.turns = {User("a")}, .add_generation_prompt = true};
  EXPECT_EQ(*Render(TemplateName::kMistral, conversation), "[INST] a [/INST]");
  EXPECT_EQ(*Render(TemplateName::kLlama3, conversation),
            "<|start_header_id|>user<|end_header_id|>\n\na<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n");
  EXPECT_EQ(*Render(TemplateName::kNo, conversation), "a");
}

TEST(ChatTemplateTest, OnlyQwenHasADefaultSystemMessage) {
  Conversation conversation = {.turns = {User("a")}};
  EXPECT_EQ(*Render(TemplateName::kQwen, conversation),
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
            "<|im_start|>user\na<|im_end|>\n");
  EXPECT_EQ(*Render(TemplateName::kLlama3, conversation),
            "<|start_header_id|>user<|end_header_id|>\n\na<|eot_id|>");
  conversation.system = "";
  EXPECT_EQ(*Render(TemplateName::kQwen, conversation),
            "<|im_start|>system\n<|im_end|>\n<|im_start|>user\na<|im_end|>\n");
}

TEST(ChatTemplateTest, FirstTurnOfTheAssistantIsLeftOut) {
  EXPECT_EQ(
      *Render(TemplateName::kMistral, {.turns = {Assistant("hello"), User("a"), Assistant("b")}}),
      "[INST] a [/INST] b</s>");
}

TEST(ChatTemplateTest, TurnsOutOfOrderAreInvalid) {
  ExpectInvalid(Render(TemplateName::kQwen, {}).status(), "needs a turn of the user's");
  ExpectInvalid(Render(TemplateName::kQwen, {.turns = {Assistant("b")}}).status(),
                "needs a turn of the user's");
  ExpectInvalid(Render(TemplateName::kQwen, {.turns = {User("a"), User("b")}}).status(),
                "in a row of role user");
  ExpectInvalid(
      Render(TemplateName::kQwen, {.turns = {Assistant("a"), Assistant("b"), User("c")}}).status(),
      "in a row of role assistant");
  ExpectInvalid(Render(TemplateName::kQwen,
                       {.turns = {User("a"), Assistant("b")}, .add_generation_prompt = true})
                    .status(),
                "end with a turn of the user's");
}

TEST(ChatTemplateTest, NoTemplateTakesOneExchangeWithoutASystemMessage) {
  EXPECT_EQ(*Render(TemplateName::kNo, {.turns = {User("a"), Assistant("b")}}), "a b</s>");
  ExpectInvalid(
      Render(TemplateName::kNo, {.turns = {User("a"), Assistant("b"), User("c")}}).status(),
      "one exchange at most");
  ExpectInvalid(Render(TemplateName::kNo, {.system = "S", .turns = {User("a")}}).status(),
                "no place for a system message");
}

TEST(ChatTemplateTest, AnswersAndTheirEndAreTrained) {
  const Conversation conversation = {
      .turns = {User("a user"), Assistant("b\n\n"), User("c"), Assistant("")}};
  EXPECT_EQ(Trained(TemplateName::kMistral, conversation), " b\n\n</s> </s>");
  EXPECT_EQ(Trained(TemplateName::kLlama2, conversation), " b\n\n </s>  </s>");
  EXPECT_EQ(Trained(TemplateName::kLlama3, conversation), "b\n\n<|eot_id|><|eot_id|>");
  EXPECT_EQ(Trained(TemplateName::kQwen, conversation), "b\n\n<|im_end|><|im_end|>");
  EXPECT_EQ(Trained(TemplateName::kNo, {.turns = {User("a b</s>"), Assistant("b")}}), "b</s>");
}

TEST(ChatTemplateTest, NothingIsTrainedWithoutAnAnswer) {
  const Conversation conversation = {.turns = {User("a")}};
  for (const TemplateName name : {TemplateName::kNo, TemplateName::kMistral, TemplateName::kLlama2,
                                  TemplateName::kLlama3, TemplateName::kQwen}) {
    EXPECT_EQ(Trained(name, conversation), "");
  }
}

// The published rule splits at the marks, wherever they come from.
TEST(ChatTemplateTest, MarksWithinAMessageCountAsTheTemplates) {
  // The answer ends at its own mark; what follows is no answer.
  EXPECT_EQ(Trained(TemplateName::kMistral, {.turns = {User("a"), Assistant("b</s>c")}}), " b</s>");
  // A piece with two marks of an answer's start is none.
  EXPECT_EQ(Trained(TemplateName::kMistral, {.turns = {User("a [/INST] x"), Assistant("b")}}), "");
}

TEST(ChatTemplateTest, LabelsAreShapedAsTheIds) {
  const auto encoded = EncodeConversation(
      TemplateName::kNo, {.turns = {User("ab"), Assistant("c")}}, Encoder(), /*with_labels=*/true);
  ASSERT_TRUE(encoded.ok());
  EXPECT_THAT(encoded->input_ids, ElementsAre(kBos, 'a', 'b', ' ', 'c', 257));
  EXPECT_THAT(encoded->labels, ElementsAre(-100, -100, -100, -100, 'c', 257));
  const auto unlabelled = EncodeConversation(TemplateName::kNo, {.turns = {User("")}}, Encoder(),
                                             /*with_labels=*/false);
  ASSERT_TRUE(unlabelled.ok());
  EXPECT_THAT(unlabelled->input_ids, ElementsAre(kBos));
  EXPECT_THAT(unlabelled->labels, IsEmpty());
}

TEST(ChatTemplateTest, TokenizersOwnTemplateHasNoLabels) {
  ExpectInvalid(EncodeConversation(TemplateName::kHf, {.turns = {User("a")}}, Encoder(),
                                   /*with_labels=*/true)
                    .status(),
                "no rule for labels");
  EXPECT_EQ(Render(TemplateName::kHf, {.turns = {User("a")}}).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST(ChatTemplateTest, LabelsOfAnEmptyTextAreEmpty) {
  const TurnMarks marks = {.turn_end = "</s>", .answer_start = " [/INST]"};
  const auto none = AnswerLabels(marks, "", {}, Encoder());
  ASSERT_TRUE(none.ok());
  EXPECT_THAT(*none, IsEmpty());
  const auto bos = AnswerLabels(marks, "", {kBos}, Encoder());
  ASSERT_TRUE(bos.ok());
  EXPECT_THAT(*bos, Each(kIgnoredLabel));
}

}  // namespace
}  // namespace mneme::dataset
