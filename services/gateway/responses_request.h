// The bodies of OpenAI's /v1/responses and /v1/conversations as the core's requests.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "mneme/gateway/v1/chat.pb.h"
#include "mneme/inference/v1/inference.pb.h"
#include "services/gateway/json_fields.h"

namespace mneme::gateway {

struct ResponsesRequest {
  v1::ChatRequest chat;  // without a session and its instructions
  std::string instructions;
  std::string previous_response_id;
  std::string conversation;  // a session's id
  bool store = true;
  bool stream = false;
  // Fields that the response repeats as they came.
  Json echo = Json::object();
};

// POST /v1/responses. INVALID_ARGUMENT names what is wrong, or asked for and not to be had here.
absl::StatusOr<ResponsesRequest> ParseResponses(absl::string_view body);

// Reads the items of a list: messages, tool calls and their outputs. `path` names the list.
absl::Status ReadItems(const Json& items, absl::string_view path,
                       google::protobuf::RepeatedPtrField<inference::v1::Message>* messages);

// Reads a conversation's `metadata` as the text that it is kept as: the title of the session.
absl::StatusOr<std::string> ReadMetadata(JsonFields& fields);
// And back.
Json MetadataOf(const std::string& title);

// A message as an item of a conversation.
Json ItemOf(const inference::v1::Message& message, const std::string& id);

}  // namespace mneme::gateway
