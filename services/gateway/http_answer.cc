#include "services/gateway/http_answer.h"

#include <httplib.h>

#include <utility>

namespace mneme::gateway {
namespace {

// For an answer whose client was gone before the first event.
class NobodysSink final : public AnswerSink {
 public:
  void OnStarted(const Started&) override {}
  void OnPrompt(int, const PromptEcho&) override {}
  void OnDelta(int, absl::string_view, absl::Span<const inference::v1::TokenLogprob>) override {}
  void OnFinish(int, inference::v1::FinishReason) override {}
  void OnUsage(const inference::v1::Usage&) override {}
  void OnReceipt(const inference::v1::MemoryReceipt&) override {}
  void OnDone(const Done&) override {}
  bool Flush() override { return false; }
};

}  // namespace

absl::Status RunAnswer(absl::StatusOr<std::unique_ptr<AnswerSource>> answer, AnswerSink& sink,
                       HttpExchange& exchange) {
  if (!answer.ok()) return answer.status();
  const absl::Status status = (*answer)->Run(sink);
  exchange.record.model = (*answer)->started().model;
  exchange.record.prompt_tokens = (*answer)->num_prompt_tokens();
  exchange.record.completion_tokens = (*answer)->num_completion_tokens();
  return status;
}

void StreamAnswer(absl::StatusOr<std::unique_ptr<AnswerSource>> answer, httplib::Response& response,
                  const std::shared_ptr<HttpExchange>& exchange,
                  std::function<EventSink(HttpWrite write)> make_sink) {
  if (!answer.ok()) return exchange->Fail(answer.status(), response);
  // Shared, since httplib copies what it is given.
  const auto held = std::make_shared<std::unique_ptr<AnswerSource>>(*std::move(answer));
  response.status = 200;
  response.set_header("Cache-Control", "no-cache");
  response.set_header("X-Accel-Buffering", "no");
  response.set_chunked_content_provider(
      "text/event-stream",
      [held, exchange, make_sink = std::move(make_sink)](size_t, httplib::DataSink& sink) {
        const EventSink events = make_sink([&](const std::string& text) {
          if (text.empty()) return !exchange->connection().Gone();
          return sink.write(text.data(), text.size()) && !exchange->connection().Gone();
        });
        const absl::Status status = RunAnswer(std::move(*held), *events.sink, *exchange);
        if (absl::IsCancelled(status) && exchange->connection().Gone()) {
          exchange->code = 499;
          return false;
        }
        if (!status.ok()) {
          const HttpError error = ToHttpError(status);
          exchange->code = error.status;
          exchange->record.error = std::string(status.message());
          events.fail(error.body);
        }
        sink.done();
        return true;
      },
      [held, exchange](bool) {
        // The headers could not be written; the answer may be wanted all the same.
        if (*held == nullptr) return;
        NobodysSink nobody;
        RunAnswer(std::move(*held), nobody, *exchange).IgnoreError();
        exchange->code = 499;
      });
}

}  // namespace mneme::gateway
