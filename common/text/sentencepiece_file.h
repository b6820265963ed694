// The file format of SentencePiece models. Internal to common/text.
#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/text/sentencepiece_model.h"

namespace mneme::text {

// What a .model file holds, as far as it is used here.
struct SentencePieceFile {
  std::vector<SentencePiece> pieces;
  SentencePieceModel::Options options;
  bool is_byte_pair = false;
  bool normalizes = false;  // rewrites characters before splitting
};

// INVALID_ARGUMENT: `serialized` is not a sentencepiece.ModelProto.
absl::StatusOr<SentencePieceFile> ReadSentencePieceFile(absl::string_view serialized);

}  // namespace mneme::text
