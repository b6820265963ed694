// Text to token ids and back, for every kind of tokenizer file that models come with.
//
//   ASSIGN_OR_RETURN(auto tokenizer, LoadTokenizer("models/qwen"));       // tokenizer_files.h
//   ASSIGN_OR_RETURN(auto ids, tokenizer->Encode("Hello", {.add_special_tokens = true}));
//   ASSIGN_OR_RETURN(std::string text, tokenizer->Decode(ids, /*skip_special_tokens=*/true));
//
// Two engines do the encoding: the `tokenizers` crate (tokenizer.json, byte-level vocabularies of
// GGUF files, tekken.json, which are brought into that form) and our SentencePiece-style byte-pair
// encoder (.model files and such vocabularies of GGUF files). Decoding is one table for all
// (token_table.h).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/optional.h"
#include "absl/types/span.h"
#include "common/text/chat_template.h"
#include "common/text/token_table.h"

namespace mneme::text {

struct EncodeOptions {
  bool add_special_tokens = false;  // BOS and so on, as the tokenizer's own post-processor does
  bool plain_text = false;          // special tokens written out in the text are not recognised
};

// What a tokenizer's file does not say itself but the files beside it, or GGUF metadata, do.
struct TokenizerSettings {
  std::string bos_token;               // text; "" for none or unknown
  std::string eos_token;               // text; "" for none or unknown
  std::vector<int32_t> eos_token_ids;  // any of them ends an answer; eos_token's is added
  std::string chat_template;           // Jinja; "" for none
  // Further variables of the template: pad_token, unk_token, ...
  std::vector<ChatTemplate::NamedToken> named_tokens;
};

// The tokenizer data of a GGUF file (keys `tokenizer.ggml.*`); an absent key leaves the default.
struct GgufVocabulary {
  std::string model;                 // "gpt2": byte-level BPE; "llama": SentencePiece-style
  std::string pre;                   // how text is split before BPE: "smollm", "qwen2", ...
  std::vector<std::string> tokens;   // [V]
  std::vector<float> scores;         // [V] or none
  std::vector<int32_t> token_types;  // [V] or none: PieceKind's numbers
  std::vector<std::string> merges;   // "left right", best first
  absl::optional<int32_t> bos_token_id;
  absl::optional<int32_t> eos_token_id;
  absl::optional<int32_t> eot_token_id;  // ends a turn
  absl::optional<bool> add_bos_token;
  absl::optional<bool> add_eos_token;
  absl::optional<bool> add_space_prefix;
  std::string chat_template;  // "" for none
};

// Immutable after loading, so thread-safe.
class Tokenizer {
 public:
  // Each: INVALID_ARGUMENT for content that is not what it should be, naming what is wrong;
  // UNIMPLEMENTED for a kind of tokenizer that is not known here.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> FromTokenizerJson(
      absl::string_view tokenizer_json, TokenizerSettings settings);
  static absl::StatusOr<std::unique_ptr<Tokenizer>> FromGguf(const GgufVocabulary& vocabulary);
  static absl::StatusOr<std::unique_ptr<Tokenizer>> FromSentencePiece(absl::string_view serialized,
                                                                      TokenizerSettings settings);
  static absl::StatusOr<std::unique_ptr<Tokenizer>> FromTekken(absl::string_view tekken_json,
                                                               TokenizerSettings settings);
  ~Tokenizer();

  // Returns ids, each in [0, V). INVALID_ARGUMENT: `text` is not UTF-8.
  absl::StatusOr<std::vector<int32_t>> Encode(absl::string_view text,
                                              const EncodeOptions& options) const;

  // Encodes text that continues other text: no space is put in front of it.
  absl::StatusOr<std::vector<int32_t>> EncodeContinuation(absl::string_view text) const;

  // INVALID_ARGUMENT: an id outside the vocabulary. Bytes that are not UTF-8 become U+FFFD.
  absl::StatusOr<std::string> Decode(absl::Span<const int32_t> ids,
                                     bool skip_special_tokens) const {
    return table_.Decode(ids, skip_special_tokens);
  }

  const TokenTable& table() const { return table_; }
  int32_t vocab_size() const { return table_.size(); }  // V, added tokens included
  const std::vector<int32_t>& bos_token_ids() const { return bos_token_ids_; }  // none or one
  const std::vector<int32_t>& eos_token_ids() const { return eos_token_ids_; }
  const std::string& bos_token() const { return settings_.bos_token; }
  const std::string& eos_token() const { return settings_.eos_token; }
  const std::vector<ChatTemplate::NamedToken>& named_tokens() const {
    return settings_.named_tokens;
  }
  // Null where the model has none.
  const ChatTemplate* chat_template() const { return chat_template_.get(); }
  // Hex sha256 of what defines ids and prompts.
  const std::string& fingerprint() const { return fingerprint_; }

  class Engine;

 private:
  Tokenizer(std::unique_ptr<Engine> engine, TokenTable table);
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Assemble(std::unique_ptr<Engine> engine,
                                                             TokenTable table,
                                                             absl::string_view definition,
                                                             TokenizerSettings settings);

  std::unique_ptr<Engine> engine_;
  TokenTable table_;
  TokenizerSettings settings_;
  std::vector<int32_t> bos_token_ids_;
  std::vector<int32_t> eos_token_ids_;
  std::unique_ptr<ChatTemplate> chat_template_;
  std::string fingerprint_;
};

}  // namespace mneme::text
