#include "common/text/sentencepiece_model.h"

#include <sentencepiece_processor.h>

#include <algorithm>
#include <cstring>

namespace mneme::text {
namespace {

// Writes the few protobuf fields of a model file: the package ships no header for its messages.
class ProtoWriter {
 public:
  void Varint(int field, uint64_t value) {
    Raw(static_cast<uint64_t>(field) << 3);
    Raw(value);
  }
  void Float(int field, float value) {
    Raw(static_cast<uint64_t>(field) << 3 | 5);
    char bytes[sizeof(value)];
    std::memcpy(bytes, &value, sizeof(value));
    bytes_.append(bytes, sizeof(bytes));
  }
  void Bytes(int field, std::string_view value) {
    Raw(static_cast<uint64_t>(field) << 3 | 2);
    Raw(value.size());
    bytes_.append(value);
  }
  const std::string& bytes() const { return bytes_; }

 private:
  void Raw(uint64_t value) {
    for (; value >= 0x80; value >>= 7) bytes_.push_back(static_cast<char>(value | 0x80));
    bytes_.push_back(static_cast<char>(value));
  }

  std::string bytes_;
};

// Field numbers of sentencepiece_model.proto.
constexpr int kModelPieces = 1;
constexpr int kModelTrainer = 2;
constexpr int kModelNormalizer = 3;
constexpr int kPieceText = 1;
constexpr int kPieceScore = 2;
constexpr int kPieceKind = 3;
constexpr int kTrainerModelType = 3;
constexpr int kTrainerByteFallback = 35;
constexpr int kTrainerUnkPiece = 45;
constexpr int kNormalizerName = 1;
constexpr int kNormalizerAddDummyPrefix = 3;
constexpr int kNormalizerRemoveExtraWhitespaces = 4;
constexpr uint64_t kBytePairModel = 2;

// A message field that occurs twice is merged, so these bytes appended to a model change one flag.
std::string NoDummyPrefix() {
  ProtoWriter normalizer;
  normalizer.Varint(kNormalizerAddDummyPrefix, 0);
  ProtoWriter model;
  model.Bytes(kModelNormalizer, normalizer.bytes());
  return model.bytes();
}

}  // namespace

SentencePieceModel::SentencePieceModel() = default;
SentencePieceModel::~SentencePieceModel() = default;

std::unique_ptr<SentencePieceModel> SentencePieceModel::Parse(const std::string& serialized,
                                                              std::string* error) {
  // Private constructor: make_unique cannot.
  std::unique_ptr<SentencePieceModel> model(new SentencePieceModel);
  model->processor_ = std::make_unique<sentencepiece::SentencePieceProcessor>();
  model->continuation_ = std::make_unique<sentencepiece::SentencePieceProcessor>();
  auto status = model->processor_->LoadFromSerializedProto(serialized);
  if (status.ok()) {
    status = model->continuation_->LoadFromSerializedProto(serialized + NoDummyPrefix());
  }
  if (!status.ok()) {
    *error = status.ToString();
    return nullptr;
  }
  const auto& processor = *model->processor_;
  const int size = processor.GetPieceSize();
  model->pieces_.reserve(size);
  for (int id = 0; id < size; ++id) {
    PieceKind kind = PieceKind::kNormal;
    if (processor.IsUnknown(id)) kind = PieceKind::kUnknown;
    if (processor.IsControl(id)) kind = PieceKind::kControl;
    if (processor.IsUnused(id)) kind = PieceKind::kUnused;
    if (processor.IsByte(id)) kind = PieceKind::kByte;
    model->pieces_.push_back({processor.IdToPiece(id), processor.GetScore(id), kind});
  }
  for (const SentencePiece& piece : model->pieces_) {
    if (piece.kind != PieceKind::kControl && piece.kind != PieceKind::kUnknown) continue;
    if (piece.piece.empty()) continue;
    model->control_.insert(piece.piece);
    model->longest_control_ = std::max(model->longest_control_, piece.piece.size());
    model->control_begins_with_[static_cast<uint8_t>(piece.piece[0])] = true;
  }
  model->bos_id_ = processor.bos_id();
  model->eos_id_ = processor.eos_id();
  // The processor does not tell its setting; the text of nothing but a letter does.
  std::vector<int> with;
  std::vector<int> without;
  if (processor.Encode("a", &with).ok() && model->continuation_->Encode("a", &without).ok()) {
    model->adds_space_prefix_ = with != without;
  }
  return model;
}

std::unique_ptr<SentencePieceModel> SentencePieceModel::FromPieces(
    const std::vector<SentencePiece>& pieces, bool add_space_prefix, std::string* error) {
  ProtoWriter model;
  ProtoWriter trainer;
  bool has_bytes = false;
  for (const SentencePiece& piece : pieces) {
    ProtoWriter writer;
    writer.Bytes(kPieceText, piece.piece);
    writer.Float(kPieceScore, piece.score);
    writer.Varint(kPieceKind, static_cast<uint64_t>(piece.kind));
    model.Bytes(kModelPieces, writer.bytes());
    if (piece.kind == PieceKind::kByte) has_bytes = true;
    if (piece.kind == PieceKind::kUnknown) trainer.Bytes(kTrainerUnkPiece, piece.piece);
  }
  trainer.Varint(kTrainerModelType, kBytePairModel);
  trainer.Varint(kTrainerByteFallback, has_bytes ? 1 : 0);
  ProtoWriter normalizer;
  normalizer.Bytes(kNormalizerName, "identity");
  normalizer.Varint(kNormalizerAddDummyPrefix, add_space_prefix ? 1 : 0);
  normalizer.Varint(kNormalizerRemoveExtraWhitespaces, 0);
  model.Bytes(kModelTrainer, trainer.bytes());
  model.Bytes(kModelNormalizer, normalizer.bytes());
  return Parse(model.bytes(), error);
}

void SentencePieceModel::AppendIds(std::string_view text, bool is_first,
                                   std::vector<int32_t>* ids) const {
  if (text.empty()) return;
  std::vector<int> part;
  const auto& processor = is_first ? *processor_ : *continuation_;
  // Encoding fails only for a model that is not loaded.
  if (!processor.Encode(text, &part).ok()) return;
  ids->insert(ids->end(), part.begin(), part.end());
}

std::vector<int32_t> SentencePieceModel::Encode(std::string_view text, bool plain_text) const {
  if (!plain_text) return EncodeAround(text, /*is_first=*/true);
  std::vector<int32_t> ids;
  AppendIds(text, /*is_first=*/true, &ids);
  return ids;
}

std::vector<int32_t> SentencePieceModel::EncodeContinuation(std::string_view text) const {
  return EncodeAround(text, /*is_first=*/false);
}

std::vector<int32_t> SentencePieceModel::EncodeAround(std::string_view text, bool is_first) const {
  std::vector<int32_t> ids;
  size_t begin = 0;  // of the text not encoded yet
  for (size_t at = 0; at < text.size();) {
    size_t size = 0;
    if (control_begins_with_[static_cast<uint8_t>(text[at])]) {
      for (size = std::min(longest_control_, text.size() - at); size > 0; --size) {
        if (control_.contains(text.substr(at, size))) break;
      }
    }
    if (size == 0) {
      ++at;
      continue;
    }
    AppendIds(text.substr(begin, at - begin), is_first && begin == 0, &ids);
    ids.push_back(processor_->PieceToId(text.substr(at, size)));
    at += size;
    begin = at;
  }
  AppendIds(text.substr(begin), is_first && begin == 0, &ids);
  return ids;
}

}  // namespace mneme::text
