#include "common/text/sentencepiece_file.h"

#include <cstdint>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "common/status/status_macros.h"

namespace mneme::text {
namespace {

// Field numbers of sentencepiece_model.proto.
constexpr uint32_t kModelPieces = 1;
constexpr uint32_t kModelTrainer = 2;
constexpr uint32_t kModelNormalizer = 3;
constexpr uint32_t kPieceText = 1;
constexpr uint32_t kPieceScore = 2;
constexpr uint32_t kPieceKind = 3;
constexpr uint32_t kTrainerModelType = 3;
constexpr uint32_t kTrainerBosPiece = 46;
constexpr uint32_t kTrainerEosPiece = 47;
constexpr uint32_t kNormalizerCharsMap = 2;
constexpr uint32_t kNormalizerAddDummyPrefix = 3;
constexpr uint32_t kNormalizerRemoveExtraWhitespaces = 4;
constexpr uint64_t kBytePairModel = 2;

absl::Status Damaged() {
  return absl::InvalidArgumentError("not a SentencePiece model: its fields cannot be read");
}

// One field of a protobuf message.
struct Field {
  uint32_t number = 0;
  uint64_t value = 0;       // of numbers; the bits of a fixed32
  absl::string_view bytes;  // of texts and messages
};

// Reads a message field by field, never past its end.
class ProtoReader {
 public:
  explicit ProtoReader(absl::string_view bytes) : rest_(bytes) {}

  bool AtEnd() const { return rest_.empty(); }

  absl::StatusOr<Field> Next() {
    ASSIGN_OR_RETURN(const uint64_t tag, Varint());
    Field field;
    field.number = static_cast<uint32_t>(tag >> 3);
    switch (tag & 7) {
      case 0: {
        ASSIGN_OR_RETURN(field.value, Varint());
        return field;
      }
      case 1: {
        ASSIGN_OR_RETURN(field.bytes, Take(sizeof(uint64_t)));
        return field;
      }
      case 2: {
        ASSIGN_OR_RETURN(const uint64_t size, Varint());
        ASSIGN_OR_RETURN(field.bytes, Take(size));
        return field;
      }
      case 5: {
        ASSIGN_OR_RETURN(field.bytes, Take(sizeof(uint32_t)));
        uint32_t bits = 0;
        std::memcpy(&bits, field.bytes.data(), sizeof(bits));
        field.value = bits;
        return field;
      }
      default:
        return Damaged();
    }
  }

 private:
  absl::StatusOr<uint64_t> Varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      if (rest_.empty()) return Damaged();
      const auto byte = static_cast<uint8_t>(rest_.front());
      rest_.remove_prefix(1);
      value |= static_cast<uint64_t>(byte & 0x7f) << shift;
      if (byte < 0x80) return value;
    }
    return Damaged();
  }

  absl::StatusOr<absl::string_view> Take(uint64_t size) {
    if (size > rest_.size()) return Damaged();
    const absl::string_view taken = rest_.substr(0, size);
    rest_.remove_prefix(size);
    return taken;
  }

  absl::string_view rest_;
};

absl::StatusOr<SentencePiece> ReadPiece(absl::string_view bytes) {
  SentencePiece piece;
  ProtoReader reader(bytes);
  while (!reader.AtEnd()) {
    ASSIGN_OR_RETURN(const Field field, reader.Next());
    if (field.number == kPieceText) piece.piece = std::string(field.bytes);
    if (field.number == kPieceKind) piece.kind = static_cast<PieceKind>(field.value);
    if (field.number == kPieceScore) {
      const auto bits = static_cast<uint32_t>(field.value);
      std::memcpy(&piece.score, &bits, sizeof(bits));
    }
  }
  return piece;
}

}  // namespace

absl::StatusOr<SentencePieceFile> ReadSentencePieceFile(absl::string_view serialized) {
  SentencePieceFile file;
  // The format's defaults; files leave out what equals them.
  file.options.remove_extra_spaces = true;
  ProtoReader reader(serialized);
  while (!reader.AtEnd()) {
    ASSIGN_OR_RETURN(const Field field, reader.Next());
    ProtoReader inner(field.bytes);
    if (field.number == kModelPieces) {
      ASSIGN_OR_RETURN(SentencePiece piece, ReadPiece(field.bytes));
      file.pieces.push_back(std::move(piece));
    } else if (field.number == kModelTrainer) {
      while (!inner.AtEnd()) {
        ASSIGN_OR_RETURN(const Field trainer, inner.Next());
        if (trainer.number == kTrainerModelType)
          file.is_byte_pair = trainer.value == kBytePairModel;
        if (trainer.number == kTrainerBosPiece) file.options.bos_piece = std::string(trainer.bytes);
        if (trainer.number == kTrainerEosPiece) file.options.eos_piece = std::string(trainer.bytes);
      }
    } else if (field.number == kModelNormalizer) {
      while (!inner.AtEnd()) {
        ASSIGN_OR_RETURN(const Field normalizer, inner.Next());
        if (normalizer.number == kNormalizerCharsMap) file.normalizes = !normalizer.bytes.empty();
        if (normalizer.number == kNormalizerAddDummyPrefix) {
          file.options.add_space_prefix = normalizer.value != 0;
        }
        if (normalizer.number == kNormalizerRemoveExtraWhitespaces) {
          file.options.remove_extra_spaces = normalizer.value != 0;
        }
      }
    }
  }
  if (file.pieces.empty()) return absl::InvalidArgumentError("SentencePiece model has no pieces");
  return file;
}

}  // namespace mneme::text
