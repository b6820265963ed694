// Conversations to prompt texts, token ids and training labels, in the layouts that published
// Activation Beacon models were trained with (arXiv 2401.03462 and its implementation; the layouts
// are those of the base models).
//
//   ASSIGN_OR_RETURN(const TemplateName name, ParseTemplateName("qwen"));
//   ASSIGN_OR_RETURN(const EncodedConversation encoded,
//                    EncodeConversation(name, conversation, encoder, /*with_labels=*/true));
//
// These are not the templates that models carry (common/text/chat_template.h): training and
// published scores depend on these layouts to the letter.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/dataset/conversation.h"
#include "common/dataset/text_encoder.h"

namespace mneme::dataset {

enum class TemplateName {
  kHf,       // the tokenizer's own; no labels
  kNo,       // the texts as they are; at most one exchange and no system message
  kMistral,  // [INST] U [/INST] A</s>
  kLlama2,   // [INST] <<SYS>>..<</SYS>> U [/INST] A </s><s>
  kLlama3,   // <|start_header_id|>role<|end_header_id|> .. <|eot_id|>
  kQwen,     // <|im_start|>role .. <|im_end|>, with a default system message
};

// INVALID_ARGUMENT: not "hf", "no", "mistral", "llama-2", "llama-3" or "qwen".
absl::StatusOr<TemplateName> ParseTemplateName(absl::string_view name);

// Returns the text, without bos where the tokenizer adds it. A first turn that is the assistant's
// is left out. INVALID_ARGUMENT: no user's turn, two turns of one role in a row, a generation
// prompt after an assistant's turn; with kNo also a system message or a second exchange.
absl::StatusOr<std::string> RenderConversation(TemplateName name, const Conversation& conversation,
                                               const TextEncoder& encoder);

struct EncodedConversation {
  std::string text;
  std::vector<int32_t> input_ids;  // [T]
  // [T], not shifted; kIgnoredLabel but for answers and what ends them. Empty unless asked for.
  std::vector<int32_t> labels;
};

// The same, tokenised. Labels are counted as for the models that the layouts come from: with bos,
// but none with kQwen. Also INVALID_ARGUMENT: labels with kHf, for which no label rule exists.
absl::StatusOr<EncodedConversation> EncodeConversation(TemplateName name,
                                                       const Conversation& conversation,
                                                       const TextEncoder& encoder,
                                                       bool with_labels);

}  // namespace mneme::dataset
