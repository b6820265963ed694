// The prompts of golden/models: rendered from the template inside the model file and encoded with
// the tokenizer inside it, byte for byte and id for id.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "services/tokenizer/chat_prompt.h"
#include "services/tokenizer/gguf_tokenizer.h"
#include "tests/golden/tokenizers/reference_tokenizers.h"

namespace mneme::testing {
namespace {

using Json = nlohmann::json;
using ::testing::ElementsAreArray;

void ComparePrompts(const std::string& model_path, const std::string& golden_name) {
  auto tokenizer = tokenizer::LoadModelTokenizer(model_path);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  auto content = ReadWholeFile(GoldenFolder() + "/models/" + golden_name);
  ASSERT_TRUE(content.ok()) << content.status();
  int num_chats = 0;
  const Json golden = Json::parse(*content);
  for (const Json& generation : golden["generation"]) {
    const auto prompt = generation["prompt"].get<std::string>();
    const auto prompt_ids = generation["prompt_ids"].get<std::vector<int32_t>>();
    const auto generated = generation["generated_ids"].get<std::vector<int32_t>>();
    SCOPED_TRACE(prompt);
    EXPECT_EQ((*tokenizer)->Decode(generated, false).value(),
              generation["text"].get<std::string>());
    if (generation["kind"] != "chat") {
      const auto ids = (*tokenizer)->Encode(prompt, {.add_special_tokens = true});
      ASSERT_TRUE(ids.ok()) << ids.status();
      EXPECT_THAT(*ids, ElementsAreArray(prompt_ids));
      continue;
    }
    ++num_chats;
    text::ChatInput input;
    for (const Json& message : generation["messages"]) {
      input.messages.push_back({.role = message["role"].get<std::string>(),
                                .content = message["content"].get<std::string>()});
    }
    input.add_generation_prompt = true;
    const auto rendered = tokenizer::EncodeChatPrompt(**tokenizer, "", input, {}, 1 << 20);
    ASSERT_TRUE(rendered.ok()) << rendered.status();
    EXPECT_EQ(rendered->text, prompt);
    EXPECT_THAT(rendered->token_ids, ElementsAreArray(prompt_ids));
    // A second turn: what memory holds is not encoded again.
    input.messages.push_back({.role = "assistant",
                              .content = generation["text"].get<std::string>().substr(
                                  0, generation["text"].get<std::string>().find("<|im_end|>"))});
    input.messages.push_back({.role = "user", .content = "And then?"});
    std::vector<int32_t> history = prompt_ids;
    history.insert(history.end(), generated.begin(), generated.end());
    const auto next = tokenizer::EncodeChatPrompt(**tokenizer, "", input, history, 1 << 20);
    ASSERT_TRUE(next.ok()) << next.status();
    EXPECT_TRUE(next->prefix_matched);
    history.insert(history.end(), next->token_ids.begin(), next->token_ids.end());
    EXPECT_EQ((*tokenizer)->Decode(history, false).value(), next->text);
  }
  EXPECT_GT(num_chats, 0);
}

TEST(ChatGoldenTest, SmolLm2PromptsAreTheReferences) {
  ComparePrompts(CacheFolder() + "/models/smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf",
                 "smollm2-135m-instruct-q4_1.json");
}

TEST(ChatGoldenTest, QwenCoderPromptsAreTheReferences) {
  const char* path = std::getenv("MNEME_QWEN_GGUF");
  if (path == nullptr) GTEST_SKIP() << "MNEME_QWEN_GGUF names no file";
  ComparePrompts(path, "qwen2.5-coder-0.5b-instruct-q4_k_m.json");
}

}  // namespace
}  // namespace mneme::testing
