#include "common/text/chat_template.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status/annotate.h"
#include "common/status/status_macros.h"
#include "common/text/utf8.h"

namespace mneme::text {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kMaxPromptBytes = size_t{64} << 20;

// The engine's own limit; deeper values would exhaust the stack of whoever writes them out.
constexpr int kMaxJsonDepth = 100;

int JsonDepth(absl::string_view text) {
  int depth = 0;
  int deepest = 0;
  bool in_string = false;
  for (size_t index = 0; index < text.size(); ++index) {
    const char c = text[index];
    if (in_string) {
      if (c == '\\') ++index;
      if (c == '"') in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '[' || c == '{') {
      deepest = std::max(deepest, ++depth);
    } else if (c == ']' || c == '}') {
      --depth;
    }
  }
  return deepest;
}

// Parses without exceptions; the order of keys is kept, since templates print it.
absl::StatusOr<Json> ParseJson(absl::string_view text, absl::string_view field,
                               Json::value_t expected, absl::string_view expected_name) {
  if (JsonDepth(text) > kMaxJsonDepth) {
    return status::InvalidField(field, absl::StrCat("nested deeper than ", kMaxJsonDepth));
  }
  Json json = Json::parse(text.begin(), text.end(), /*cb=*/nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded() || json.type() != expected) {
    return status::InvalidField(field, absl::StrCat("not a JSON ", expected_name));
  }
  return json;
}

absl::Status CheckUtf8(absl::string_view text, absl::string_view field) {
  const size_t offset = FindInvalidUtf8(text);
  if (offset == absl::string_view::npos) return absl::OkStatus();
  return status::InvalidField(field, absl::StrCat("not valid UTF-8 at byte ", offset));
}

absl::StatusOr<Json> ToJson(const ChatMessage& message, size_t index) {
  const std::string field = absl::StrCat("messages[", index, "]");
  Json json = {{"role", message.role}, {"content", message.content}};
  RETURN_IF_ERROR(CheckUtf8(message.role, field + ".role"));
  RETURN_IF_ERROR(CheckUtf8(message.content, field + ".content"));
  if (!message.name.empty()) {
    RETURN_IF_ERROR(CheckUtf8(message.name, field + ".name"));
    json["name"] = message.name;
  }
  if (!message.tool_call_id.empty()) {
    RETURN_IF_ERROR(CheckUtf8(message.tool_call_id, field + ".tool_call_id"));
    json["tool_call_id"] = message.tool_call_id;
  }
  if (!message.tool_calls_json.empty()) {
    ASSIGN_OR_RETURN(json["tool_calls"], ParseJson(message.tool_calls_json, field + ".tool_calls",
                                                   Json::value_t::array, "array"));
  }
  return json;
}

}  // namespace

absl::StatusOr<ChatTemplate> ChatTemplate::Create(absl::string_view source,
                                                  std::vector<NamedToken> named_tokens) {
  ASSIGN_OR_RETURN(ffi::CrateTemplate crate, ffi::CrateTemplate::Create(source));
  return ChatTemplate(std::string(source), std::move(named_tokens), std::move(crate));
}

absl::StatusOr<std::string> ChatTemplate::Render(const ChatInput& input) const {
  Json context = Json::object();
  for (const NamedToken& named : named_tokens_) context[named.name] = named.token;
  if (!input.arguments_json.empty()) {
    ASSIGN_OR_RETURN(Json arguments, ParseJson(input.arguments_json, "template_arguments_json",
                                               Json::value_t::object, "object"));
    for (auto& [name, value] : arguments.items()) context[name] = std::move(value);
  }
  Json messages = Json::array();
  for (size_t index = 0; index < input.messages.size(); ++index) {
    ASSIGN_OR_RETURN(Json message, ToJson(input.messages[index], index));
    messages.push_back(std::move(message));
  }
  context["messages"] = std::move(messages);
  // transformers passes None, not nothing, for what was not given.
  context["tools"] = nullptr;
  if (!context.contains("documents")) context["documents"] = nullptr;
  if (!input.tools_json.empty()) {
    ASSIGN_OR_RETURN(context["tools"],
                     ParseJson(input.tools_json, "tools_json", Json::value_t::array, "array"));
  }
  context["add_generation_prompt"] = input.add_generation_prompt;
  const std::string context_json =
      context.dump(-1, ' ', /*ensure_ascii=*/false, Json::error_handler_t::replace);
  return crate_.Render(context_json, absl::ToUnixSeconds(input.now), kMaxPromptBytes);
}

}  // namespace mneme::text
