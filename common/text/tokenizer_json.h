// Brings byte-level vocabularies of other files into the form of a tokenizer.json, and reads how a
// tokenizer.json's tokens become text. Internal to common/text: use tokenizer.h.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/text/ffi_handle.h"
#include "common/text/token_table.h"
#include "common/text/tokenizer.h"

namespace mneme::text {

// `vocabulary.model` is "gpt2". UNIMPLEMENTED: a `pre` that is not known here.
absl::StatusOr<std::string> TokenizerJsonOfGguf(const GgufVocabulary& vocabulary);

// Mistral's tekken.json: ranks of byte strings, with the special tokens first.
absl::StatusOr<std::string> TokenizerJsonOfTekken(absl::string_view tekken_json);

// UNIMPLEMENTED: a decoder of another kind than byte-level or SentencePiece-style.
absl::StatusOr<TokenTable::Definition> TableOf(ffi::CrateTokenizer::Description description);

}  // namespace mneme::text
