// What a front has in hand when an answer has begun, whoever computes it.
#pragma once

#include "absl/status/status.h"
#include "services/gateway/answer_sink.h"

namespace mneme::gateway {

// Used by one thread, run once.
class AnswerSource {
 public:
  virtual ~AnswerSource() = default;

  // Writes everything to `sink`; returns when the answer is complete, or why it is not. CANCELLED:
  // the client went away, or the answer was cancelled.
  virtual absl::Status Run(AnswerSink& sink) = 0;

  virtual const Started& started() const = 0;
  // For the access log.
  virtual int num_completion_tokens() const = 0;
  virtual int num_prompt_tokens() const = 0;
};

}  // namespace mneme::gateway
