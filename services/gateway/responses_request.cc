#include "services/gateway/responses_request.h"

#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status/annotate.h"
#include "common/status/status_macros.h"
#include "services/gateway/memory_policy_json.h"
#include "services/gateway/openai_request.h"

namespace mneme::gateway {
namespace {

namespace iv1 = inference::v1;

constexpr size_t kMaxMetadataEntries = 16;
// What a session's title holds.
constexpr size_t kMaxMetadataBytes = 1024;

// A message's content: a string, or a list of text parts.
absl::Status ReadItemContent(const Json& item, const std::string& path, std::string* content) {
  const auto found = item.find("content");
  if (found == item.end()) return status::InvalidField(path + ".content", "must be given");
  if (found->is_string()) {
    *content = found->get<std::string>();
    return absl::OkStatus();
  }
  if (!found->is_array()) {
    return status::InvalidField(path + ".content", "must be a string or a list of parts");
  }
  for (size_t i = 0; i < found->size(); ++i) {
    const Json& part = (*found)[i];
    const std::string part_path = absl::StrCat(path, ".content[", i, "]");
    if (!part.is_object()) return status::InvalidField(part_path, "must be an object");
    JsonFields fields(part, part_path + ".");
    const std::string type = fields.String("type").value_or("");
    const auto text = fields.String("text");
    RETURN_IF_ERROR(fields.status());
    if (type != "input_text" && type != "output_text" && type != "text") {
      return status::InvalidField(
          part_path + ".type",
          absl::StrCat("must be a text: the model reads no other parts, as ", type));
    }
    if (!text) return status::InvalidField(part_path + ".text", "must be given");
    *content += *text;
  }
  return absl::OkStatus();
}

absl::Status ReadItem(const Json& item, const std::string& path, iv1::Message* message) {
  if (!item.is_object()) return status::InvalidField(path, "must be an object");
  JsonFields fields(item, path + ".");
  const std::string type = fields.String("type").value_or("message");
  RETURN_IF_ERROR(fields.status());
  if (type == "message") {
    const auto role = fields.String("role");
    if (!role) fields.Fail("role", "must be given");
    RETURN_IF_ERROR(fields.status());
    message->set_role(*role);
    return ReadItemContent(item, path, message->mutable_content());
  }
  if (type == "function_call_output") {
    message->set_role("tool");
    message->set_tool_call_id(fields.String("call_id").value_or(""));
    message->set_content(fields.String("output").value_or(""));
    return fields.status();
  }
  if (type == "function_call") {
    message->set_role("assistant");
    const Json call = {{"id", fields.String("call_id").value_or("")},
                       {"type", "function"},
                       {"function",
                        {{"name", fields.String("name").value_or("")},
                         {"arguments", fields.String("arguments").value_or("")}}}};
    message->set_tool_calls_json(Json::array({call}).dump());
    return fields.status();
  }
  return status::InvalidField(path + ".type",
                              "must be message, function_call or function_call_output");
}

// Flat descriptions of functions, as chat templates know them: nested.
absl::Status ReadTools(const Json& tools, std::string* tools_json) {
  Json nested = Json::array();
  for (size_t i = 0; i < tools.size(); ++i) {
    const std::string path = absl::StrCat("tools[", i, "]");
    if (!tools[i].is_object()) return status::InvalidField(path, "must be an object");
    if (tools[i].value("type", Json()) != "function") {
      return status::InvalidField(path + ".type",
                                  "must be \"function\": this server runs no tools of its own");
    }
    Json function = tools[i];
    function.erase("type");
    nested.push_back({{"type", "function"}, {"function", std::move(function)}});
  }
  if (!nested.empty()) *tools_json = nested.dump();
  return absl::OkStatus();
}

absl::Status RefuseUnsupported(JsonFields& fields) {
  if (fields.Bool("background").value_or(false)) {
    fields.Fail("background", "must not be true: stream the response, or attach to it again");
  }
  if (const Json* text = fields.Object("text")) {
    const auto format = text->find("format");
    if (format != text->end() && format->is_object() &&
        format->value("type", Json("text")) != "text") {
      fields.Fail("text.format", "must be {\"type\": \"text\"}: answers follow no schema here");
    }
  }
  if (const auto truncation = fields.String("truncation");
      truncation && *truncation != "disabled") {
    fields.Fail("truncation", "must be \"disabled\"; choose a memory_policy instead");
  }
  if (fields.Has("prompt")) fields.Fail("prompt", "must not be given: prompts are not kept here");
  return fields.status();
}

}  // namespace

absl::Status ReadItems(const Json& items, absl::string_view path,
                       google::protobuf::RepeatedPtrField<iv1::Message>* messages) {
  for (size_t i = 0; i < items.size(); ++i) {
    RETURN_IF_ERROR(ReadItem(items[i], absl::StrCat(path, "[", i, "]"), messages->Add()));
  }
  return absl::OkStatus();
}

absl::StatusOr<ResponsesRequest> ParseResponses(absl::string_view body) {
  ASSIGN_OR_RETURN(const Json json, ParseObject(body));
  ResponsesRequest request;
  JsonFields fields(json);
  v1::ChatRequest& chat = request.chat;
  chat.set_model(fields.String("model").value_or(""));
  request.stream = fields.Bool("stream").value_or(false);
  request.store = fields.Bool("store").value_or(true);
  request.instructions = fields.String("instructions").value_or("");
  request.previous_response_id = fields.String("previous_response_id").value_or("");
  if (const Json* conversation = fields.Any("conversation")) {
    if (conversation->is_string()) {
      request.conversation = conversation->get<std::string>();
    } else if (conversation->is_object() && conversation->value("id", Json()).is_string()) {
      request.conversation = (*conversation)["id"].get<std::string>();
    } else {
      fields.Fail("conversation", "must be an id or an object with one");
    }
  }
  if (!request.conversation.empty() && !request.previous_response_id.empty()) {
    fields.Fail("previous_response_id", "must not be given together with conversation");
  }
  if (!request.conversation.empty() && !request.store) {
    fields.Fail("store", "must not be false in a conversation");
  }
  ReadSampling(fields, chat.mutable_sampling());
  if (chat.sampling().n() > 1) fields.Fail("n", "must not be over 1");
  if (const auto tokens =
          fields.Integer("max_output_tokens", 1, std::numeric_limits<int32_t>::max())) {
    chat.mutable_sampling()->set_max_tokens(static_cast<int32_t>(*tokens));
  }
  if (fields.Has("memory_policy")) ReadMemoryPolicy(fields, chat.mutable_memory_policy());
  if (const Json* arguments = fields.Object("chat_template_kwargs")) {
    chat.set_template_arguments_json(arguments->dump());
  }
  RETURN_IF_ERROR(RefuseUnsupported(fields));
  if (const Json* tools = fields.Array("tools")) {
    RETURN_IF_ERROR(ReadTools(*tools, chat.mutable_tools_json()));
  }
  const Json* input = fields.Any("input");
  if (input == nullptr) fields.Fail("input", "must be given");
  RETURN_IF_ERROR(fields.status());
  if (input->is_string()) {
    iv1::Message& message = *chat.add_messages();
    message.set_role("user");
    message.set_content(input->get<std::string>());
  } else if (input->is_array() && !input->empty()) {
    RETURN_IF_ERROR(ReadItems(*input, "input", chat.mutable_messages()));
  } else {
    return status::InvalidField("input", "must be a string or a list of items");
  }
  for (const char* name : {"temperature", "top_p", "max_output_tokens", "metadata", "tools",
                           "tool_choice", "user", "instructions", "previous_response_id"}) {
    if (const Json* value = fields.Any(name)) request.echo[name] = *value;
  }
  return request;
}

absl::StatusOr<std::string> ReadMetadata(JsonFields& fields) {
  const Json* metadata = fields.Object("metadata");
  RETURN_IF_ERROR(fields.status());
  if (metadata == nullptr || metadata->empty()) return std::string();
  for (const auto& [key, value] : metadata->items()) {
    if (!value.is_string()) return status::InvalidField("metadata", "must have strings as values");
  }
  if (metadata->size() > kMaxMetadataEntries) {
    return status::InvalidField("metadata", "must have at most 16 entries");
  }
  if (metadata->size() == 1 && metadata->contains("title")) {
    return (*metadata)["title"].get<std::string>();
  }
  std::string text = metadata->dump();
  if (text.size() > kMaxMetadataBytes) {
    return status::InvalidField("metadata", "must have at most 1024 bytes as JSON");
  }
  return text;
}

Json MetadataOf(const std::string& title) {
  if (title.empty()) return Json::object();
  Json metadata = Json::parse(title, nullptr, /*allow_exceptions=*/false);
  if (metadata.is_object()) return metadata;
  return {{"title", title}};
}

Json ItemOf(const iv1::Message& message, const std::string& id) {
  if (message.role() == "tool") {
    return {{"id", id},
            {"type", "function_call_output"},
            {"status", "completed"},
            {"call_id", message.tool_call_id()},
            {"output", message.content()}};
  }
  const bool is_answer = message.role() == "assistant";
  Json part = {{"type", is_answer ? "output_text" : "input_text"}, {"text", message.content()}};
  if (is_answer) part["annotations"] = Json::array();
  return {{"id", id},
          {"type", "message"},
          {"status", "completed"},
          {"role", message.role()},
          {"content", Json::array({std::move(part)})}};
}

}  // namespace mneme::gateway
