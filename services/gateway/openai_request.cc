#include "services/gateway/openai_request.h"

#include <limits>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/status/annotate.h"
#include "common/status/status_macros.h"
#include "services/gateway/json_fields.h"
#include "services/gateway/memory_policy_json.h"
#include "services/gateway/request_checks.h"

namespace mneme::gateway {
namespace {

namespace iv1 = inference::v1;

constexpr int64_t kMaxInt32 = std::numeric_limits<int32_t>::max();
constexpr int32_t kDefaultCompletionTokens = 16;

void ReadStop(JsonFields& fields, iv1::Sampling* sampling) {
  const Json* stop = fields.Any("stop");
  if (stop == nullptr) return;
  if (stop->is_string()) {
    sampling->add_stop(stop->get<std::string>());
    return;
  }
  if (!stop->is_array()) return fields.Fail("stop", "must be a string or a list of strings");
  for (const Json& each : *stop) {
    if (!each.is_string()) return fields.Fail("stop", "must be a string or a list of strings");
    sampling->add_stop(each.get<std::string>());
  }
}

void ReadLogitBias(JsonFields& fields, iv1::Sampling* sampling) {
  const Json* biases = fields.Object("logit_bias");
  if (biases == nullptr) return;
  for (const auto& [key, value] : biases->items()) {
    int32_t id = 0;
    if (!absl::SimpleAtoi(key, &id)) {
      return fields.Fail("logit_bias", "must have token ids as keys");
    }
    if (!value.is_number()) return fields.Fail("logit_bias", "must have numbers as values");
    (*sampling->mutable_logit_bias())[id] = value.get<float>();
  }
}

void ReadReply(JsonFields& fields, ReplyOptions* reply) {
  reply->stream = fields.Bool("stream").value_or(false);
  const Json* options = fields.Object("stream_options");
  if (options == nullptr) return;
  if (!reply->stream) return fields.Fail("stream_options", "must only be given with stream");
  JsonFields inner(*options, "stream_options.");
  reply->include_usage = inner.Bool("include_usage").value_or(false);
  if (!inner.status().ok()) fields.Fail("stream_options.include_usage", "must be true or false");
}

// A message's content: a string, or a list of parts of which only text is understood.
absl::Status ReadContent(const Json& message, const std::string& path, std::string* content) {
  const auto found = message.find("content");
  if (found == message.end() || found->is_null()) return absl::OkStatus();
  if (found->is_string()) {
    *content = found->get<std::string>();
    return absl::OkStatus();
  }
  if (!found->is_array()) {
    return status::InvalidField(path + "content", "must be a string or a list of parts");
  }
  for (size_t i = 0; i < found->size(); ++i) {
    const Json& part = (*found)[i];
    const std::string part_path = absl::StrCat(path, "content[", i, "]");
    if (!part.is_object()) return status::InvalidField(part_path, "must be an object");
    JsonFields fields(part, part_path + ".");
    const std::string type = fields.String("type").value_or("");
    RETURN_IF_ERROR(fields.status());
    if (type != "text") {
      return status::InvalidField(
          part_path + ".type",
          absl::StrCat("must be \"text\": the model reads no other parts, as ", type));
    }
    const auto text = fields.String("text");
    RETURN_IF_ERROR(fields.status());
    if (!text) return status::InvalidField(part_path + ".text", "must be a string");
    *content += *text;
  }
  return absl::OkStatus();
}

absl::Status ReadMessage(const Json& json, const std::string& path, iv1::Message* message) {
  if (!json.is_object()) return status::InvalidField(path, "must be an object");
  JsonFields fields(json, path + ".");
  const auto role = fields.String("role");
  if (!role) fields.Fail("role", "must be a string");
  message->set_name(fields.String("name").value_or(""));
  message->set_tool_call_id(fields.String("tool_call_id").value_or(""));
  const Json* calls = fields.Array("tool_calls");
  RETURN_IF_ERROR(fields.status());
  message->set_role(*role);
  if (calls != nullptr && !calls->empty()) message->set_tool_calls_json(calls->dump());
  RETURN_IF_ERROR(ReadContent(json, path + ".", message->mutable_content()));
  if (!fields.Has("content") && message->tool_calls_json().empty()) {
    return status::InvalidField(path + ".content", "must be given");
  }
  return absl::OkStatus();
}

absl::Status RefuseUnsupported(JsonFields& fields) {
  if (const Json* format = fields.Object("response_format")) {
    JsonFields inner(*format, "response_format.");
    const std::string type = inner.String("type").value_or("text");
    RETURN_IF_ERROR(inner.status());
    if (type != "text") {
      return status::InvalidField("response_format.type",
                                  "must be \"text\": this server makes no other");
    }
  }
  if (const Json* modalities = fields.Array("modalities")) {
    for (const Json& each : *modalities) {
      if (each != "text") {
        return status::InvalidField("modalities", "must be [\"text\"]: this server makes no other");
      }
    }
  }
  if (fields.Has("audio")) return status::InvalidField("audio", "must not be given: not supported");
  if (fields.Has("functions")) {
    return status::InvalidField("functions", "must not be given: use tools");
  }
  return absl::OkStatus();
}

absl::Status ReadPrompt(const Json& prompt, CompletionRequest* request) {
  const absl::Status wrong = status::InvalidField(
      "prompt",
      "must be a string, a list of strings, a list of token ids, or a list of such lists");
  const auto read_ids = [](const Json& list, std::vector<int32_t>* ids) {
    for (const Json& id : list) {
      if (!id.is_number_integer() || id.get<int64_t>() < 0 || id.get<int64_t>() > kMaxInt32) {
        return false;
      }
      ids->push_back(id.get<int32_t>());
    }
    return !ids->empty();
  };
  if (prompt.is_string()) {
    request->prompts.push_back({prompt.get<std::string>(), {}});
    return absl::OkStatus();
  }
  if (!prompt.is_array() || prompt.empty()) return wrong;
  if (prompt.front().is_number()) {
    CompletionRequest::Prompt one;
    if (!read_ids(prompt, &one.token_ids)) return wrong;
    request->prompts.push_back(std::move(one));
    return absl::OkStatus();
  }
  for (const Json& each : prompt) {
    CompletionRequest::Prompt one;
    if (each.is_string()) {
      one.text = each.get<std::string>();
    } else if (!each.is_array() || !read_ids(each, &one.token_ids)) {
      return wrong;
    }
    request->prompts.push_back(std::move(one));
  }
  return absl::OkStatus();
}

}  // namespace

void ReadSampling(JsonFields& fields, iv1::Sampling* sampling) {
  if (const auto value = fields.Number("temperature")) {
    sampling->set_temperature(static_cast<float>(*value));
  }
  if (const auto value = fields.Integer("top_k", -1, kMaxInt32); value && *value > 0) {
    sampling->set_top_k(static_cast<int32_t>(*value));
  }
  if (const auto value = fields.Number("top_p")) sampling->set_top_p(static_cast<float>(*value));
  if (const auto value = fields.Number("min_p")) sampling->set_min_p(static_cast<float>(*value));
  if (const auto value = fields.Number("presence_penalty")) {
    sampling->set_presence_penalty(static_cast<float>(*value));
  }
  if (const auto value = fields.Number("frequency_penalty")) {
    sampling->set_frequency_penalty(static_cast<float>(*value));
  }
  if (const auto value = fields.Number("repetition_penalty")) {
    sampling->set_repetition_penalty(static_cast<float>(*value));
  }
  ReadLogitBias(fields, sampling);
  if (const auto value = fields.Seed("seed")) sampling->set_seed(*value);
  ReadStop(fields, sampling);
  if (const Json* ids = fields.Array("stop_token_ids")) {
    for (const Json& id : *ids) {
      if (!id.is_number_integer() || id.get<int64_t>() < 0 || id.get<int64_t>() > kMaxInt32) {
        fields.Fail("stop_token_ids", "must be a list of token ids");
        break;
      }
      sampling->add_stop_token_ids(id.get<int32_t>());
    }
  }
  if (const auto value = fields.Integer("min_tokens", 0, kMaxInt32)) {
    sampling->set_min_tokens(static_cast<int32_t>(*value));
  }
  sampling->set_ignore_eos(fields.Bool("ignore_eos").value_or(false));
  if (const auto value = fields.Integer("n", 1, kMaxAnswers)) {
    sampling->set_n(static_cast<int32_t>(*value));
  }
}

absl::StatusOr<OpenAiChat> ParseChat(absl::string_view body) {
  ASSIGN_OR_RETURN(const Json json, ParseObject(body));
  OpenAiChat chat;
  JsonFields fields(json);
  v1::ChatRequest& request = chat.request;
  iv1::Sampling& sampling = *request.mutable_sampling();
  request.set_model(fields.String("model").value_or(""));
  request.set_session_id(fields.String("session_id").value_or(""));
  request.set_request_id(fields.String("request_id").value_or(""));
  if (const auto resumable = fields.Bool("resumable")) request.set_resumable(*resumable);
  if (const auto version = fields.Integer("parent_version", 0, int64_t{1} << 53)) {
    request.set_parent_version(static_cast<uint64_t>(*version));
  }
  ReadSampling(fields, &sampling);
  // The newer name wins where both are given.
  for (const char* name : {"max_tokens", "max_completion_tokens"}) {
    if (const auto value = fields.Integer(name, 1, kMaxInt32)) {
      sampling.set_max_tokens(static_cast<int32_t>(*value));
    }
  }
  chat.reply.logprobs = fields.Bool("logprobs").value_or(false);
  const auto top_logprobs = fields.Integer("top_logprobs", 0, kMaxLogprobs);
  if (top_logprobs && *top_logprobs > 0 && !chat.reply.logprobs) {
    fields.Fail("top_logprobs", "must only be given with logprobs");
  }
  if (chat.reply.logprobs) sampling.set_logprobs(static_cast<int32_t>(top_logprobs.value_or(0)));
  ReadMemoryPolicy(fields, request.mutable_memory_policy());
  ReadReply(fields, &chat.reply);
  if (const Json* tools = fields.Array("tools"); tools != nullptr && !tools->empty()) {
    const Json* choice = fields.Any("tool_choice");
    if (choice == nullptr || *choice != "none") request.set_tools_json(tools->dump());
  }
  if (const Json* arguments = fields.Object("chat_template_kwargs")) {
    request.set_template_arguments_json(arguments->dump());
  }
  const Json* messages = fields.Array("messages");
  if (messages == nullptr) fields.Fail("messages", "must be given");
  RETURN_IF_ERROR(fields.status());
  RETURN_IF_ERROR(RefuseUnsupported(fields));
  for (size_t i = 0; i < messages->size(); ++i) {
    RETURN_IF_ERROR(
        ReadMessage((*messages)[i], absl::StrCat("messages[", i, "]"), request.add_messages()));
  }
  return chat;
}

absl::StatusOr<OpenAiCompletion> ParseCompletion(absl::string_view body) {
  ASSIGN_OR_RETURN(const Json json, ParseObject(body));
  OpenAiCompletion completion;
  CompletionRequest& request = completion.request;
  iv1::Sampling& sampling = request.sampling;
  JsonFields fields(json);
  request.model = fields.String("model").value_or("");
  ReadSampling(fields, &sampling);
  request.echo = fields.Bool("echo").value_or(false);
  const int64_t max_tokens =
      fields.Integer("max_tokens", 0, kMaxInt32).value_or(kDefaultCompletionTokens);
  if (max_tokens == 0 && !request.echo)
    fields.Fail("max_tokens", "must be at least 1 without echo");
  request.echo_only = max_tokens == 0;
  sampling.set_max_tokens(static_cast<int32_t>(std::max<int64_t>(1, max_tokens)));
  if (const auto logprobs = fields.Integer("logprobs", 0, kMaxLogprobs)) {
    completion.reply.logprobs = true;
    sampling.set_logprobs(static_cast<int32_t>(*logprobs));
    if (request.echo) sampling.set_prompt_logprobs(static_cast<int32_t>(*logprobs));
  }
  ReadMemoryPolicy(fields, &request.memory_policy);
  ReadReply(fields, &completion.reply);
  if (const auto best_of = fields.Integer("best_of", 1, kMaxInt32);
      best_of && *best_of != std::max(1, sampling.n())) {
    fields.Fail("best_of", "must be the same as n: answers are not ranked");
  }
  if (const auto suffix = fields.String("suffix"); suffix && !suffix->empty()) {
    fields.Fail("suffix", "must not be given: the model only continues text");
  }
  if (fields.Has("session_id")) {
    fields.Fail("session_id", "must not be given: sessions are for chat completions");
  }
  const Json* prompt = fields.Any("prompt");
  if (prompt == nullptr) fields.Fail("prompt", "must be given");
  RETURN_IF_ERROR(fields.status());
  RETURN_IF_ERROR(ReadPrompt(*prompt, &request));
  return completion;
}

absl::Status ParseTokenize(absl::string_view body, v1::TokenizeRequest* request) {
  ASSIGN_OR_RETURN(const Json json, ParseObject(body));
  JsonFields fields(json);
  request->set_model(fields.String("model").value_or(""));
  const std::optional<std::string> prompt = fields.String("prompt");
  if (!prompt.has_value()) fields.Fail("prompt", "must be given, as a text");
  request->set_text(prompt.value_or(""));
  request->set_add_special_tokens(fields.Bool("add_special_tokens").value_or(true));
  return fields.status();
}

absl::Status ParseEstimate(absl::string_view body, v1::EstimateRequest* request) {
  ASSIGN_OR_RETURN(const Json json, ParseObject(body));
  JsonFields fields(json);
  request->set_model(fields.String("model").value_or(""));
  ReadMemoryPolicy(fields, request->mutable_memory_policy());
  const std::optional<int64_t> tokens = fields.Integer("tokens", 1, int64_t{1} << 32);
  if (!tokens.has_value()) fields.Fail("tokens", "must be given: the sequence's length in tokens");
  request->set_tokens(tokens.value_or(0));
  return fields.status();
}

}  // namespace mneme::gateway
