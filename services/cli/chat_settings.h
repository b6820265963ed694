// What a chat is to be like: model, session, memory policy, sampling.
#pragma once

#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "mneme/gateway/v1/chat.pb.h"
#include "services/cli/arguments.h"
#include "services/cli/policy_text.h"

namespace mneme::cli {

struct ChatSettings {
  std::string model;    // "": the session's or the server's default
  std::string session;  // "": without one
  std::string system;
  std::string policy;  // as policy_text.h reads it; "": the server's choice
  // The API's own default is the model's plain distribution, from which small models stray.
  std::optional<double> temperature = 0.3, top_p = 0.9, min_p = 0.05, repetition_penalty = 1.1;
  std::optional<int> top_k, max_tokens;
  std::optional<uint64_t> seed;
};

// Adds the options that stand for the settings; these must outlive the parsing.
void AddChatOptions(Arguments& arguments, ChatSettings* settings);

// Returns the request without its messages. INVALID_ARGUMENT: a malformed policy.
absl::StatusOr<gateway::v1::ChatRequest> RequestFor(const ChatSettings& settings);

// Returns the receipt as lines for a person.
std::string ReceiptText(const inference::v1::MemoryReceipt& receipt);

// "1.5 MiB"
std::string BytesText(int64_t bytes);

}  // namespace mneme::cli
