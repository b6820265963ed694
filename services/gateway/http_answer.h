// An answer on its way into an HTTP reply: as one object, or as server-sent events.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "services/gateway/answer_source.h"
#include "services/gateway/http_exchange.h"

namespace mneme::gateway {

// Writes events; returns false when the client is gone.
using HttpWrite = std::function<bool(const std::string& events)>;

// What writes an answer as server-sent events, and how it ends them with an error: the status line
// is long sent.
struct EventSink {
  std::unique_ptr<AnswerSink> sink;
  std::function<void(absl::string_view error_json)> fail;
};

// Runs an answer and enters it in the exchange's record. Its lease and place are given back before
// this returns.
absl::Status RunAnswer(absl::StatusOr<std::unique_ptr<AnswerSource>> answer, AnswerSink& sink,
                       HttpExchange& exchange);

// Has the reply be the answer's events, or the error of one that did not begin.
void StreamAnswer(absl::StatusOr<std::unique_ptr<AnswerSource>> answer, httplib::Response& response,
                  const std::shared_ptr<HttpExchange>& exchange,
                  std::function<EventSink(HttpWrite write)> make_sink);

}  // namespace mneme::gateway
