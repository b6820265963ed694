// OpenAI-style request bodies as the core's requests. Fields that are not known are ignored; a
// known one of a wrong type, and one that asks for what this server cannot do, is refused by name.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "mneme/gateway/v1/chat.pb.h"
#include "mneme/gateway/v1/model.pb.h"
#include "services/gateway/chat_core.h"
#include "services/gateway/json_fields.h"

namespace mneme::gateway {

// How the client wants the reply.
struct ReplyOptions {
  bool stream = false;
  bool include_usage = false;  // a last chunk with the usage
  bool logprobs = false;
};

struct OpenAiChat {
  v1::ChatRequest request;
  ReplyOptions reply;
};

struct OpenAiCompletion {
  CompletionRequest request;
  ReplyOptions reply;
};

// Reads what all kinds of requests say of sampling.
void ReadSampling(JsonFields& fields, inference::v1::Sampling* sampling);

// POST /v1/chat/completions.
absl::StatusOr<OpenAiChat> ParseChat(absl::string_view body);

// POST /v1/completions.
absl::StatusOr<OpenAiCompletion> ParseCompletion(absl::string_view body);

// POST /tokenize, as vLLM has it: {"prompt": TEXT, "model", "add_special_tokens"}.
absl::Status ParseTokenize(absl::string_view body, v1::TokenizeRequest* request);

// POST /v1/memory/estimate: {"tokens": N, "model", "memory_policy"}.
absl::Status ParseEstimate(absl::string_view body, v1::EstimateRequest* request);

}  // namespace mneme::gateway
