// One answer as it grows: its tokens, its text as far as it may be shown, its log-probabilities.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "common/text/stream_decoder.h"
#include "mneme/executor/v1/executor.pb.h"
#include "mneme/inference/v1/inference.pb.h"
#include "services/gateway/tokenizer_client.h"

namespace mneme::gateway {

// Not thread-safe.
class Answer {
 public:
  struct Options {
    std::vector<std::string> stop;
    std::vector<int32_t> eos_token_ids;  // end an answer and are no text of it
    bool continues_text = false;         // the answer continues a text: nothing is stripped
    bool keep_text = false;              // for text()
  };

  // `vocabulary` must outlive the answer.
  Answer(const Vocabulary& vocabulary, Options options);

  // Takes what the executor sent. After the end everything is ignored. INTERNAL: an id outside the
  // vocabulary.
  absl::Status Add(const executor::v1::GenerateResponse& response);

  // Why the answer has ended; UNSPECIFIED while it has not.
  inference::v1::FinishReason finish_reason() const { return finish_reason_; }
  // Whether the executor may still be at it: the end was a stop string.
  bool stopped_by_string() const { return decoder_.stopped(); }

  // Text and log-probabilities that became certain since the last Clear.
  absl::string_view new_text() const { return new_text_; }
  absl::Span<const inference::v1::TokenLogprob> new_logprobs() const {
    return absl::MakeConstSpan(logprobs_).first(num_certain_);
  }
  void ClearNew();

  int num_tokens() const { return static_cast<int>(token_ids_.size()); }
  // The whole text so far; only with keep_text.
  const std::string& text() const { return text_; }

  // Returns the longest front of the answer's tokens whose text is a front of text(), an end token
  // included. This is what the session's token log may keep, so that the next prompt, rendered from
  // the text, begins with it: a stop string, a cut character or a hidden token in the middle leaves
  // the tokens from there on out.
  absl::Span<const int32_t> TokensOfText() const;

 private:
  bool IsEnd(int32_t id) const;

  const Vocabulary& vocabulary_;
  const Options options_;
  text::StreamDecoder decoder_;
  inference::v1::FinishReason finish_reason_ = inference::v1::FINISH_REASON_UNSPECIFIED;
  std::vector<int32_t> token_ids_;
  std::string new_text_;
  std::string text_;
  size_t decoded_bytes_ = 0;  // of the tokens taken
  size_t shown_bytes_ = 0;    // of the text returned
  std::vector<inference::v1::TokenLogprob> logprobs_;
  std::vector<size_t> ends_;  // one per entry of logprobs_: where the token's text ends
  size_t num_certain_ = 0;
};

}  // namespace mneme::gateway
