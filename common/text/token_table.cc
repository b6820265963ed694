#include "common/text/token_table.h"

#include "absl/strings/str_cat.h"
#include "common/status/status_macros.h"
#include "common/text/stream_decoder.h"

namespace mneme::text {

absl::StatusOr<TokenTable> TokenTable::Create(const Definition& definition) {
  TokenTable table;
  table.invalid_bytes_ = definition.invalid_bytes;
  table.strip_leading_space_ = definition.strip_leading_space;
  size_t size = 0;
  for (const std::string& piece : definition.pieces) size += piece.size();
  if (size > UINT32_MAX || definition.pieces.size() > INT32_MAX) {
    return absl::InvalidArgumentError(absl::StrCat("vocabulary is too large, bytes: ", size));
  }
  table.bytes_.reserve(size);
  table.offsets_.reserve(definition.pieces.size() + 1);
  table.offsets_.push_back(0);
  for (const std::string& piece : definition.pieces) {
    table.bytes_ += piece;
    table.offsets_.push_back(static_cast<uint32_t>(table.bytes_.size()));
  }
  table.flags_.assign(definition.pieces.size(), 0);
  for (const int32_t id : definition.special_ids) {
    if (!table.Contains(id)) {
      return absl::InvalidArgumentError(
          absl::StrCat("special token id is outside the vocabulary: ", id));
    }
    table.flags_[id] |= kSpecial;
  }
  for (const int32_t id : definition.byte_ids) {
    if (!table.Contains(id) || table.Piece(id).size() != 1) {
      return absl::InvalidArgumentError(absl::StrCat("not a byte token, id: ", id));
    }
    table.flags_[id] |= kByte;
  }
  return table;
}

std::vector<int32_t> TokenTable::IdsWith(uint8_t flag) const {
  std::vector<int32_t> ids;
  for (int32_t id = 0; id < size(); ++id) {
    if ((flags_[id] & flag) != 0) ids.push_back(id);
  }
  return ids;
}

absl::StatusOr<std::string> TokenTable::Decode(absl::Span<const int32_t> ids,
                                               bool skip_special_tokens) const {
  StreamDecoder decoder(*this, {.stop = {}, .skip_special_tokens = skip_special_tokens});
  ASSIGN_OR_RETURN(std::string text, decoder.Push(ids));
  text += decoder.Finish();
  return text;
}

}  // namespace mneme::text
