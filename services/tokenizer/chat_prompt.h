// From a conversation to the ids that a model is given.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "common/text/chat_template.h"
#include "common/text/tokenizer.h"

namespace mneme::tokenizer {

// A rendered prompt and its ids.
struct ChatPrompt {
  std::vector<int32_t> token_ids;  // after the prefix where prefix_matched, else the whole prompt
  bool prefix_matched = false;
  std::string text;  // the whole prompt
};

// Renders `input` with `chat_template` ("": the model's own) and encodes it without adding special
// tokens: the template writes them. With `prefix_ids`, what the conversation's memory stands for
// already, only what follows is encoded, if the prompt begins with their text or with themselves.
// INVALID_ARGUMENT: no messages, no template, the template raised, the prompt is over
// `max_prompt_bytes`, or an id is outside the vocabulary.
absl::StatusOr<ChatPrompt> EncodeChatPrompt(const text::Tokenizer& tokenizer,
                                            absl::string_view chat_template,
                                            const text::ChatInput& input,
                                            absl::Span<const int32_t> prefix_ids,
                                            size_t max_prompt_bytes);

}  // namespace mneme::tokenizer
