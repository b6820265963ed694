#include "services/tokenizer/gguf_tokenizer.h"

#include <algorithm>
#include <filesystem>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "common/status/annotate.h"
#include "common/status/status_macros.h"
#include "common/text/tokenizer_files.h"

namespace mneme::tokenizer {
namespace {

namespace fs = std::filesystem;

absl::StatusOr<absl::optional<int32_t>> ReadId(const weights::GgufFile& file,
                                               absl::string_view key) {
  if (!file.Has(key)) return absl::optional<int32_t>();
  ASSIGN_OR_RETURN(const int64_t id, file.GetInt(key));
  // llama.cpp writes 2^32 - 1 for "none".
  if (id < 0 || id > std::numeric_limits<int32_t>::max()) return absl::optional<int32_t>();
  return absl::optional<int32_t>(static_cast<int32_t>(id));
}

absl::StatusOr<absl::optional<bool>> ReadBool(const weights::GgufFile& file,
                                              absl::string_view key) {
  if (!file.Has(key)) return absl::optional<bool>();
  ASSIGN_OR_RETURN(const bool value, file.GetBool(key));
  return absl::optional<bool>(value);
}

absl::StatusOr<std::string> ReadString(const weights::GgufFile& file, absl::string_view key) {
  ASSIGN_OR_RETURN(const absl::string_view view, file.GetString(key));
  return std::string(view);
}

absl::StatusOr<std::vector<std::string>> ReadStrings(const weights::GgufFile& file,
                                                     absl::string_view key) {
  ASSIGN_OR_RETURN(const std::vector<absl::string_view> views, file.GetStrings(key));
  return std::vector<std::string>(views.begin(), views.end());
}

// Returns the only or first .gguf file of a folder that has no tokenizer of its own, else `path`.
std::string FileOf(absl::string_view path) {
  const fs::path folder{std::string(path)};
  std::error_code error;
  if (!fs::is_directory(folder, error)) return std::string(path);
  std::vector<std::string> files;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end;
       entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    if (name == "tokenizer.json" || name == "tekken.json" || name == "tokenizer.model") {
      return std::string(path);
    }
    if (absl::EndsWith(name, ".gguf")) files.push_back(entry->path().string());
  }
  // Only the first part of a split file holds the metadata.
  std::sort(files.begin(), files.end());
  return files.empty() ? std::string(path) : files.front();
}

}  // namespace

absl::StatusOr<text::GgufVocabulary> ReadGgufVocabulary(const weights::GgufFile& file) {
  text::GgufVocabulary vocabulary;
  ASSIGN_OR_RETURN(vocabulary.model, ReadString(file, "tokenizer.ggml.model"));
  if (file.Has("tokenizer.ggml.pre")) {
    ASSIGN_OR_RETURN(vocabulary.pre, ReadString(file, "tokenizer.ggml.pre"));
  }
  ASSIGN_OR_RETURN(vocabulary.tokens, ReadStrings(file, "tokenizer.ggml.tokens"));
  if (file.Has("tokenizer.ggml.scores")) {
    ASSIGN_OR_RETURN(vocabulary.scores, file.GetFloats("tokenizer.ggml.scores"));
  }
  if (file.Has("tokenizer.ggml.token_type")) {
    ASSIGN_OR_RETURN(const std::vector<int64_t> types, file.GetInts("tokenizer.ggml.token_type"));
    vocabulary.token_types.assign(types.begin(), types.end());
  }
  if (file.Has("tokenizer.ggml.merges")) {
    ASSIGN_OR_RETURN(vocabulary.merges, ReadStrings(file, "tokenizer.ggml.merges"));
  }
  ASSIGN_OR_RETURN(vocabulary.bos_token_id, ReadId(file, "tokenizer.ggml.bos_token_id"));
  ASSIGN_OR_RETURN(vocabulary.eos_token_id, ReadId(file, "tokenizer.ggml.eos_token_id"));
  ASSIGN_OR_RETURN(vocabulary.eot_token_id, ReadId(file, "tokenizer.ggml.eot_token_id"));
  ASSIGN_OR_RETURN(vocabulary.add_bos_token, ReadBool(file, "tokenizer.ggml.add_bos_token"));
  ASSIGN_OR_RETURN(vocabulary.add_eos_token, ReadBool(file, "tokenizer.ggml.add_eos_token"));
  ASSIGN_OR_RETURN(vocabulary.add_space_prefix, ReadBool(file, "tokenizer.ggml.add_space_prefix"));
  if (file.Has("tokenizer.chat_template")) {
    ASSIGN_OR_RETURN(vocabulary.chat_template, ReadString(file, "tokenizer.chat_template"));
  }
  return vocabulary;
}

absl::StatusOr<std::unique_ptr<text::Tokenizer>> LoadModelTokenizer(absl::string_view path) {
  const std::string file_path = FileOf(path);
  if (!absl::EndsWith(file_path, ".gguf")) return text::LoadTokenizer(file_path);
  ASSIGN_OR_RETURN(const std::unique_ptr<weights::GgufFile> file,
                   weights::GgufFile::Open(file_path));
  absl::StatusOr<text::GgufVocabulary> vocabulary = ReadGgufVocabulary(*file);
  if (!vocabulary.ok()) return status::Annotate(vocabulary.status(), file_path);
  absl::StatusOr<std::unique_ptr<text::Tokenizer>> tokenizer =
      text::Tokenizer::FromGguf(*vocabulary);
  if (!tokenizer.ok()) return status::Annotate(tokenizer.status(), file_path);
  return tokenizer;
}

}  // namespace mneme::tokenizer
