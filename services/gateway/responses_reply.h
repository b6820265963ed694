// Answers in the shape of OpenAI's responses: one object, or typed events.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "absl/strings/string_view.h"
#include "services/gateway/answer_sink.h"
#include "services/gateway/json_fields.h"

namespace mneme::gateway {

// What a response says besides its answer.
struct ResponseFrame {
  Json echo = Json::object();  // fields of the request that are repeated
  bool store = true;
  std::string conversation;  // "": none
};

// A response's text and what is known of it, as it grows.
struct ResponseState {
  std::string id;
  std::string model;
  int64_t created_unix_s = 0;
  std::string text;
  inference::v1::FinishReason finish_reason = inference::v1::FINISH_REASON_UNSPECIFIED;
  inference::v1::Usage usage;
  Json mneme;  // null: nothing to say
};

// Returns the response object. One without a finish reason is in progress and has no output yet.
Json ResponseObject(const ResponseFrame& frame, const ResponseState& state);

// What both forms have in common. Not thread-safe.
class ResponsesSink : public AnswerSink {
 public:
  void OnStarted(const Started& started) override;
  void OnPrompt(int, const PromptEcho&) override {}
  void OnDelta(int index, absl::string_view text,
               absl::Span<const inference::v1::TokenLogprob> tokens) override;
  void OnFinish(int index, inference::v1::FinishReason reason) override;
  void OnUsage(const inference::v1::Usage& usage) override { state_.usage = usage; }
  void OnReceipt(const inference::v1::MemoryReceipt& receipt) override { receipt_ = receipt; }
  void OnDone(const Done& done) override;

 protected:
  explicit ResponsesSink(ResponseFrame frame) : frame_(std::move(frame)) {}

  const ResponseFrame frame_;
  ResponseState state_;
  uint64_t seed_ = 0;
  inference::v1::MemoryReceipt receipt_;
};

// Collects an answer into one object.
class ResponsesObject final : public ResponsesSink {
 public:
  ResponsesObject(ResponseFrame frame, std::function<bool()> gone)
      : ResponsesSink(std::move(frame)), gone_(std::move(gone)) {}

  bool Flush() override { return !gone_(); }
  // The whole object; after OnDone.
  std::string body() const;

 private:
  const std::function<bool()> gone_;
};

// Writes an answer as server-sent events.
class ResponsesStream final : public ResponsesSink {
 public:
  // `write` returns false when the client is gone.
  ResponsesStream(ResponseFrame frame, std::function<bool(const std::string&)> write)
      : ResponsesSink(std::move(frame)), write_(std::move(write)) {}

  void OnStarted(const Started& started) override;
  void OnDelta(int index, absl::string_view text,
               absl::Span<const inference::v1::TokenLogprob> tokens) override;
  void OnDone(const Done& done) override;
  void Drop() override { out_.clear(); }
  bool Flush() override;

  // Ends the stream with an error: its status line is long sent.
  void Fail(absl::string_view error_json);

 private:
  void Append(absl::string_view type, Json event);
  std::string ItemId() const;

  const std::function<bool(const std::string&)> write_;
  std::string out_;
  uint64_t next_ = 0;  // number of the next event
};

}  // namespace mneme::gateway
