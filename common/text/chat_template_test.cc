#include "common/text/chat_template.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include "absl/strings/str_cat.h"

namespace mneme::text {
namespace {

using ::testing::HasSubstr;

absl::StatusOr<std::string> Render(absl::string_view source, const ChatInput& input = {}) {
  auto chat_template = ChatTemplate::Create(source, {{"bos_token", "<s>"}, {"eos_token", "</s>"}});
  if (!chat_template.ok()) return chat_template.status();
  return chat_template->Render(input);
}

ChatInput Hello() {
  ChatInput input;
  input.messages = {{.role = "user", .content = "Hello"}};
  return input;
}

TEST(ChatTemplateTest, RendersMessagesAndSpecialTokens) {
  EXPECT_EQ(Render("{{ bos_token }}{% for m in messages %}[{{ m.role }}:{{ m['content'] }}]"
                   "{% endfor %}{% if add_generation_prompt %}>{% endif %}{{ eos_token }}",
                   Hello())
                .value(),
            "<s>[user:Hello]</s>");
}

TEST(ChatTemplateTest, RaisedMessageArrivesVerbatim) {
  const auto text = Render("{{ raise_exception('Roles must alternate: \"user\" & <x>') }}");
  EXPECT_EQ(text.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(text.status().message(), "Roles must alternate: \"user\" & <x>");
}

TEST(ChatTemplateTest, MessageRaisedInsideAMacroArrivesVerbatim) {
  const auto text = Render(
      "{% macro check(x) %}{% if not x %}{{ raise_exception('no ' + 'x') }}{% endif %}"
      "{% endmacro %}{% for i in [1, 0] %}{{ check(i) }}{% endfor %}");
  EXPECT_EQ(text.status().message(), "no x");
}

TEST(ChatTemplateTest, SyntaxErrorNamesItsLine) {
  const auto text = Render("fine\n{% for %}");
  EXPECT_EQ(text.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(text.status().message()), HasSubstr(":2"));
}

TEST(ChatTemplateTest, JsonIsWrittenAsPythonWritesIt) {
  ChatInput input;
  input.arguments_json = R"({"x": {"b": [1, 2.0, true, null, "é<>&'\"\n"], "a": {}}})";
  EXPECT_EQ(Render("{{ x | tojson }}", input).value(),
            R"({"b": [1, 2.0, true, null, "é<>&'\"\n"], "a": {}})");
  EXPECT_EQ(Render("{{ x.a | tojson(indent=2) }}|{{ [1,[2]] | tojson(indent=2) }}", input).value(),
            "{}|[\n  1,\n  [\n    2\n  ]\n]");
}

TEST(ChatTemplateTest, ValuesAreWrittenAsPythonWritesThem) {
  EXPECT_EQ(
      Render("{{ true }} {{ none }} {{ 1.0 }} {{ ['a', 1, {'k': \"it's\"}] }} {{ 1e20 }}").value(),
      "True None 1.0 ['a', 1, {'k': \"it's\"}] 1e+20");
}

TEST(ChatTemplateTest, ToolsAndToolCallsReachTheTemplate) {
  ChatInput input = Hello();
  input.messages.push_back(
      {.role = "assistant",
       .tool_calls_json = R"([{"function": {"name": "f", "arguments": {}}}])"});
  input.tools_json = R"([{"type": "function", "function": {"name": "f"}}])";
  EXPECT_EQ(Render("{{ tools[0].function.name }}|{% for m in messages if m.tool_calls %}"
                   "{{ m.tool_calls[0].function | tojson }}{% endfor %}",
                   input)
                .value(),
            R"(f|{"name": "f", "arguments": {}})");
  EXPECT_EQ(Render("{{ tools is none }}").value(), "True");
}

TEST(ChatTemplateTest, LoopControlsAndGenerationBlocksWork) {
  EXPECT_EQ(Render("{% for i in range(9) %}{% if i == 1 %}{% continue %}{% endif %}"
                   "{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}")
                .value(),
            "02");
  EXPECT_EQ(Render("a {%- generation %} b {% endgeneration -%} c").value(), "a b c");
}

TEST(ChatTemplateTest, DateIsTheCallersInLocalTime) {
  setenv("TZ", "UTC", 1);
  tzset();
  ChatInput input;
  input.now = absl::FromUnixSeconds(1732147200);
  EXPECT_EQ(Render("{{ strftime_now('%d %b %Y') }}", input).value(), "21 Nov 2024");
}

TEST(ChatTemplateTest, EndlessWorkEndsWithAnError) {
  const auto text = Render(
      "{% for a in range(90000) %}{% for b in range(90000) %}{% if a == b %}{% endif %}"
      "{% endfor %}{% endfor %}");
  EXPECT_EQ(text.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(text.status().message()), HasSubstr("steps"));
}

TEST(ChatTemplateTest, EndlessOutputEndsWithAnError) {
  const auto text = Render("{% for a in range(1000) %}{{ 'x' * 1000000 }}{% endfor %}");
  EXPECT_EQ(text.status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(ChatTemplateTest, CountOfTheEmptyStringEnds) {
  EXPECT_EQ(Render("{{ 'abc'.count('') }}").value(), "4");
}

// What the engine cannot do is an error, never another text.
TEST(ChatTemplateTest, PercentFormattingIsRefused) {
  EXPECT_EQ(Render("{{ '%s' % 'y' }}").status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(ChatTemplateTest, BadInputNamesTheField) {
  ChatInput input = Hello();
  input.messages[0].content = "\xff";
  EXPECT_THAT(std::string(Render("x", input).status().message()),
              HasSubstr("messages[0].content: not valid UTF-8 at byte 0"));
  input = Hello();
  input.tools_json = "{}";
  EXPECT_THAT(std::string(Render("x", input).status().message()),
              HasSubstr("tools_json: not a JSON array"));
  input.tools_json = std::string(1 << 20, '[');
  EXPECT_THAT(std::string(Render("x", input).status().message()), HasSubstr("nested deeper"));
  input = Hello();
  input.arguments_json = "[1";
  EXPECT_THAT(std::string(Render("x", input).status().message()),
              HasSubstr("template_arguments_json: not a JSON object"));
}

TEST(ChatTemplateTest, DeeplyNestedSourceIsAnErrorNotACrash) {
  const auto text = Render(absl::StrCat("{{ ", std::string(100000, '('), "1"));
  EXPECT_EQ(text.status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace mneme::text
