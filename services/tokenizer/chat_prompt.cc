#include "services/tokenizer/chat_prompt.h"

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/status/annotate.h"
#include "common/status/status_macros.h"

namespace mneme::tokenizer {
namespace {

absl::StatusOr<std::string> Render(const text::Tokenizer& tokenizer,
                                   absl::string_view chat_template, const text::ChatInput& input) {
  if (!chat_template.empty()) {
    ASSIGN_OR_RETURN(const text::ChatTemplate given,
                     text::ChatTemplate::Create(chat_template, tokenizer.named_tokens()));
    return given.Render(input);
  }
  if (tokenizer.chat_template() == nullptr) {
    return absl::InvalidArgumentError("the model has no chat template: give one, or send text");
  }
  return tokenizer.chat_template()->Render(input);
}

}  // namespace

absl::StatusOr<ChatPrompt> EncodeChatPrompt(const text::Tokenizer& tokenizer,
                                            absl::string_view chat_template,
                                            const text::ChatInput& input,
                                            absl::Span<const int32_t> prefix_ids,
                                            size_t max_prompt_bytes) {
  if (input.messages.empty()) return status::InvalidField("messages", "there are none");
  ChatPrompt prompt;
  ASSIGN_OR_RETURN(prompt.text, Render(tokenizer, chat_template, input));
  if (prompt.text.size() > max_prompt_bytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "rendered prompt is over the limit of ", max_prompt_bytes, " bytes: ", prompt.text.size()));
  }
  if (!prefix_ids.empty()) {
    ASSIGN_OR_RETURN(const std::string prefix,
                     tokenizer.Decode(prefix_ids, /*skip_special_tokens=*/false));
    if (!prefix.empty() && absl::StartsWith(prompt.text, prefix)) {
      ASSIGN_OR_RETURN(prompt.token_ids, tokenizer.EncodeContinuation(
                                             absl::string_view(prompt.text).substr(prefix.size())));
      prompt.prefix_matched = true;
      return prompt;
    }
  }
  ASSIGN_OR_RETURN(prompt.token_ids, tokenizer.Encode(prompt.text, {}));
  // Tokenizers that put a space after every special token never decode to the prompt's text.
  if (!prefix_ids.empty() && prefix_ids.size() <= prompt.token_ids.size() &&
      std::equal(prefix_ids.begin(), prefix_ids.end(), prompt.token_ids.begin())) {
    prompt.token_ids.erase(
        prompt.token_ids.begin(),
        prompt.token_ids.begin() + static_cast<std::ptrdiff_t>(prefix_ids.size()));
    prompt.prefix_matched = true;
  }
  return prompt;
}

}  // namespace mneme::tokenizer
