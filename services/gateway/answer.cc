#include "services/gateway/answer.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/status/annotate.h"
#include "common/status/status_macros.h"

namespace mneme::gateway {
namespace {

namespace iv1 = inference::v1;

}  // namespace

Answer::Answer(const Vocabulary& vocabulary, Options options)
    : vocabulary_(vocabulary),
      options_(std::move(options)),
      decoder_(options_.continues_text ? vocabulary.middle : vocabulary.table,
               {.stop = options_.stop, .skip_special_tokens = true}) {}

bool Answer::IsEnd(int32_t id) const {
  return std::count(options_.eos_token_ids.begin(), options_.eos_token_ids.end(), id) > 0;
}

absl::Status Answer::Add(const executor::v1::GenerateResponse& response) {
  if (finish_reason_ != iv1::FINISH_REASON_UNSPECIFIED) return absl::OkStatus();
  const bool has_logprobs = response.logprobs_size() == response.token_ids_size();
  const bool ends = response.finish_reason() != iv1::FINISH_REASON_UNSPECIFIED;
  for (int i = 0; i < response.token_ids_size(); ++i) {
    const int32_t id = response.token_ids(i);
    if (!vocabulary_.table.Contains(id)) {
      return absl::InternalError(
          absl::StrCat("the executor's token is not in the tokenizer's vocabulary: ", id));
    }
    token_ids_.push_back(id);
    const bool is_last = ends && i + 1 == response.token_ids_size();
    if (is_last && response.finish_reason() == iv1::FINISH_REASON_STOP && IsEnd(id)) continue;
    ASSIGN_OR_RETURN(const std::string text, decoder_.Push(id));
    new_text_ += text;
    shown_bytes_ += text.size();
    if (!vocabulary_.table.IsSpecial(id)) {
      decoded_bytes_ += vocabulary_.table.Piece(id).size();
      if (has_logprobs) {
        logprobs_.push_back(response.logprobs(i));
        ends_.push_back(decoded_bytes_);
      }
    }
    if (decoder_.stopped()) {
      finish_reason_ = iv1::FINISH_REASON_STOP;
      break;
    }
  }
  if (ends && finish_reason_ == iv1::FINISH_REASON_UNSPECIFIED) {
    finish_reason_ = response.finish_reason();
    const std::string rest = decoder_.Finish();
    new_text_ += rest;
    shown_bytes_ += rest.size();
  }
  // Without stop strings nothing that was sent can be taken back; with them, a token is certain
  // once its text is.
  if (options_.stop.empty() || (ends && !decoder_.stopped())) {
    num_certain_ = logprobs_.size();
  } else {
    while (num_certain_ < ends_.size() && ends_[num_certain_] <= shown_bytes_) ++num_certain_;
  }
  return absl::OkStatus();
}

void Answer::ClearNew() {
  if (options_.keep_text) text_ += new_text_;
  new_text_.clear();
  logprobs_.erase(logprobs_.begin(), logprobs_.begin() + static_cast<ptrdiff_t>(num_certain_));
  ends_.erase(ends_.begin(), ends_.begin() + static_cast<ptrdiff_t>(num_certain_));
  num_certain_ = 0;
}

absl::Span<const int32_t> Answer::TokensOfText() const {
  const absl::Span<const int32_t> ids(token_ids_);
  const text::TokenTable& table = options_.continues_text ? vocabulary_.middle : vocabulary_.table;
  bool strip = table.strip_leading_space();
  absl::string_view rest = text_;
  for (size_t i = 0; i < ids.size(); ++i) {
    if (table.IsSpecial(ids[i]) || IsEnd(ids[i])) {
      // Hidden from the text: only as the last one does it say what the template will say too.
      const bool is_end = i + 1 == ids.size() && rest.empty() && !decoder_.stopped();
      return ids.first(is_end ? i + 1 : i);
    }
    absl::string_view piece = table.Piece(ids[i]);
    if (strip && !piece.empty()) {
      if (piece.front() == ' ') piece.remove_prefix(1);
      strip = false;
    }
    if (rest.substr(0, piece.size()) != piece) return ids.first(i);
    rest.remove_prefix(piece.size());
  }
  return ids;
}

}  // namespace mneme::gateway
