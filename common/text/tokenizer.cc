#include "common/text/tokenizer.h"

#include <openssl/sha.h>

#include <algorithm>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "common/status/annotate.h"
#include "common/status/status_macros.h"
#include "common/text/sentencepiece_model.h"
#include "common/text/tokenizer_json.h"
#include "common/text/utf8.h"

namespace mneme::text {

// What turns text into ids.
class Tokenizer::Engine {
 public:
  virtual ~Engine() = default;
  // `text` is UTF-8.
  virtual absl::StatusOr<std::vector<int32_t>> Encode(absl::string_view text,
                                                      const EncodeOptions& options) const = 0;
  virtual absl::StatusOr<std::vector<int32_t>> EncodeContinuation(
      absl::string_view text, const TokenTable& table) const = 0;
  // The id of a token's text, -1 for none. Used while loading.
  virtual int32_t Find(absl::string_view token) const = 0;
};

namespace {

class CrateEngine final : public Tokenizer::Engine {
 public:
  CrateEngine(ffi::CrateTokenizer crate, std::vector<std::pair<std::string, int32_t>> special)
      : crate_(std::move(crate)), special_(std::move(special)) {}

  absl::StatusOr<std::vector<int32_t>> Encode(absl::string_view text,
                                              const EncodeOptions& options) const override {
    return crate_.Encode(text, options.add_special_tokens, options.plain_text);
  }

  absl::StatusOr<std::vector<int32_t>> EncodeContinuation(absl::string_view text,
                                                          const TokenTable& table) const override {
    if (!table.strip_leading_space() || text.empty()) return Encode(text, {});
    // The engine puts a space in front of a text. It is put in front of a line break instead, whose
    // ids are then taken off: nothing merges with a line break in vocabularies of this style.
    constexpr absl::string_view kAnchor = "\n";
    constexpr size_t kMaxAnchorIds = 3;
    ASSIGN_OR_RETURN(std::vector<int32_t> ids, Encode(absl::StrCat(kAnchor, text), {}));
    for (size_t size = 1; size <= std::min(ids.size(), kMaxAnchorIds); ++size) {
      ASSIGN_OR_RETURN(const std::string front,
                       table.Decode(absl::MakeConstSpan(ids).first(size), false));
      if (front != kAnchor) continue;
      ids.erase(ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(size));
      return ids;
    }
    return Encode(text, {});
  }

  int32_t Find(absl::string_view token) const override {
    for (const auto& [text, id] : special_) {
      if (text == token) return id;
    }
    return -1;
  }

 private:
  ffi::CrateTokenizer crate_;
  std::vector<std::pair<std::string, int32_t>> special_;
};

class SentencePieceEngine final : public Tokenizer::Engine {
 public:
  SentencePieceEngine(SentencePieceModel model, absl::optional<int32_t> bos_id,
                      absl::optional<int32_t> eos_id)
      : model_(std::move(model)), bos_id_(bos_id), eos_id_(eos_id) {}

  absl::StatusOr<std::vector<int32_t>> Encode(absl::string_view text,
                                              const EncodeOptions& options) const override {
    std::vector<int32_t> ids = model_.Encode(text, options.plain_text);
    if (options.add_special_tokens) {
      if (bos_id_.has_value()) ids.insert(ids.begin(), *bos_id_);
      if (eos_id_.has_value()) ids.push_back(*eos_id_);
    }
    return ids;
  }

  absl::StatusOr<std::vector<int32_t>> EncodeContinuation(absl::string_view text,
                                                          const TokenTable&) const override {
    return model_.EncodeContinuation(text);
  }

  int32_t Find(absl::string_view token) const override {
    const auto& pieces = model_.pieces();
    for (size_t id = 0; id < pieces.size(); ++id) {
      if (pieces[id].piece == token) return static_cast<int32_t>(id);
    }
    return -1;
  }

 private:
  SentencePieceModel model_;
  absl::optional<int32_t> bos_id_;  // put in front, where set
  absl::optional<int32_t> eos_id_;  // put behind, where set
};

TokenTable::Definition TableOf(const SentencePieceModel& model) {
  TokenTable::Definition definition;
  definition.invalid_bytes = InvalidBytes::kEachByte;
  definition.strip_leading_space = model.adds_space_prefix();
  for (size_t id = 0; id < model.pieces().size(); ++id) {
    const SentencePiece& piece = model.pieces()[id];
    if (piece.kind == PieceKind::kByte && piece.piece.size() == 6) {
      definition.pieces.push_back(absl::HexStringToBytes(piece.piece.substr(3, 2)));
      definition.byte_ids.push_back(static_cast<int32_t>(id));
      continue;
    }
    definition.pieces.push_back(absl::StrReplaceAll(piece.piece, {{kSpaceMark, " "}}));
    if (piece.kind == PieceKind::kControl || piece.kind == PieceKind::kUnknown) {
      definition.special_ids.push_back(static_cast<int32_t>(id));
    }
  }
  return definition;
}

std::string Sha256(const std::vector<absl::string_view>& parts) {
  // Lengths in between, so that moving a byte from one part to the next changes the sum.
  std::string whole;
  for (const absl::string_view part : parts) absl::StrAppend(&whole, part.size(), ":", part);
  uint8_t digest[SHA256_DIGEST_LENGTH];
  SHA256(reinterpret_cast<const uint8_t*>(whole.data()), whole.size(), digest);
  return absl::BytesToHexString(
      absl::string_view(reinterpret_cast<const char*>(digest), sizeof(digest)));
}

// Control tokens that end an answer in the models that have them, whatever EOS is.
constexpr absl::string_view kEndTokens[] = {"<|im_end|>", "<|eot_id|>", "<|end_of_text|>",
                                            "<|endoftext|>", "<end_of_turn>"};

}  // namespace

Tokenizer::Tokenizer(std::unique_ptr<Engine> engine, TokenTable table)
    : engine_(std::move(engine)), table_(std::move(table)) {}

Tokenizer::~Tokenizer() = default;

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Assemble(std::unique_ptr<Engine> engine,
                                                               TokenTable table,
                                                               absl::string_view definition,
                                                               TokenizerSettings settings) {
  // Private constructor: make_unique cannot.
  std::unique_ptr<Tokenizer> tokenizer(new Tokenizer(std::move(engine), std::move(table)));
  if (settings.bos_token.empty()) {
    // Not said beside the file: what the post-processor puts in front of nothing.
    ASSIGN_OR_RETURN(const std::vector<int32_t> ids,
                     tokenizer->Encode("", {.add_special_tokens = true}));
    if (!ids.empty()) {
      const std::string front(tokenizer->table_.Piece(ids.front()));
      if (front != settings.eos_token) settings.bos_token = front;
    }
  }
  if (const int32_t id = tokenizer->engine_->Find(settings.bos_token);
      id >= 0 && !settings.bos_token.empty()) {
    tokenizer->bos_token_ids_.push_back(id);
  }
  auto& ends = tokenizer->eos_token_ids_;
  if (const int32_t id = tokenizer->engine_->Find(settings.eos_token);
      id >= 0 && !settings.eos_token.empty()) {
    ends.push_back(id);
  }
  for (const int32_t id : settings.eos_token_ids) {
    if (!tokenizer->table_.Contains(id)) {
      return absl::InvalidArgumentError(
          absl::StrCat("an end token is outside the vocabulary, id: ", id));
    }
    if (std::find(ends.begin(), ends.end(), id) == ends.end()) ends.push_back(id);
  }
  std::vector<ChatTemplate::NamedToken>& named = settings.named_tokens;
  if (!settings.eos_token.empty()) named.insert(named.begin(), {"eos_token", settings.eos_token});
  if (!settings.bos_token.empty()) named.insert(named.begin(), {"bos_token", settings.bos_token});
  if (!settings.chat_template.empty()) {
    ASSIGN_OR_RETURN(ChatTemplate chat_template,
                     ChatTemplate::Create(settings.chat_template, named));
    tokenizer->chat_template_ = std::make_unique<ChatTemplate>(std::move(chat_template));
  }
  tokenizer->fingerprint_ = Sha256({definition, settings.chat_template, settings.bos_token,
                                    settings.eos_token, absl::StrJoin(ends, ",")});
  tokenizer->settings_ = std::move(settings);
  return tokenizer;
}

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::FromTokenizerJson(
    absl::string_view tokenizer_json, TokenizerSettings settings) {
  ASSIGN_OR_RETURN(ffi::CrateTokenizer crate, ffi::CrateTokenizer::Create(tokenizer_json));
  ASSIGN_OR_RETURN(ffi::CrateTokenizer::Description description, crate.Describe());
  std::vector<std::pair<std::string, int32_t>> special;
  for (const int32_t id : description.special_ids) {
    special.emplace_back(description.tokens[id], id);
  }
  ASSIGN_OR_RETURN(const TokenTable::Definition definition, TableOf(std::move(description)));
  ASSIGN_OR_RETURN(TokenTable table, TokenTable::Create(definition));
  return Assemble(std::make_unique<CrateEngine>(std::move(crate), std::move(special)),
                  std::move(table), tokenizer_json, std::move(settings));
}

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::FromTekken(absl::string_view tekken_json,
                                                                 TokenizerSettings settings) {
  ASSIGN_OR_RETURN(const std::string tokenizer_json, TokenizerJsonOfTekken(tekken_json));
  if (settings.eos_token.empty()) settings.eos_token = "</s>";
  return FromTokenizerJson(tokenizer_json, std::move(settings));
}

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::FromSentencePiece(
    absl::string_view serialized, TokenizerSettings settings) {
  ASSIGN_OR_RETURN(SentencePieceModel model, SentencePieceModel::Parse(serialized));
  absl::optional<int32_t> bos_id;
  if (model.bos_id() >= 0) {
    bos_id = model.bos_id();
    if (settings.bos_token.empty()) settings.bos_token = model.pieces()[*bos_id].piece;
  }
  if (model.eos_id() >= 0 && settings.eos_token.empty()) {
    settings.eos_token = model.pieces()[model.eos_id()].piece;
  }
  ASSIGN_OR_RETURN(TokenTable table, TokenTable::Create(TableOf(model)));
  return Assemble(std::make_unique<SentencePieceEngine>(std::move(model), bos_id, absl::nullopt),
                  std::move(table), serialized, std::move(settings));
}

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::FromGguf(const GgufVocabulary& vocabulary) {
  const auto token = [&vocabulary](absl::optional<int32_t> id) -> std::string {
    if (!id.has_value() || *id < 0 || static_cast<size_t>(*id) >= vocabulary.tokens.size()) {
      return "";
    }
    return vocabulary.tokens[*id];
  };
  TokenizerSettings settings;
  settings.chat_template = vocabulary.chat_template;
  settings.bos_token = token(vocabulary.bos_token_id);
  settings.eos_token = token(vocabulary.eos_token_id);
  if (vocabulary.eos_token_id.has_value()) {
    settings.eos_token_ids.push_back(*vocabulary.eos_token_id);
  }
  if (vocabulary.eot_token_id.has_value()) {
    settings.eos_token_ids.push_back(*vocabulary.eot_token_id);
  }
  for (size_t id = 0; id < vocabulary.token_types.size() && id < vocabulary.tokens.size(); ++id) {
    if (vocabulary.token_types[id] == static_cast<int32_t>(PieceKind::kControl) &&
        std::find(std::begin(kEndTokens), std::end(kEndTokens), vocabulary.tokens[id]) !=
            std::end(kEndTokens)) {
      settings.eos_token_ids.push_back(static_cast<int32_t>(id));
    }
  }
  if (vocabulary.model == "gpt2") {
    ASSIGN_OR_RETURN(const std::string tokenizer_json, TokenizerJsonOfGguf(vocabulary));
    return FromTokenizerJson(tokenizer_json, std::move(settings));
  }
  if (vocabulary.model != "llama") {
    return absl::UnimplementedError(
        absl::StrCat("tokenizer.ggml.model is not one that is known here: ", vocabulary.model));
  }
  const size_t size = vocabulary.tokens.size();
  if (vocabulary.scores.size() != size || vocabulary.token_types.size() != size) {
    return absl::InvalidArgumentError(
        "tokenizer.ggml.scores and token_type must be as long as tokenizer.ggml.tokens");
  }
  std::vector<SentencePiece> pieces(size);
  std::string definition;
  for (size_t id = 0; id < size; ++id) {
    pieces[id] = {vocabulary.tokens[id], vocabulary.scores[id],
                  static_cast<PieceKind>(vocabulary.token_types[id])};
    absl::StrAppend(&definition, vocabulary.token_types[id], ":", vocabulary.scores[id], ":",
                    vocabulary.tokens[id], "\n");
  }
  absl::StatusOr<SentencePieceModel> model = SentencePieceModel::FromPieces(
      std::move(pieces), {.add_space_prefix = vocabulary.add_space_prefix.value_or(true)});
  if (!model.ok()) return status::Annotate(model.status(), "tokenizer.ggml");
  ASSIGN_OR_RETURN(TokenTable table, TokenTable::Create(TableOf(*model)));
  absl::optional<int32_t> bos_id;
  absl::optional<int32_t> eos_id;
  if (vocabulary.add_bos_token.value_or(true)) bos_id = vocabulary.bos_token_id;
  if (vocabulary.add_eos_token.value_or(false)) eos_id = vocabulary.eos_token_id;
  for (const auto& id : {bos_id, eos_id}) {
    if (id.has_value() && !table.Contains(*id)) {
      return absl::InvalidArgumentError(
          absl::StrCat("tokenizer.ggml: BOS or EOS is outside the vocabulary, id: ", *id));
    }
  }
  return Assemble(std::make_unique<SentencePieceEngine>(*std::move(model), bos_id, eos_id),
                  std::move(table), definition, std::move(settings));
}

absl::StatusOr<std::vector<int32_t>> Tokenizer::Encode(absl::string_view text,
                                                       const EncodeOptions& options) const {
  if (const size_t offset = FindInvalidUtf8(text); offset != absl::string_view::npos) {
    return absl::InvalidArgumentError(absl::StrCat("text is not valid UTF-8 at byte ", offset));
  }
  return engine_->Encode(text, options);
}

absl::StatusOr<std::vector<int32_t>> Tokenizer::EncodeContinuation(absl::string_view text) const {
  if (const size_t offset = FindInvalidUtf8(text); offset != absl::string_view::npos) {
    return absl::InvalidArgumentError(absl::StrCat("text is not valid UTF-8 at byte ", offset));
  }
  return engine_->EncodeContinuation(text, table_);
}

}  // namespace mneme::text
