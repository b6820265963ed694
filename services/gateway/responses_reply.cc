#include "services/gateway/responses_reply.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "services/gateway/json_text.h"
#include "services/gateway/openai_reply.h"
#include "services/gateway/response_id.h"

namespace mneme::gateway {
namespace {

namespace iv1 = inference::v1;

std::string Dump(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::string ItemIdOf(const std::string& response_id) { return absl::StrCat("msg_", response_id); }

const char* StatusOf(iv1::FinishReason reason) {
  switch (reason) {
    case iv1::FINISH_REASON_UNSPECIFIED:
      return "in_progress";
    case iv1::FINISH_REASON_LENGTH:
      return "incomplete";
    default:
      return "completed";
  }
}

Json PartOf(const std::string& text) {
  return {{"type", "output_text"},
          {"text", text},
          {"annotations", Json::array()},
          {"logprobs", Json::array()}};
}

Json OutputItem(const ResponseState& state, bool complete) {
  return {{"id", ItemIdOf(state.id)},
          {"type", "message"},
          {"status", complete ? StatusOf(state.finish_reason) : "in_progress"},
          {"role", "assistant"},
          {"content", complete ? Json::array({PartOf(state.text)}) : Json::array()}};
}

}  // namespace

Json ResponseObject(const ResponseFrame& frame, const ResponseState& state) {
  const bool complete = state.finish_reason != iv1::FINISH_REASON_UNSPECIFIED;
  const auto echo = [&](const char* name, Json otherwise) {
    return frame.echo.value(name, std::move(otherwise));
  };
  Json object = {{"id", state.id},
                 {"object", "response"},
                 {"created_at", state.created_unix_s},
                 {"status", StatusOf(state.finish_reason)},
                 {"background", false},
                 {"error", nullptr},
                 {"incomplete_details", nullptr},
                 {"instructions", echo("instructions", nullptr)},
                 {"max_output_tokens", echo("max_output_tokens", nullptr)},
                 {"model", state.model},
                 {"output", Json::array()},
                 {"parallel_tool_calls", true},
                 {"previous_response_id", echo("previous_response_id", nullptr)},
                 {"conversation", nullptr},
                 {"store", frame.store},
                 {"temperature", echo("temperature", 1.0)},
                 {"text", {{"format", {{"type", "text"}}}}},
                 {"tool_choice", echo("tool_choice", "auto")},
                 {"tools", echo("tools", Json::array())},
                 {"top_p", echo("top_p", 1.0)},
                 {"truncation", "disabled"},
                 {"usage", nullptr},
                 {"user", echo("user", nullptr)},
                 {"metadata", echo("metadata", Json::object())}};
  if (!frame.conversation.empty()) object["conversation"] = {{"id", frame.conversation}};
  if (!complete) return object;
  if (state.finish_reason == iv1::FINISH_REASON_LENGTH) {
    object["incomplete_details"] = {{"reason", "max_output_tokens"}};
  }
  object["output"].push_back(OutputItem(state, /*complete=*/true));
  const iv1::Usage& usage = state.usage;
  object["usage"] = {{"input_tokens", usage.prompt_tokens()},
                     {"input_tokens_details", {{"cached_tokens", usage.cached_tokens()}}},
                     {"output_tokens", usage.completion_tokens()},
                     {"output_tokens_details", {{"reasoning_tokens", 0}}},
                     {"total_tokens", usage.prompt_tokens() + usage.completion_tokens()}};
  if (!state.mneme.is_null()) object["mneme"] = state.mneme;
  return object;
}

void ResponsesSink::OnStarted(const Started& started) {
  // What is not stored has a name all the same; nobody finds anything by it.
  state_.id = started.session_id.empty() || !frame_.store
                  ? absl::StrCat("resp_", started.id.substr(started.id.rfind('-') + 1))
                  : FormatResponseId({started.session_id, started.session_version});
  state_.model = started.model;
  state_.created_unix_s = started.created_unix_s;
  seed_ = started.seed;
}

void ResponsesSink::OnDelta(int, absl::string_view text, absl::Span<const iv1::TokenLogprob>) {
  state_.text.append(text.data(), text.size());
}

void ResponsesSink::OnFinish(int, iv1::FinishReason reason) { state_.finish_reason = reason; }

void ResponsesSink::OnDone(const Done& done) {
  std::string mneme;
  AppendMneme(done, receipt_, seed_, &mneme);
  state_.mneme = Json::parse(mneme, nullptr, /*allow_exceptions=*/false);
}

std::string ResponsesObject::body() const { return Dump(ResponseObject(frame_, state_)) + "\n"; }

std::string ResponsesStream::ItemId() const { return ItemIdOf(state_.id); }

void ResponsesStream::Append(absl::string_view type, Json event) {
  event["type"] = std::string(type);
  event["sequence_number"] = next_++;
  absl::StrAppend(&out_, "event: ", type, "\ndata: ", Dump(event), "\n\n");
}

void ResponsesStream::OnStarted(const Started& started) {
  ResponsesSink::OnStarted(started);
  const Json object = ResponseObject(frame_, state_);
  Append("response.created", {{"response", object}});
  Append("response.in_progress", {{"response", object}});
  Append("response.output_item.added",
         {{"output_index", 0}, {"item", OutputItem(state_, /*complete=*/false)}});
  Append("response.content_part.added",
         {{"item_id", ItemId()}, {"output_index", 0}, {"content_index", 0}, {"part", PartOf("")}});
}

void ResponsesStream::OnDelta(int index, absl::string_view text,
                              absl::Span<const iv1::TokenLogprob> tokens) {
  ResponsesSink::OnDelta(index, text, tokens);
  if (text.empty()) return;
  // There is one for every token: written by hand.
  absl::StrAppend(&out_, "event: response.output_text.delta\ndata: {\"type\":",
                  "\"response.output_text.delta\",\"sequence_number\":", next_++, ",\"item_id\":\"",
                  ItemId(), "\",\"output_index\":0,\"content_index\":0,\"logprobs\":[],\"delta\":");
  AppendJsonString(text, &out_);
  out_ += "}\n\n";
}

void ResponsesStream::OnDone(const Done& done) {
  ResponsesSink::OnDone(done);
  Json place = {{"item_id", ItemId()}, {"output_index", 0}, {"content_index", 0}};
  Json text = place;
  text["text"] = state_.text;
  text["logprobs"] = Json::array();
  Append("response.output_text.done", std::move(text));
  place["part"] = PartOf(state_.text);
  Append("response.content_part.done", std::move(place));
  Append("response.output_item.done",
         {{"output_index", 0}, {"item", OutputItem(state_, /*complete=*/true)}});
  Append(state_.finish_reason == iv1::FINISH_REASON_LENGTH ? "response.incomplete"
                                                           : "response.completed",
         {{"response", ResponseObject(frame_, state_)}});
}

bool ResponsesStream::Flush() {
  const bool ok = write_(out_);
  out_.clear();
  return ok;
}

void ResponsesStream::Fail(absl::string_view error_json) {
  const Json parsed = Json::parse(error_json.begin(), error_json.end(), nullptr, false);
  const Json error = parsed.value("error", Json::object());
  Append("error", {{"code", error.value("code", Json())},
                   {"message", error.value("message", Json())},
                   {"param", error.value("param", Json())}});
  Flush();
}

}  // namespace mneme::gateway
