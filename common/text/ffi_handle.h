// The Rust library of ffi/ as C++ objects. Internal to common/text and its tests: use tokenizer.h
// and chat_template.h.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

struct mneme_text_tokenizer;
struct mneme_text_template;

namespace mneme::text::ffi {

// A tokenizer.json in the tokenizers crate. Immutable, so thread-safe.
class CrateTokenizer {
 public:
  // INVALID_ARGUMENT: not a tokenizer.json that the crate can use.
  static absl::StatusOr<CrateTokenizer> Create(absl::string_view tokenizer_json);

  // INVALID_ARGUMENT: not UTF-8. INTERNAL: the crate panicked on this text.
  absl::StatusOr<std::vector<int32_t>> Encode(absl::string_view text, bool add_special_tokens,
                                              bool plain_text) const;
  // The crate's own decoding, the reference for TokenTable::Decode. Drops unknown ids.
  absl::StatusOr<std::string> Decode(absl::Span<const int32_t> ids, bool skip_special_tokens) const;

  struct Description {
    std::vector<std::string> tokens;  // [V] as in the vocabulary; "" for an id that does not exist
    std::vector<int32_t> special_ids;
    std::string decoder_json;  // "null" where the file names none
  };
  absl::StatusOr<Description> Describe() const;

 private:
  struct Destroy {
    void operator()(mneme_text_tokenizer* tokenizer) const;
  };
  explicit CrateTokenizer(mneme_text_tokenizer* tokenizer) : tokenizer_(tokenizer) {}
  std::unique_ptr<mneme_text_tokenizer, Destroy> tokenizer_;
};

// A compiled Jinja template. Immutable, so thread-safe.
class CrateTemplate {
 public:
  // INVALID_ARGUMENT: a syntax error, with its line.
  static absl::StatusOr<CrateTemplate> Create(absl::string_view source);
  // INVALID_ARGUMENT: the template raised (its own message) or failed.
  absl::StatusOr<std::string> Render(absl::string_view context_json, int64_t now_unix_seconds,
                                     size_t max_output_bytes) const;

 private:
  struct Destroy {
    void operator()(mneme_text_template* chat_template) const;
  };
  explicit CrateTemplate(mneme_text_template* chat_template) : template_(chat_template) {}
  std::unique_ptr<mneme_text_template, Destroy> template_;
};

}  // namespace mneme::text::ffi
