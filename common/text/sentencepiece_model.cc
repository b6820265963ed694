#include "common/text/sentencepiece_model.h"

#include <algorithm>
#include <queue>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/status/status_macros.h"
#include "common/text/sentencepiece_file.h"
#include "common/text/utf8.h"

namespace mneme::text {
namespace {

constexpr int32_t kNone = -1;

// The value of "<0xHH>", -1 for anything else.
int ByteOf(absl::string_view piece) {
  if (piece.size() != 6 || !absl::StartsWith(piece, "<0x") || piece[5] != '>') return -1;
  int value = 0;
  if (!absl::SimpleHexAtoi(piece.substr(3, 2), &value)) return -1;
  return value;
}

}  // namespace

// A stretch of the text that is one piece so far. Merged-away symbols are empty.
struct SentencePieceModel::Symbol {
  absl::string_view piece;
  int32_t previous = kNone;
  int32_t next = kNone;
  bool is_frozen = false;  // a user-defined piece: never merged
};

// Merges the neighbours whose joined piece has the best score until none is a piece.
class SentencePieceModel::Merger {
 public:
  Merger(const SentencePieceModel& model, std::vector<Symbol> symbols)
      : model_(model), symbols_(std::move(symbols)) {}

  std::vector<int32_t> Run() {
    for (size_t index = 1; index < symbols_.size(); ++index) {
      Consider(static_cast<int32_t>(index) - 1, static_cast<int32_t>(index));
    }
    while (!queue_.empty()) {
      const Pair pair = queue_.top();
      queue_.pop();
      Symbol& left = symbols_[pair.left];
      Symbol& right = symbols_[pair.right];
      // One of the two was merged with another neighbour meanwhile.
      if (left.piece.empty() || right.piece.empty() ||
          left.piece.size() + right.piece.size() != pair.size) {
        continue;
      }
      left.piece = Joined(left, right);
      left.next = right.next;
      if (right.next != kNone) symbols_[right.next].previous = pair.left;
      right.piece = {};
      Consider(left.previous, pair.left);
      Consider(pair.left, left.next);
    }
    std::vector<int32_t> ids;
    if (symbols_.empty()) return ids;
    for (int32_t index = 0; index != kNone; index = symbols_[index].next) {
      Append(symbols_[index].piece, &ids);
    }
    return ids;
  }

 private:
  struct Pair {
    int32_t left;
    int32_t right;
    float score;
    size_t size;
    // The best pair is the one with the highest score, then the leftmost.
    bool operator<(const Pair& other) const {
      return score < other.score || (score == other.score && left > other.left);
    }
  };

  static absl::string_view Joined(const Symbol& left, const Symbol& right) {
    return {left.piece.data(), left.piece.size() + right.piece.size()};
  }

  void Consider(int32_t left, int32_t right) {
    if (left == kNone || right == kNone) return;
    if (symbols_[left].is_frozen || symbols_[right].is_frozen) return;
    const absl::string_view joined = Joined(symbols_[left], symbols_[right]);
    const auto found = model_.ids_.find(joined);
    if (found == model_.ids_.end()) return;
    const SentencePiece& piece = model_.pieces_[found->second];
    queue_.push({left, right, piece.score, joined.size()});
    if (piece.kind == PieceKind::kUnused) {
      splits_.try_emplace(joined, symbols_[left].piece, symbols_[right].piece);
    }
  }

  // An unused piece may only be passed through on the way to a larger one: what is left of it is
  // taken apart again.
  void Append(absl::string_view piece, std::vector<int32_t>* ids) {
    const auto found = model_.ids_.find(piece);
    if (found == model_.ids_.end()) {
      model_.AppendUnknown(piece, ids);
      return;
    }
    if (model_.pieces_[found->second].kind == PieceKind::kUnused) {
      if (const auto split = splits_.find(piece); split != splits_.end()) {
        const auto [left, right] = split->second;
        Append(left, ids);
        Append(right, ids);
        return;
      }
    }
    ids->push_back(found->second);
  }

  const SentencePieceModel& model_;
  std::vector<Symbol> symbols_;
  std::priority_queue<Pair> queue_;
  absl::flat_hash_map<absl::string_view, std::pair<absl::string_view, absl::string_view>> splits_;
};

absl::StatusOr<SentencePieceModel> SentencePieceModel::Parse(absl::string_view serialized) {
  ASSIGN_OR_RETURN(SentencePieceFile file, ReadSentencePieceFile(serialized));
  if (!file.is_byte_pair) {
    return absl::UnimplementedError(
        "SentencePiece model is not a byte-pair model: use the model's tokenizer.json instead");
  }
  if (file.normalizes) {
    return absl::UnimplementedError(
        "SentencePiece model rewrites characters: use the model's tokenizer.json instead");
  }
  return FromPieces(std::move(file.pieces), std::move(file.options));
}

absl::StatusOr<SentencePieceModel> SentencePieceModel::FromPieces(std::vector<SentencePiece> pieces,
                                                                  Options options) {
  SentencePieceModel model;
  model.options_ = std::move(options);
  model.pieces_ = std::move(pieces);
  std::fill(std::begin(model.byte_ids_), std::end(model.byte_ids_), kNone);
  for (size_t index = 0; index < model.pieces_.size(); ++index) {
    const SentencePiece& piece = model.pieces_[index];
    const absl::string_view text = piece.piece;
    const auto id = static_cast<int32_t>(index);
    if (text.empty()) {
      return absl::InvalidArgumentError(absl::StrCat("a piece is empty, id: ", id));
    }
    const auto front = static_cast<uint8_t>(text[0]);
    bool is_new = true;
    switch (piece.kind) {
      case PieceKind::kByte: {
        const int byte = ByteOf(text);
        if (byte < 0) {
          return absl::InvalidArgumentError(absl::StrCat("not a byte piece, id: ", id));
        }
        model.byte_ids_[byte] = id;
        model.has_bytes_ = true;
        break;
      }
      case PieceKind::kUnknown:
      case PieceKind::kControl:
        is_new = model.control_.emplace(text, id).second;
        model.longest_control_ = std::max(model.longest_control_, text.size());
        model.control_begins_with_[front] = true;
        if (piece.kind == PieceKind::kUnknown) model.unk_id_ = id;
        if (text == model.options_.bos_piece) model.bos_id_ = id;
        if (text == model.options_.eos_piece) model.eos_id_ = id;
        break;
      case PieceKind::kUserDefined:
        is_new = model.ids_.emplace(text, id).second;
        model.user_defined_.insert(text);
        model.longest_user_defined_ = std::max(model.longest_user_defined_, text.size());
        model.user_defined_begins_with_[front] = true;
        break;
      case PieceKind::kNormal:
      case PieceKind::kUnused:
        is_new = model.ids_.emplace(text, id).second;
        break;
      default:
        return absl::InvalidArgumentError(absl::StrCat("a piece is of an unknown kind, id: ", id));
    }
    if (!is_new) {
      return absl::InvalidArgumentError(
          absl::StrCat("a piece is in the vocabulary twice, second id: ", id));
    }
  }
  return model;
}

size_t SentencePieceModel::UserDefinedAtFront(absl::string_view text) const {
  if (!user_defined_begins_with_[static_cast<uint8_t>(text[0])]) return 0;
  for (size_t size = std::min(longest_user_defined_, text.size()); size > 0; --size) {
    if (user_defined_.contains(text.substr(0, size))) return size;
  }
  return 0;
}

std::string SentencePieceModel::Normalize(absl::string_view text, bool is_first) const {
  std::string normalized;
  normalized.reserve(text.size() + text.size() / 2);
  if (options_.remove_extra_spaces) {
    // Within a text; a text that continues another keeps what stands between the two.
    while (is_first && !text.empty() && text.front() == ' ') text.remove_prefix(1);
    while (!text.empty() && text.back() == ' ') text.remove_suffix(1);
  }
  if (text.empty()) return normalized;
  if (is_first && options_.add_space_prefix) absl::StrAppend(&normalized, kSpaceMark);
  bool was_space = false;
  for (const char c : text) {
    if (c != ' ') {
      normalized.push_back(c);
    } else if (!was_space || !options_.remove_extra_spaces) {
      absl::StrAppend(&normalized, kSpaceMark);
    }
    was_space = c == ' ';
  }
  return normalized;
}

void SentencePieceModel::AppendUnknown(absl::string_view piece, std::vector<int32_t>* ids) const {
  if (has_bytes_) {
    for (const char c : piece) {
      const int32_t id = byte_ids_[static_cast<uint8_t>(c)];
      ids->push_back(id == kNone ? unk_id_ : id);
    }
    return;
  }
  if (ids->empty() || ids->back() != unk_id_) ids->push_back(unk_id_);
}

void SentencePieceModel::AppendIds(absl::string_view text, bool is_first,
                                   std::vector<int32_t>* ids) const {
  const std::string normalized = Normalize(text, is_first);
  std::vector<Symbol> symbols;
  symbols.reserve(normalized.size());
  for (absl::string_view rest = normalized; !rest.empty();) {
    Symbol symbol;
    size_t size = UserDefinedAtFront(rest);
    symbol.is_frozen = size > 0;
    if (size == 0) size = ReadUtf8(rest).size;
    symbol.piece = rest.substr(0, size);
    const auto index = static_cast<int32_t>(symbols.size());
    symbol.previous = index - 1;
    if (index > 0) symbols.back().next = index;
    symbols.push_back(symbol);
    rest.remove_prefix(size);
  }
  const std::vector<int32_t> part = Merger(*this, std::move(symbols)).Run();
  ids->insert(ids->end(), part.begin(), part.end());
}

std::vector<int32_t> SentencePieceModel::Encode(absl::string_view text, bool plain_text) const {
  if (!plain_text) return EncodeAround(text, /*is_first=*/true);
  std::vector<int32_t> ids;
  AppendIds(text, /*is_first=*/true, &ids);
  return ids;
}

std::vector<int32_t> SentencePieceModel::EncodeContinuation(absl::string_view text) const {
  return EncodeAround(text, /*is_first=*/false);
}

std::vector<int32_t> SentencePieceModel::EncodeAround(absl::string_view text, bool is_first) const {
  std::vector<int32_t> ids;
  size_t begin = 0;  // of the text not encoded yet
  for (size_t at = 0; at < text.size();) {
    int32_t id = kNone;
    size_t size = 0;
    if (control_begins_with_[static_cast<uint8_t>(text[at])]) {
      for (size = std::min(longest_control_, text.size() - at); size > 0; --size) {
        const auto found = control_.find(text.substr(at, size));
        if (found == control_.end()) continue;
        id = found->second;
        break;
      }
    }
    if (id == kNone) {
      ++at;
      continue;
    }
    AppendIds(text.substr(begin, at - begin), is_first && begin == 0, &ids);
    ids.push_back(id);
    at += size;
    begin = at;
  }
  AppendIds(text.substr(begin), is_first && begin == 0, &ids);
  return ids;
}

}  // namespace mneme::text
