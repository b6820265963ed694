// SentencePiece-style byte-pair encoding: .model files and the vocabularies of GGUF files.
// Internal to common/text: use tokenizer.h.
//
// An implementation of its own, since the packaged libsentencepiece exports an old copy of
// protobuf's symbols: a process that also links the system's protobuf crashes before main().
// It does what that library does (Kudo and Richardson, arXiv 1808.06226; merging as in Sennrich et
// al., arXiv 1508.07909, by score, then from the left); golden tests hold it to that.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

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

// SentencePiece writes a space as U+2581.
inline constexpr absl::string_view kSpaceMark = "\xe2\x96\x81";

// Immutable, so thread-safe.
class SentencePieceModel {
 public:
  struct Options {
    bool add_space_prefix = true;
    bool remove_extra_spaces = false;  // runs of spaces become one, those at both ends go
    std::string bos_piece = "<s>";
    std::string eos_piece = "</s>";
  };

  // Reads a .model file's bytes. INVALID_ARGUMENT: not a model. UNIMPLEMENTED: not a byte-pair
  // model, or one that normalises text.
  static absl::StatusOr<SentencePieceModel> Parse(absl::string_view serialized);
  // INVALID_ARGUMENT: two pieces are the same, or a byte piece is not "<0xHH>".
  static absl::StatusOr<SentencePieceModel> FromPieces(std::vector<SentencePiece> pieces,
                                                       Options options);

  SentencePieceModel(SentencePieceModel&&) = default;
  SentencePieceModel& operator=(SentencePieceModel&&) = default;

  // `text` is UTF-8. Where `plain_text` is false, control tokens written out in the text become
  // their ids; text after one gets no space in front, as in models trained with `tokenizers`.
  std::vector<int32_t> Encode(absl::string_view text, bool plain_text) const;
  // The same, control tokens recognised, for text that continues other text.
  std::vector<int32_t> EncodeContinuation(absl::string_view text) const;

  const std::vector<SentencePiece>& pieces() const { return pieces_; }
  bool adds_space_prefix() const { return options_.add_space_prefix; }
  int32_t bos_id() const { return bos_id_; }  // -1: none
  int32_t eos_id() const { return eos_id_; }  // -1: none

 private:
  struct Symbol;
  class Merger;

  SentencePieceModel() = default;
  std::vector<int32_t> EncodeAround(absl::string_view text, bool is_first) const;
  void AppendIds(absl::string_view text, bool is_first, std::vector<int32_t>* ids) const;
  std::string Normalize(absl::string_view text, bool is_first) const;
  void AppendUnknown(absl::string_view piece, std::vector<int32_t>* ids) const;
  // Length of the longest user-defined piece at the front of `text`, 0 for none.
  size_t UserDefinedAtFront(absl::string_view text) const;

  Options options_;
  std::vector<SentencePiece> pieces_;
  // Keys are views of pieces_' strings, which do not move with the model's vector.
  absl::flat_hash_map<absl::string_view, int32_t> ids_;  // pieces that text can become
  absl::flat_hash_map<absl::string_view, int32_t> control_;
  absl::flat_hash_set<absl::string_view> user_defined_;
  size_t longest_control_ = 0;
  size_t longest_user_defined_ = 0;
  bool control_begins_with_[256] = {};
  bool user_defined_begins_with_[256] = {};
  int32_t byte_ids_[256] = {};
  bool has_bytes_ = false;
  int32_t unk_id_ = 0;
  int32_t bos_id_ = -1;
  int32_t eos_id_ = -1;
};

}  // namespace mneme::text
