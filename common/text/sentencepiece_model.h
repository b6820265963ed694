// A SentencePiece model through libsentencepiece, with the special tokens that it leaves to others.
// Internal to common/text: use tokenizer.h.
//
// Only standard types cross this header: the packaged sentencepiece header declares an absl
// namespace of its own and must not meet Abseil's in one file.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_set>
#include <vector>

namespace sentencepiece {
class SentencePieceProcessor;
}

namespace mneme::text {

// The kinds of a model's pieces, numbered as in its file (and in GGUF files).
enum class PieceKind : int32_t {
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6,
};

struct SentencePiece {
  std::string piece;
  float score = 0;
  PieceKind kind = PieceKind::kNormal;
};

// Immutable, so thread-safe.
class SentencePieceModel {
 public:
  // Returns null and sets `error` when `serialized` is not a usable model.
  static std::unique_ptr<SentencePieceModel> Parse(const std::string& serialized,
                                                   std::string* error);
  // The same for pieces with scores from elsewhere: a byte-pair model without normalisation.
  static std::unique_ptr<SentencePieceModel> FromPieces(const std::vector<SentencePiece>& pieces,
                                                        bool add_space_prefix, std::string* error);
  ~SentencePieceModel();

  // Text is UTF-8. Where `plain_text` is false, control tokens written out in the text become their
  // ids; text after one gets no space in front, as in models trained with `tokenizers`.
  std::vector<int32_t> Encode(std::string_view text, bool plain_text) const;
  // The same, control tokens recognised, for text that continues other text.
  std::vector<int32_t> EncodeContinuation(std::string_view text) const;

  const std::vector<SentencePiece>& pieces() const { return pieces_; }
  bool adds_space_prefix() const { return adds_space_prefix_; }
  int32_t bos_id() const { return bos_id_; }  // -1: none
  int32_t eos_id() const { return eos_id_; }  // -1: none

 private:
  SentencePieceModel();
  std::vector<int32_t> EncodeAround(std::string_view text, bool is_first) const;
  void AppendIds(std::string_view text, bool is_first, std::vector<int32_t>* ids) const;

  std::unique_ptr<sentencepiece::SentencePieceProcessor> processor_;
  // The same model, told to put no space in front.
  std::unique_ptr<sentencepiece::SentencePieceProcessor> continuation_;
  std::vector<SentencePiece> pieces_;
  std::unordered_set<std::string_view> control_;  // views of pieces_
  size_t longest_control_ = 0;
  bool control_begins_with_[256] = {};
  bool adds_space_prefix_ = false;
  int32_t bos_id_ = -1;
  int32_t eos_id_ = -1;
};

}  // namespace mneme::text
