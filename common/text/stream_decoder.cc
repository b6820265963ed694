#include "common/text/stream_decoder.h"

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/text/utf8.h"

namespace mneme::text {

StreamDecoder::StreamDecoder(const TokenTable& table, Options options)
    : table_(table), options_(std::move(options)) {
  auto& stop = options_.stop;
  stop.erase(std::remove(stop.begin(), stop.end(), std::string()), stop.end());
  for (const std::string& string : stop) longest_stop_ = std::max(longest_stop_, string.size());
}

absl::StatusOr<std::string> StreamDecoder::Push(absl::Span<const int32_t> ids) {
  for (const int32_t id : ids) {
    if (!table_.Contains(id)) {
      return absl::InvalidArgumentError(
          absl::StrCat("token id is outside the vocabulary of ", table_.size(), " ids: ", id));
    }
    if (!stopped_) AddPiece(id);
  }
  return TakeText(/*is_end=*/false);
}

std::string StreamDecoder::Finish() {
  if (stopped_) return "";
  if (table_.invalid_bytes() == InvalidBytes::kMaximalSubpart) {
    if (!bytes_.empty()) AddText(kReplacement);  // what is held is one cut character
    bytes_.clear();
  } else {
    EndByteRun();
  }
  return TakeText(/*is_end=*/true);
}

void StreamDecoder::AddPiece(int32_t id) {
  if (options_.skip_special_tokens && table_.IsSpecial(id)) return;
  const absl::string_view piece = table_.Piece(id);
  switch (table_.invalid_bytes()) {
    case InvalidBytes::kMaximalSubpart:
      AddBytes(piece, /*one_mark_per_byte=*/false);
      return;
    case InvalidBytes::kWholeRun:
      if (table_.IsByte(id)) {
        bytes_.append(piece.data(), piece.size());
      } else if (!piece.empty()) {
        EndByteRun();
        AddText(piece);
      }
      return;
    case InvalidBytes::kEachByte:
      if (table_.IsByte(id)) {
        AddBytes(piece, /*one_mark_per_byte=*/true);
      } else if (!piece.empty()) {
        EndByteRun();
        AddText(piece);
      }
      return;
  }
}

void StreamDecoder::AddBytes(absl::string_view bytes, bool one_mark_per_byte) {
  if (bytes_.empty() && IsUtf8(bytes)) {
    AddText(bytes);
    return;
  }
  bytes_.append(bytes.data(), bytes.size());
  absl::string_view rest = bytes_;
  while (!rest.empty()) {
    const Utf8Front front = ReadUtf8(rest);
    if (front.kind == Utf8Front::kIncomplete) break;
    size_t size = front.size;
    if (front.kind == Utf8Front::kCharacter) {
      AddText(rest.substr(0, size));
    } else {
      if (one_mark_per_byte) size = 1;
      AddText(kReplacement);
    }
    rest.remove_prefix(size);
  }
  bytes_.erase(0, bytes_.size() - rest.size());
}

void StreamDecoder::EndByteRun() {
  if (bytes_.empty()) return;
  // For kEachByte only a cut character is left here, which is not UTF-8 either.
  if (IsUtf8(bytes_)) {
    AddText(bytes_);
  } else {
    for (size_t count = bytes_.size(); count > 0; --count) AddText(kReplacement);
  }
  bytes_.clear();
}

void StreamDecoder::AddText(absl::string_view text) {
  if (at_start_ && !text.empty()) {
    at_start_ = false;
    if (table_.strip_leading_space() && text.front() == ' ') text.remove_prefix(1);
  }
  text_.append(text.data(), text.size());
}

std::string StreamDecoder::TakeText(bool is_end) {
  if (options_.stop.empty()) return std::exchange(text_, std::string());
  size_t first_begin = std::string::npos;
  size_t first_end = std::string::npos;
  for (const std::string& stop : options_.stop) {
    const size_t begin = text_.find(stop);
    if (begin == std::string::npos) continue;
    const size_t end = begin + stop.size();
    if (end < first_end || (end == first_end && begin < first_begin)) {
      first_begin = begin;
      first_end = end;
      stop_met_ = stop;
    }
  }
  if (first_begin != std::string::npos) {
    stopped_ = true;
    std::string text = text_.substr(0, first_begin);
    text_.clear();
    bytes_.clear();
    return text;
  }
  if (is_end) return std::exchange(text_, std::string());
  // The earliest point from which the rest is the beginning of some stop string.
  size_t keep = text_.size() - std::min(text_.size(), longest_stop_ - 1);
  for (; keep < text_.size(); ++keep) {
    const absl::string_view rest = absl::string_view(text_).substr(keep);
    if (std::any_of(options_.stop.begin(), options_.stop.end(), [rest](const std::string& stop) {
          return rest.size() < stop.size() && absl::StartsWith(stop, rest);
        })) {
      break;
    }
  }
  std::string text = text_.substr(0, keep);
  text_.erase(0, keep);
  return text;
}

}  // namespace mneme::text
