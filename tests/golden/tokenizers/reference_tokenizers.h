// The tokenizers that the golden files were made with, fetched from the packages that
// golden/tokenizers/README.md names (deploy/fetch.sh; pinned, cached).
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/text/tokenizer.h"

namespace mneme::testing {

// Returns the folder of the golden files: MNEME_GOLDEN, or ../shared/golden beside the source.
std::string GoldenFolder();

// Returns the folder in which Mneme keeps what it downloads.
std::string CacheFolder();

// Fetches a package of deploy/fetch.sh and returns its folder. UNAVAILABLE: the download failed,
// with what the script said.
absl::StatusOr<std::string> FetchPackage(const std::string& name);

absl::StatusOr<std::string> ReadWholeFile(const std::string& path);

// Loads the tokenizer of one golden file by its stem ("qwen3"). NOT_FOUND: no source is known for
// it.
absl::StatusOr<std::unique_ptr<text::Tokenizer>> LoadReferenceTokenizer(const std::string& stem);

// Whether special tokens in the texts of that file are plain text.
bool IsPlainText(absl::string_view stem);

// The stems of all golden files, sorted.
std::vector<std::string> GoldenStems();

}  // namespace mneme::testing
