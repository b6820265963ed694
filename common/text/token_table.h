// What every token of a vocabulary stands for in bytes: all that turning ids into text needs.
//
// A table is made by a Tokenizer (tokenizer.h) or from GetTokenizer's answer, so that a service
// which streams many answers detokenises them by itself with StreamDecoder (stream_decoder.h).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace mneme::text {

// What becomes of bytes that are not UTF-8. Reference tokenizers differ here, and the text of a
// whole sequence must be theirs.
enum class InvalidBytes {
  // One U+FFFD per maximal subpart, over all tokens' bytes joined: byte-level BPE.
  kMaximalSubpart,
  // A run of byte tokens with any fault becomes one U+FFFD per byte: `tokenizers`' ByteFallback.
  kWholeRun,
  // Within a run of byte tokens every byte that begins no character becomes U+FFFD: SentencePiece.
  kEachByte,
};

// Immutable, so thread-safe.
class TokenTable {
 public:
  struct Definition {
    std::vector<std::string> pieces;   // [V] bytes of each id; "" for an id that does not exist
    std::vector<int32_t> special_ids;  // left out by skip_special_tokens
    std::vector<int32_t> byte_ids;     // byte tokens; none for kMaximalSubpart
    InvalidBytes invalid_bytes = InvalidBytes::kMaximalSubpart;
    bool strip_leading_space = false;  // the text of a whole sequence loses one space in front
  };

  // INVALID_ARGUMENT: an id outside [0, V), or a byte token that is not one byte.
  static absl::StatusOr<TokenTable> Create(const Definition& definition);

  int32_t size() const { return static_cast<int32_t>(flags_.size()); }
  bool Contains(int32_t id) const { return id >= 0 && id < size(); }
  // `id` is in [0, V).
  absl::string_view Piece(int32_t id) const {
    return absl::string_view(bytes_).substr(offsets_[id], offsets_[id + 1] - offsets_[id]);
  }
  bool IsSpecial(int32_t id) const { return (flags_[id] & kSpecial) != 0; }
  bool IsByte(int32_t id) const { return (flags_[id] & kByte) != 0; }
  InvalidBytes invalid_bytes() const { return invalid_bytes_; }
  bool strip_leading_space() const { return strip_leading_space_; }
  std::vector<int32_t> SpecialIds() const { return IdsWith(kSpecial); }
  std::vector<int32_t> ByteIds() const { return IdsWith(kByte); }

  // Returns the text of a whole sequence. INVALID_ARGUMENT: an id outside [0, V).
  absl::StatusOr<std::string> Decode(absl::Span<const int32_t> ids, bool skip_special_tokens) const;

 private:
  static constexpr uint8_t kSpecial = 1;
  static constexpr uint8_t kByte = 2;

  TokenTable() = default;
  std::vector<int32_t> IdsWith(uint8_t flag) const;

  std::string bytes_;
  std::vector<uint32_t> offsets_;  // [V + 1] into bytes_
  std::vector<uint8_t> flags_;     // [V]
  InvalidBytes invalid_bytes_ = InvalidBytes::kMaximalSubpart;
  bool strip_leading_space_ = false;
};

}  // namespace mneme::text
