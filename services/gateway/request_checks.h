// What a request may ask for. Every refusal is INVALID_ARGUMENT and names the field.
#pragma once

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "google/protobuf/repeated_field.h"
#include "mneme/inference/v1/inference.pb.h"

namespace mneme::gateway {

inline constexpr int kMaxAnswers = 16;
inline constexpr int kMaxLogprobs = 20;

// `vocab_size` bounds the ids of logit_bias and stop_token_ids.
absl::Status CheckSampling(const inference::v1::Sampling& sampling, int32_t vocab_size);

absl::Status CheckMemoryPolicy(const inference::v1::MemoryPolicy& policy);

// Roles are system, user, assistant, tool, developer, function, and those that the model's own chat
// template names.
absl::Status CheckMessages(
    const google::protobuf::RepeatedPtrField<inference::v1::Message>& messages, int max_messages,
    absl::string_view chat_template);

}  // namespace mneme::gateway
