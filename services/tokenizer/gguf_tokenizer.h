// The tokenizer that a model file carries: where common/text and common/weights meet.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/text/tokenizer.h"
#include "common/weights/gguf.h"

namespace mneme::tokenizer {

// Copies `tokenizer.ggml.*` and `tokenizer.chat_template`. INVALID_ARGUMENT: a key is missing or of
// the wrong type; names it.
absl::StatusOr<text::GgufVocabulary> ReadGgufVocabulary(const weights::GgufFile& file);

// Loads the tokenizer of a model: a .gguf file, a folder that holds one and no tokenizer of its
// own, or whatever text::LoadTokenizer knows. Errors name the path.
absl::StatusOr<std::unique_ptr<text::Tokenizer>> LoadModelTokenizer(absl::string_view path);

}  // namespace mneme::tokenizer
