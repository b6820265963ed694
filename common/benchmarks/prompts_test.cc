#include "common/benchmarks/prompts.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_replace.h"
#include "common/benchmarks/long_bench.h"

namespace mneme::benchmarks {
namespace {

using ::testing::HasSubstr;
using ::testing::SizeIs;
using ::testing::StartsWith;

constexpr absl::string_view kSmall = R"({
  "source": [],
  "longbench": [{"task": "t", "template": "{{}} {context}|{input}|{context}", "max_new_tokens": 3,
                 "metric": "m"}],
  "infinitebench": {"mistral": []},
  "passkey": {"instruction": "i", "filler": "f", "fact": "{passkey}", "question": "q",
              "max_new_tokens": 1},
  "needle": {"instruction": "i", "needle": "n", "question": "q", "max_new_tokens": 1}
})";

// What parsing says after replacing a text of the small file.
std::string MessageAfter(absl::string_view text, absl::string_view replacement) {
  const std::string json = absl::StrReplaceAll(kSmall, {{text, replacement}});
  EXPECT_NE(json, kSmall);
  const absl::Status status = Prompts::Parse(json).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  return std::string(status.message());
}

TEST(PromptsTest, OwnFileHasAllTasks) {
  const auto prompts = Prompts::Parse(DefaultPromptsJson());
  ASSERT_TRUE(prompts.ok()) << prompts.status();
  EXPECT_THAT(prompts->long_bench(), SizeIs(21));
  EXPECT_THAT(prompts->infinite_bench().at("mistral"), SizeIs(12));
  const TaskPrompt& samsum = **prompts->LongBench("samsum");
  EXPECT_EQ(samsum.metric, "rouge_score");
  EXPECT_EQ(samsum.category, "EN Few-Shot Learning");
  EXPECT_EQ(samsum.max_new_tokens, 128);
  EXPECT_FALSE(samsum.chat);
  EXPECT_TRUE(samsum.newline_as_eos);
  EXPECT_TRUE((*prompts->LongBench("dureader"))->chat);
  EXPECT_EQ((*prompts->InfiniteBench("mistral", "math_calc"))->max_new_tokens, 30000);
  EXPECT_THAT(prompts->needle().question, StartsWith("\n\nWhat is the best thing"));
  EXPECT_EQ(prompts->passkey().question, "\n\nWhat is the pass key?");
}

TEST(PromptsTest, UnknownTasksAndSetsAreNotFound) {
  const auto prompts = Prompts::Parse(DefaultPromptsJson());
  ASSERT_TRUE(prompts.ok());
  const absl::Status task = prompts->LongBench("hotpot").status();
  EXPECT_EQ(task.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(task.message()), HasSubstr("hotpotqa, 2wikimqa"));
  const absl::Status set = prompts->InfiniteBench("gpt4", "passkey").status();
  EXPECT_EQ(set.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(set.message()), HasSubstr("it has mistral: \"gpt4\""));
  EXPECT_EQ(prompts->InfiniteBench("mistral", "x").status().code(), absl::StatusCode::kNotFound);
}

TEST(PromptsTest, AnotherFileTakesItsPlace) {
  const auto prompts = Prompts::Parse(kSmall);
  ASSERT_TRUE(prompts.ok()) << prompts.status();
  // Braces of the fields stay what they are.
  EXPECT_EQ(*LongBenchPrompt(**prompts->LongBench("t"), "{input}", "{"), "{} {input}|{|{input}");
}

TEST(PromptsTest, WrongFilesNameTheField) {
  EXPECT_THAT(std::string(Prompts::Parse("[]").status().message()), HasSubstr("JSON object"));
  EXPECT_THAT(std::string(Prompts::Parse("{").status().message()), HasSubstr("JSON object"));
  EXPECT_EQ(MessageAfter("\"source\": [],", ""), "source is missing");
  EXPECT_EQ(MessageAfter("\"metric\"", "\"metrik\""), "longbench[0].metric is missing");
  EXPECT_EQ(MessageAfter("\"metric\": \"m\"", "\"metric\": \"m\", \"chats\": true"),
            "longbench[0].chats is not a field of this file");
  EXPECT_EQ(MessageAfter("\"max_new_tokens\": 3", "\"max_new_tokens\": 0"),
            "longbench[0].max_new_tokens must be a whole number above 0");
  EXPECT_EQ(MessageAfter("\"metric\": \"m\"", "\"metric\": \"m\", \"chat\": 1"),
            "longbench[0].chat must be true or false");
  EXPECT_EQ(MessageAfter("{\"mistral\": []}", "[]"),
            "infinitebench must be an object of prompt sets");
  EXPECT_EQ(MessageAfter("[{\"task\"", "[3, {\"task\""), "longbench[0] must be an object");
  EXPECT_EQ(MessageAfter("\"fact\": \"{passkey}\"", "\"fact\": 3"), "passkey.fact must be text");
  EXPECT_THAT(MessageAfter("|{input}", "|{inputs}"), HasSubstr("longbench[0].template unknown"));
  EXPECT_THAT(MessageAfter("|{input}", "|{input"), HasSubstr("unknown place"));
  EXPECT_THAT(MessageAfter("|{input}|{context}", "}"), HasSubstr("a brace stands alone"));
  EXPECT_EQ(MessageAfter("\"mistral\": []",
                         R"("mistral": [{"task": "a", "template": "", "max_new_tokens": 1,
                            "metric": ""}, {"task": "a", "template": "", "max_new_tokens": 1,
                            "metric": ""}])"),
            "infinitebench.mistral has a task twice, leave one out: a");
}

}  // namespace
}  // namespace mneme::benchmarks
