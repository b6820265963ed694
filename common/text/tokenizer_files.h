// Finds and loads the tokenizer of a model on disk.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/text/tokenizer.h"

namespace mneme::text {

// `path` is a folder, a tokenizer.json, a tekken.json (any name beginning with "tekken"), or a
// SentencePiece file (".model" in its name). In a folder tokenizer.json is preferred, then
// tekken.json, then tokenizer.model. Beside the file are read, where they exist:
// tokenizer_config.json, special_tokens_map.json, generation_config.json, chat_template.jinja,
// chat_template.json. GGUF files are not for this function: Tokenizer::FromGguf.
// NOT_FOUND: no such file. INVALID_ARGUMENT: a file is not what it should be. Both name the path.
absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizer(absl::string_view path);

// Returns what the files of `folder` say beside the tokenizer's own file.
absl::StatusOr<TokenizerSettings> ReadTokenizerSettings(absl::string_view folder);

}  // namespace mneme::text
