// Answers in OpenAI's shapes: whole objects and server-sent events, for chats and completions.
#pragma once

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "services/gateway/answer_sink.h"
#include "services/gateway/openai_request.h"

namespace mneme::gateway {

enum class ReplyKind { kChat, kCompletion };

// Appends the `mneme` object: what a turn did, and its seed.
void AppendMneme(const Done& done, const inference::v1::MemoryReceipt& receipt, uint64_t seed,
                 std::string* out);

// The parts that both forms have in common. Not thread-safe.
class OpenAiSink : public AnswerSink {
 public:
  void OnUsage(const inference::v1::Usage& usage) override { usage_ = usage; }
  void OnReceipt(const inference::v1::MemoryReceipt& receipt) override { receipt_ = receipt; }

 protected:
  OpenAiSink(ReplyKind kind, const ReplyOptions& options) : kind_(kind), options_(options) {}

  bool is_chat() const { return kind_ == ReplyKind::kChat; }
  // Appends `"id":…,"object":…,"created":…,"model":…,"system_fingerprint":…`.
  void AppendHead(absl::string_view object, const Started& started, std::string* out) const;
  void AppendUsage(std::string* out) const;
  // Appends the value of "logprobs" for these tokens of an answer; completions also count offsets.
  void AppendChatTokens(absl::Span<const inference::v1::TokenLogprob> tokens,
                        std::string* out) const;

  // A completion's four lists, as JSON without their brackets.
  struct CompletionTokens {
    std::string tokens;
    std::string token_logprobs;
    std::string top_logprobs;
    std::string text_offset;
  };
  // `offset` counts characters of the answer's text; it is moved on.
  void AddCompletionToken(int32_t token_id, const inference::v1::TokenLogprob* logprob,
                          int64_t* offset, CompletionTokens* lists) const;
  static void AppendCompletionTokens(const CompletionTokens& lists, std::string* out);
  void AddPromptTokens(const PromptEcho& prompt, int64_t* offset, CompletionTokens* lists) const;

  absl::string_view PieceOf(int32_t token_id) const;

  const ReplyKind kind_;
  const ReplyOptions options_;
  std::string id_;
  const Vocabulary* vocabulary_ = nullptr;
  uint64_t seed_ = 0;
  inference::v1::Usage usage_;
  inference::v1::MemoryReceipt receipt_;
};

// Collects an answer into one object.
class OpenAiObject final : public OpenAiSink {
 public:
  OpenAiObject(ReplyKind kind, const ReplyOptions& options, std::function<bool()> gone)
      : OpenAiSink(kind, options), gone_(std::move(gone)) {}

  void OnStarted(const Started& started) override;
  void OnPrompt(int index, const PromptEcho& prompt) override;
  void OnDelta(int index, absl::string_view text,
               absl::Span<const inference::v1::TokenLogprob> tokens) override;
  void OnFinish(int index, inference::v1::FinishReason reason) override;
  void OnDone(const Done& done) override;
  bool Flush() override { return !gone_(); }

  // The whole object; after OnDone.
  const std::string& body() const { return body_; }

 private:
  struct Choice {
    std::string text;
    std::string chat_tokens;
    CompletionTokens tokens;
    int64_t offset = 0;
    inference::v1::FinishReason finish_reason = inference::v1::FINISH_REASON_UNSPECIFIED;
  };

  const std::function<bool()> gone_;
  Started started_;
  std::vector<Choice> choices_;
  std::string body_;
};

// Writes an answer as server-sent events.
class OpenAiStream final : public OpenAiSink {
 public:
  // `write` returns false when the client is gone.
  OpenAiStream(ReplyKind kind, const ReplyOptions& options,
               std::function<bool(const std::string&)> write)
      : OpenAiSink(kind, options), write_(std::move(write)) {}

  void OnStarted(const Started& started) override;
  void OnPrompt(int index, const PromptEcho& prompt) override;
  void OnDelta(int index, absl::string_view text,
               absl::Span<const inference::v1::TokenLogprob> tokens) override;
  void OnFinish(int index, inference::v1::FinishReason reason) override;
  void OnDone(const Done& done) override;
  void OnSequence(uint64_t last) override { sequence_ = last; }
  void Drop() override { out_.clear(); }
  bool Flush() override;

  // Ends the stream with an error: its status line is long sent.
  void Fail(absl::string_view error_json);

 private:
  struct Finish {
    int index;
    inference::v1::FinishReason reason;
  };
  void AppendChunkStart(int index);
  void AppendChunkEnd(absl::string_view logprobs, absl::string_view finish_reason,
                      absl::string_view extra);
  void EndEvent();
  void AppendFinish(const Finish& finish, absl::string_view extra);

  const std::function<bool(const std::string&)> write_;
  bool resumable_ = false;  // then every event has its number
  uint64_t sequence_ = 0;
  std::string head_;  // what every chunk begins with, up to the choices
  std::string out_;   // not written yet
  std::string scratch_;
  std::vector<int64_t> offsets_;  // per answer, in characters
  std::optional<Finish> finish_;  // the last one waits for the receipt
};

}  // namespace mneme::gateway
