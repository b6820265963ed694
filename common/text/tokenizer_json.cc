#include "common/text/tokenizer_json.h"

#include <algorithm>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "common/status/status_macros.h"
#include "common/text/byte_level.h"
#include "common/text/sentencepiece_model.h"
#include "common/text/utf8.h"

namespace mneme::text {
namespace {

using Json = nlohmann::json;

// How the models' own tokenizer.json files split text, under the names that GGUF files use.
struct Splitter {
  absl::string_view name;
  absl::string_view pattern;  // "" for GPT-2's, which the byte-level step has built in
  bool single_digits = false;
  bool normalize = false;      // NFC first
  bool ignore_merges = false;  // a whole word of the vocabulary is taken as it is
  bool add_bos = false;        // where the file does not say
};

constexpr absl::string_view kLlama3Pattern =
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| "
    "?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
constexpr absl::string_view kQwen2Pattern =
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| "
    "?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
constexpr absl::string_view kTekkenPattern =
    "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+|"
    "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*|"
    "\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

constexpr Splitter kSplitters[] = {
    {.name = "gpt-2", .pattern = ""},
    {.name = "phi-2", .pattern = ""},
    {.name = "mpt", .pattern = ""},
    {.name = "olmo", .pattern = ""},
    {.name = "smollm", .pattern = "", .single_digits = true},
    {.name = "starcoder", .pattern = "", .single_digits = true},
    {.name = "refact", .pattern = "", .single_digits = true},
    {.name = "command-r", .pattern = "", .single_digits = true},
    {.name = "qwen2", .pattern = kQwen2Pattern, .normalize = true},
    {.name = "deepseek-r1-qwen", .pattern = kQwen2Pattern, .normalize = true, .add_bos = true},
    {.name = "llama-bpe", .pattern = kLlama3Pattern, .ignore_merges = true, .add_bos = true},
    {.name = "llama3", .pattern = kLlama3Pattern, .ignore_merges = true, .add_bos = true},
    {.name = "llama-v3", .pattern = kLlama3Pattern, .ignore_merges = true, .add_bos = true},
    {.name = "falcon3", .pattern = kLlama3Pattern, .ignore_merges = true},
    {.name = "smaug-bpe", .pattern = kLlama3Pattern},
    {.name = "dbrx", .pattern = kLlama3Pattern},
    {.name = "tekken", .pattern = kTekkenPattern, .ignore_merges = true, .add_bos = true},
};

Json AddedToken(int64_t id, absl::string_view content, bool special) {
  return {{"id", id},           {"content", std::string(content)},
          {"special", special}, {"single_word", false},
          {"lstrip", false},    {"rstrip", false},
          {"normalized", false}};
}

Json PreTokenizer(absl::string_view pattern, bool single_digits) {
  Json steps = Json::array();
  if (single_digits) steps.push_back({{"type", "Digits"}, {"individual_digits", true}});
  if (!pattern.empty()) {
    steps.push_back({{"type", "Split"},
                     {"pattern", {{"Regex", std::string(pattern)}}},
                     {"behavior", "Isolated"},
                     {"invert", false}});
  }
  steps.push_back({{"type", "ByteLevel"},
                   {"add_prefix_space", false},
                   {"trim_offsets", true},
                   {"use_regex", pattern.empty()}});
  return {{"type", "Sequence"}, {"pretokenizers", steps}};
}

// Puts BOS in front and EOS behind, where ids are given.
Json PostProcessor(const std::vector<std::string>& tokens, absl::optional<int32_t> bos_id,
                   absl::optional<int32_t> eos_id) {
  if (!bos_id.has_value() && !eos_id.has_value()) return nullptr;
  Json single = Json::array();
  Json specials = Json::object();
  const auto add = [&](int32_t id) {
    const std::string& token = tokens[id];
    single.push_back({{"SpecialToken", {{"id", token}, {"type_id", 0}}}});
    specials[token] = {{"id", token}, {"ids", {id}}, {"tokens", {token}}};
  };
  if (bos_id.has_value()) add(*bos_id);
  single.push_back({{"Sequence", {{"id", "A"}, {"type_id", 0}}}});
  if (eos_id.has_value()) add(*eos_id);
  const Json pair = {{{"Sequence", {{"id", "A"}, {"type_id", 0}}}},
                     {{"Sequence", {{"id", "B"}, {"type_id", 1}}}}};
  return {{"type", "TemplateProcessing"},
          {"single", single},
          {"pair", pair},
          {"special_tokens", specials}};
}

std::string Dump(Json model, Json added, Json normalizer, Json pre_tokenizer, Json post_processor) {
  const Json decoder = {{"type", "ByteLevel"},
                        {"add_prefix_space", true},
                        {"trim_offsets", true},
                        {"use_regex", true}};
  const Json json = {{"version", "1.0"},
                     {"truncation", nullptr},
                     {"padding", nullptr},
                     {"added_tokens", std::move(added)},
                     {"normalizer", std::move(normalizer)},
                     {"pre_tokenizer", std::move(pre_tokenizer)},
                     {"post_processor", std::move(post_processor)},
                     {"decoder", decoder},
                     {"model", std::move(model)}};
  return json.dump();
}

Json Model(Json vocab, Json merges, bool ignore_merges) {
  return {{"type", "BPE"},
          {"dropout", nullptr},
          {"unk_token", nullptr},
          {"continuing_subword_prefix", nullptr},
          {"end_of_word_suffix", nullptr},
          {"fuse_unk", false},
          {"byte_fallback", false},
          {"ignore_merges", ignore_merges},
          {"vocab", std::move(vocab)},
          {"merges", std::move(merges)}};
}

absl::Status CheckVocabulary(const GgufVocabulary& vocabulary) {
  const size_t size = vocabulary.tokens.size();
  if (size == 0 || size > INT32_MAX) {
    return absl::InvalidArgumentError(
        absl::StrCat("tokenizer.ggml.tokens: unusable number of tokens: ", size));
  }
  if (!vocabulary.token_types.empty() && vocabulary.token_types.size() != size) {
    return absl::InvalidArgumentError(
        absl::StrCat("tokenizer.ggml.token_type has another length than tokenizer.ggml.tokens: ",
                     vocabulary.token_types.size(), " against ", size));
  }
  for (size_t id = 0; id < size; ++id) {
    if (!IsUtf8(vocabulary.tokens[id])) {
      return absl::InvalidArgumentError(
          absl::StrCat("tokenizer.ggml.tokens: a token is not UTF-8, id: ", id));
    }
  }
  for (const auto& id : {vocabulary.bos_token_id, vocabulary.eos_token_id}) {
    if (id.has_value() && (*id < 0 || static_cast<size_t>(*id) >= size)) {
      return absl::InvalidArgumentError(
          absl::StrCat("tokenizer.ggml: BOS or EOS is outside the vocabulary, id: ", *id));
    }
  }
  return absl::OkStatus();
}

// The special tokens of tekken files that do not list them, in order; the rest up to the reserved
// number are fillers.
constexpr absl::string_view kTekkenSpecialTokens[] = {"<unk>",
                                                      "<s>",
                                                      "</s>",
                                                      "[INST]",
                                                      "[/INST]",
                                                      "[AVAILABLE_TOOLS]",
                                                      "[/AVAILABLE_TOOLS]",
                                                      "[TOOL_RESULTS]",
                                                      "[/TOOL_RESULTS]",
                                                      "[TOOL_CALLS]",
                                                      "[IMG]",
                                                      "<pad>",
                                                      "[IMG_BREAK]",
                                                      "[IMG_END]",
                                                      "[PREFIX]",
                                                      "[MIDDLE]",
                                                      "[SUFFIX]",
                                                      "[SYSTEM_PROMPT]",
                                                      "[/SYSTEM_PROMPT]",
                                                      "[TOOL_CONTENT]"};

// Merges that give what merging by rank gives: for every token all its splits into two others, in
// the order of the ranks.
Json MergesOfRanks(const std::vector<std::string>& by_rank) {
  absl::flat_hash_map<absl::string_view, size_t> ranks;
  ranks.reserve(by_rank.size());
  for (size_t rank = 0; rank < by_rank.size(); ++rank) ranks.emplace(by_rank[rank], rank);
  Json merges = Json::array();
  for (const std::string& token : by_rank) {
    std::vector<std::tuple<size_t, size_t, size_t>> splits;  // rank, rank, length of the left part
    const absl::string_view view = token;
    for (size_t size = 1; size < view.size(); ++size) {
      const auto left = ranks.find(view.substr(0, size));
      if (left == ranks.end()) continue;
      const auto right = ranks.find(view.substr(size));
      if (right == ranks.end()) continue;
      splits.emplace_back(left->second, right->second, size);
    }
    std::sort(splits.begin(), splits.end());
    for (const auto& [left, right, size] : splits) {
      merges.push_back({ToByteLevel(view.substr(0, size)), ToByteLevel(view.substr(size))});
    }
  }
  return merges;
}

// Reads a decoder step; false for one that is not SentencePiece-style.
bool ReadStep(const Json& step, std::vector<std::pair<std::string, std::string>>* replacements,
              TokenTable::Definition* definition, bool* has_byte_fallback) {
  const std::string type = step.value("type", "");
  if (type == "Fuse") return true;
  if (type == "ByteFallback") {
    *has_byte_fallback = true;
    return true;
  }
  if (type == "Replace") {
    const Json& pattern = step.value("pattern", Json::object());
    if (*has_byte_fallback || !pattern.contains("String")) return false;
    replacements->emplace_back(pattern["String"].get<std::string>(), step.value("content", ""));
    return true;
  }
  if (type == "Strip") {
    if (step.value("content", "") != " " || step.value("start", 0) > 1 ||
        step.value("stop", 0) != 0) {
      return false;
    }
    definition->strip_leading_space = step.value("start", 0) == 1;
    return true;
  }
  return false;
}

}  // namespace

absl::StatusOr<std::string> TokenizerJsonOfGguf(const GgufVocabulary& vocabulary) {
  RETURN_IF_ERROR(CheckVocabulary(vocabulary));
  const std::string pre = vocabulary.pre.empty() ? "gpt-2" : vocabulary.pre;
  const auto* splitter = std::find_if(std::begin(kSplitters), std::end(kSplitters),
                                      [&pre](const Splitter& known) { return known.name == pre; });
  if (splitter == std::end(kSplitters)) {
    return absl::UnimplementedError(
        absl::StrCat("tokenizer.ggml.pre is not one that is known here: ", pre,
                     "; use the model's tokenizer.json instead"));
  }
  Json vocab = Json::object();
  Json added = Json::array();
  for (size_t id = 0; id < vocabulary.tokens.size(); ++id) {
    const std::string& token = vocabulary.tokens[id];
    vocab[token] = id;
    const auto kind = vocabulary.token_types.empty()
                          ? PieceKind::kNormal
                          : static_cast<PieceKind>(vocabulary.token_types[id]);
    const bool is_end =
        vocabulary.token_types.empty() && (vocabulary.bos_token_id == static_cast<int32_t>(id) ||
                                           vocabulary.eos_token_id == static_cast<int32_t>(id));
    if (token.empty()) continue;
    if (kind == PieceKind::kControl || kind == PieceKind::kUnknown || is_end) {
      added.push_back(AddedToken(id, token, /*special=*/true));
    } else if (kind == PieceKind::kUserDefined) {
      added.push_back(AddedToken(id, token, /*special=*/false));
    }
  }
  absl::optional<int32_t> bos_id;
  absl::optional<int32_t> eos_id;
  if (vocabulary.add_bos_token.value_or(splitter->add_bos)) bos_id = vocabulary.bos_token_id;
  if (vocabulary.add_eos_token.value_or(false)) eos_id = vocabulary.eos_token_id;
  for (const std::string& merge : vocabulary.merges) {
    if (!IsUtf8(merge)) {
      return absl::InvalidArgumentError("tokenizer.ggml.merges: a merge is not UTF-8");
    }
  }
  const Json normalizer = splitter->normalize ? Json{{"type", "NFC"}} : Json();
  return Dump(Model(std::move(vocab), vocabulary.merges, splitter->ignore_merges), std::move(added),
              normalizer, PreTokenizer(splitter->pattern, splitter->single_digits),
              PostProcessor(vocabulary.tokens, bos_id, eos_id));
}

absl::StatusOr<std::string> TokenizerJsonOfTekken(absl::string_view tekken_json) {
  const Json json = Json::parse(tekken_json.begin(), tekken_json.end(), /*cb=*/nullptr,
                                /*allow_exceptions=*/false);
  if (!json.is_object() || !json.contains("config") || !json["config"].is_object() ||
      !json.contains("vocab") || !json["vocab"].is_array()) {
    return absl::InvalidArgumentError(
        "not a tekken.json: it needs an object with config and vocab");
  }
  const Json& config = json["config"];
  const auto number = [&config](const char* name) -> int64_t {
    const auto found = config.find(name);
    return found != config.end() && found->is_number_integer() ? found->get<int64_t>() : -1;
  };
  const int64_t vocab_size = number("default_vocab_size");
  const int64_t num_special = number("default_num_special_tokens");
  const auto pattern = config.find("pattern");
  const int64_t num_ranks = vocab_size - num_special;
  if (num_special < 0 || num_ranks < 256 || num_ranks > INT32_MAX / 2 ||
      num_special > INT32_MAX / 2 || static_cast<uint64_t>(num_ranks) > json["vocab"].size() ||
      pattern == config.end() || !pattern->is_string()) {
    return absl::InvalidArgumentError(
        "tekken.json: config needs pattern, default_vocab_size and default_num_special_tokens "
        "that fit vocab");
  }
  std::vector<std::string> special(num_special);
  for (int64_t rank = 0; rank < num_special; ++rank) {
    special[rank] = rank < static_cast<int64_t>(std::size(kTekkenSpecialTokens))
                        ? std::string(kTekkenSpecialTokens[rank])
                        : absl::StrCat("<SPECIAL_", rank, ">");
  }
  if (const auto listed = json.find("special_tokens"); listed != json.end() && listed->is_array()) {
    for (const Json& token : *listed) {
      const int64_t rank = token.value("rank", int64_t{-1});
      const std::string content = token.value("token_str", "");
      if (rank < 0 || rank >= num_special || content.empty()) {
        return absl::InvalidArgumentError("tekken.json: special_tokens has an unusable entry");
      }
      special[rank] = content;
    }
  }
  std::vector<std::string> by_rank(num_ranks);
  for (int64_t rank = 0; rank < num_ranks; ++rank) {
    const Json& entry = json["vocab"][rank];
    if (!entry.is_object() || entry.value("rank", int64_t{-1}) != rank ||
        !entry.contains("token_bytes") || !entry["token_bytes"].is_string() ||
        !absl::Base64Unescape(entry["token_bytes"].get<std::string>(), &by_rank[rank]) ||
        by_rank[rank].empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat("tekken.json: vocab has an unusable entry at rank ", rank));
    }
  }
  Json vocab = Json::object();
  Json added = Json::array();
  for (int64_t id = 0; id < num_special; ++id) {
    vocab[special[id]] = id;
    added.push_back(AddedToken(id, special[id], /*special=*/true));
  }
  for (int64_t rank = 0; rank < num_ranks; ++rank) {
    vocab[ToByteLevel(by_rank[rank])] = num_special + rank;
  }
  const auto bos = std::find(special.begin(), special.end(), "<s>");
  absl::optional<int32_t> bos_id;
  if (bos != special.end()) bos_id = static_cast<int32_t>(bos - special.begin());
  return Dump(Model(std::move(vocab), MergesOfRanks(by_rank), /*ignore_merges=*/true),
              std::move(added), nullptr,
              PreTokenizer(pattern->get<std::string>(), /*single_digits=*/false),
              PostProcessor(special, bos_id, absl::nullopt));
}

absl::StatusOr<TokenTable::Definition> TableOf(ffi::CrateTokenizer::Description description) {
  TokenTable::Definition definition;
  definition.special_ids = std::move(description.special_ids);
  definition.pieces = std::move(description.tokens);
  const Json decoder = Json::parse(description.decoder_json);
  std::vector<Json> steps;
  if (decoder.is_object() && decoder.value("type", "") == "Sequence") {
    steps = decoder["decoders"].get<std::vector<Json>>();
  } else {
    steps.push_back(decoder);
  }
  if (steps.size() == 1 && steps[0].is_object() && steps[0].value("type", "") == "ByteLevel") {
    for (std::string& piece : definition.pieces) piece = BytesOfByteLevel(piece);
    return definition;
  }
  std::vector<std::pair<std::string, std::string>> replacements;
  bool has_byte_fallback = false;
  for (const Json& step : steps) {
    if (!step.is_object() || !ReadStep(step, &replacements, &definition, &has_byte_fallback)) {
      return absl::UnimplementedError(absl::StrCat(
          "tokenizer.json: its decoder is neither byte-level nor SentencePiece-style: ",
          description.decoder_json));
    }
  }
  definition.invalid_bytes = InvalidBytes::kWholeRun;
  for (size_t id = 0; id < definition.pieces.size(); ++id) {
    std::string& piece = definition.pieces[id];
    for (const auto& [from, to] : replacements) absl::StrReplaceAll({{from, to}}, &piece);
    if (!has_byte_fallback || piece.size() != 6 || !absl::StartsWith(piece, "<0x") ||
        piece[5] != '>' || !absl::ascii_isxdigit(piece[3]) || !absl::ascii_isxdigit(piece[4])) {
      continue;
    }
    piece = absl::HexStringToBytes(absl::string_view(piece).substr(3, 2));
    definition.byte_ids.push_back(static_cast<int32_t>(id));
  }
  return definition;
}

}  // namespace mneme::text
