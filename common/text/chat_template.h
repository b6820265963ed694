// Renders a conversation into the one text a model was trained on: the Jinja templates that models
// carry, as transformers renders them, byte for byte.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "common/text/ffi_handle.h"

namespace mneme::text {

// One message, as templates know it. Empty fields other than `role` and `content` are left out.
struct ChatMessage {
  std::string role;
  std::string content;
  std::string name;
  std::string tool_call_id;
  std::string tool_calls_json;  // an OpenAI-style JSON array
};

// What a template is given.
struct ChatInput {
  std::vector<ChatMessage> messages;
  bool add_generation_prompt = false;
  std::string tools_json;      // an OpenAI-style JSON array of tools; "" for none
  std::string arguments_json;  // a JSON object of further variables; "" for none
  absl::Time now;              // what strftime_now shows, in local time
};

// Immutable, so thread-safe.
class ChatTemplate {
 public:
  // Variables that every rendering gets: bos_token, eos_token and other named special tokens.
  struct NamedToken {
    std::string name;  // "bos_token"
    std::string token;
  };

  // INVALID_ARGUMENT: `source` is not a valid template; names the line.
  static absl::StatusOr<ChatTemplate> Create(absl::string_view source,
                                             std::vector<NamedToken> named_tokens);

  // Returns the prompt. INVALID_ARGUMENT: the template raised (the message is its own), failed, or
  // wrote over 64 MiB; a field is not UTF-8; tools or arguments are not the JSON they should be.
  absl::StatusOr<std::string> Render(const ChatInput& input) const;

  const std::string& source() const { return source_; }

 private:
  ChatTemplate(std::string source, std::vector<NamedToken> named_tokens, ffi::CrateTemplate crate)
      : source_(std::move(source)),
        named_tokens_(std::move(named_tokens)),
        crate_(std::move(crate)) {}

  std::string source_;
  std::vector<NamedToken> named_tokens_;
  ffi::CrateTemplate crate_;
};

}  // namespace mneme::text
