#include "common/text/tokenizer_files.h"

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/status/annotate.h"
#include "common/status/status_macros.h"

namespace mneme::text {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

absl::StatusOr<std::string> ReadFile(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    return absl::NotFoundError(absl::StrCat("tokenizer file cannot be opened: ", path.string()));
  }
  std::ostringstream content;
  content << file.rdbuf();
  if (file.bad()) {
    return absl::UnavailableError(absl::StrCat("tokenizer file cannot be read: ", path.string()));
  }
  return std::move(content).str();
}

// Returns an empty object where there is no such file.
absl::StatusOr<Json> ReadJsonIfThere(const fs::path& path) {
  std::error_code error;
  if (!fs::exists(path, error)) return Json::object();
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  Json json = Json::parse(text, /*cb=*/nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) {
    return absl::InvalidArgumentError(absl::StrCat("not a JSON object: ", path.string()));
  }
  return json;
}

// A special token is written as its text or as an object with `content`; "" for anything else.
std::string TokenText(const Json& json, const std::string& key) {
  const auto found = json.find(key);
  if (found == json.end()) return "";
  if (found->is_string()) return found->get<std::string>();
  if (!found->is_object()) return "";
  const auto content = found->find("content");
  return content != found->end() && content->is_string() ? content->get<std::string>() : "";
}

// A template, or a list of named ones of which "default" is the chat's.
std::string TemplateText(const Json& json) {
  const auto found = json.find("chat_template");
  if (found == json.end()) return "";
  if (found->is_string()) return found->get<std::string>();
  if (!found->is_array()) return "";
  for (const Json& entry : *found) {
    if (entry.is_object() && TokenText(entry, "name") == "default") {
      return TokenText(entry, "template");
    }
  }
  return "";
}

}  // namespace

absl::StatusOr<TokenizerSettings> ReadTokenizerSettings(absl::string_view folder) {
  const fs::path path{std::string(folder)};
  ASSIGN_OR_RETURN(const Json config, ReadJsonIfThere(path / "tokenizer_config.json"));
  ASSIGN_OR_RETURN(const Json map, ReadJsonIfThere(path / "special_tokens_map.json"));
  ASSIGN_OR_RETURN(const Json generation, ReadJsonIfThere(path / "generation_config.json"));
  ASSIGN_OR_RETURN(const Json template_json, ReadJsonIfThere(path / "chat_template.json"));
  TokenizerSettings settings;
  for (const char* key : {"bos_token", "eos_token", "unk_token", "pad_token", "sep_token",
                          "cls_token", "mask_token"}) {
    std::string token = TokenText(config, key);
    if (token.empty()) token = TokenText(map, key);
    if (token.empty()) continue;
    if (absl::string_view(key) == "bos_token") {
      settings.bos_token = token;
    } else if (absl::string_view(key) == "eos_token") {
      settings.eos_token = token;
    } else {
      settings.named_tokens.push_back({key, token});
    }
  }
  if (const auto ids = generation.find("eos_token_id"); ids != generation.end()) {
    for (const Json& id : ids->is_array() ? *ids : Json::array({*ids})) {
      if (id.is_number_integer()) settings.eos_token_ids.push_back(id.get<int32_t>());
    }
  }
  settings.chat_template = TemplateText(config);
  if (std::string text = TemplateText(template_json); !text.empty()) {
    settings.chat_template = std::move(text);
  }
  std::error_code error;
  if (fs::exists(path / "chat_template.jinja", error)) {
    ASSIGN_OR_RETURN(settings.chat_template, ReadFile(path / "chat_template.jinja"));
  }
  return settings;
}

absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizer(absl::string_view path) {
  fs::path file{std::string(path)};
  std::error_code error;
  if (fs::is_directory(file, error)) {
    const fs::path folder = file;
    for (const char* name : {"tokenizer.json", "tekken.json", "tokenizer.model"}) {
      file = folder / name;
      if (fs::exists(file, error)) break;
    }
    if (!fs::exists(file, error)) {
      return absl::NotFoundError(
          absl::StrCat("folder holds no tokenizer.json, tekken.json or tokenizer.model: ", path));
    }
  }
  ASSIGN_OR_RETURN(const std::string content, ReadFile(file));
  ASSIGN_OR_RETURN(TokenizerSettings settings, ReadTokenizerSettings(file.parent_path().string()));
  const std::string name = file.filename().string();
  absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer;
  if (absl::StartsWith(name, "tekken")) {
    tokenizer = Tokenizer::FromTekken(content, std::move(settings));
  } else if (absl::StrContains(name, ".model")) {
    tokenizer = Tokenizer::FromSentencePiece(content, std::move(settings));
  } else {
    tokenizer = Tokenizer::FromTokenizerJson(content, std::move(settings));
  }
  if (!tokenizer.ok()) return status::Annotate(tokenizer.status(), file.string());
  return tokenizer;
}

}  // namespace mneme::text
