#include "services/gateway/chat_events.h"

#include <string>

namespace mneme::gateway {
namespace {

namespace iv1 = inference::v1;

v1::ChatResponse& New(int index, std::vector<v1::ChatResponse>* events) {
  v1::ChatResponse& event = events->emplace_back();
  event.set_index(index);
  return event;
}

void Fill(const iv1::TokenLogprob& token, const Vocabulary& vocabulary, v1::TextLogprob* shown) {
  shown->set_token_id(token.token_id());
  shown->set_logprob(token.logprob());
  if (vocabulary.table.Contains(token.token_id())) {
    shown->set_token(std::string(vocabulary.table.Piece(token.token_id())));
  }
}

void AppendLogprobs(int index, absl::Span<const iv1::TokenLogprob> tokens,
                    const Vocabulary& vocabulary, std::vector<v1::ChatResponse>* events) {
  if (tokens.empty()) return;
  v1::Logprobs& logprobs = *New(index, events).mutable_logprobs();
  for (const iv1::TokenLogprob& token : tokens) {
    v1::TextLogprob& shown = *logprobs.add_tokens();
    Fill(token, vocabulary, &shown);
    for (const iv1::TokenLogprob& other : token.top()) Fill(other, vocabulary, shown.add_top());
  }
}

std::vector<iv1::TokenLogprob> TokensOf(const v1::Logprobs& logprobs) {
  std::vector<iv1::TokenLogprob> tokens;
  for (const v1::TextLogprob& shown : logprobs.tokens()) {
    iv1::TokenLogprob& token = tokens.emplace_back();
    token.set_token_id(shown.token_id());
    token.set_logprob(shown.logprob());
    for (const v1::TextLogprob& other : shown.top()) {
      iv1::TokenLogprob& top = *token.add_top();
      top.set_token_id(other.token_id());
      top.set_logprob(other.logprob());
    }
  }
  return tokens;
}

}  // namespace

void AppendStarted(const Started& started, std::vector<v1::ChatResponse>* events) {
  v1::ChatStarted& event = *New(0, events).mutable_started();
  event.set_id(started.id);
  event.set_model(started.model);
  event.set_role("assistant");
  event.set_created_unix_s(started.created_unix_s);
  event.set_seed(started.seed);
}

void AppendPrompt(int index, const PromptEcho& prompt, const Vocabulary& vocabulary,
                  std::vector<v1::ChatResponse>* events) {
  New(index, events).set_text_delta(std::string(prompt.text));
  AppendLogprobs(index, prompt.logprobs, vocabulary, events);
}

void AppendDelta(int index, absl::string_view text, absl::Span<const iv1::TokenLogprob> tokens,
                 const Vocabulary& vocabulary, std::vector<v1::ChatResponse>* events) {
  if (!text.empty()) New(index, events).set_text_delta(std::string(text));
  AppendLogprobs(index, tokens, vocabulary, events);
}

void AppendFinish(int index, iv1::FinishReason reason, std::vector<v1::ChatResponse>* events) {
  New(index, events).set_finish_reason(reason);
}

void AppendUsage(const iv1::Usage& usage, std::vector<v1::ChatResponse>* events) {
  *New(0, events).mutable_usage() = usage;
}

void AppendReceipt(const iv1::MemoryReceipt& receipt, std::vector<v1::ChatResponse>* events) {
  *New(0, events).mutable_receipt() = receipt;
}

void AppendDone(const Done& done, std::vector<v1::ChatResponse>* events) {
  v1::ChatDone& event = *New(0, events).mutable_done();
  event.set_session_id(done.session_id);
  event.set_version(done.version);
}

void Replay(const v1::ChatResponse& event, const Started& started, AnswerSink& sink) {
  switch (event.event_case()) {
    case v1::ChatResponse::kStarted:
      sink.OnStarted(started);
      break;
    case v1::ChatResponse::kTextDelta:
      sink.OnDelta(event.index(), event.text_delta(), {});
      break;
    case v1::ChatResponse::kLogprobs:
      sink.OnDelta(event.index(), "", TokensOf(event.logprobs()));
      break;
    case v1::ChatResponse::kFinishReason:
      sink.OnFinish(event.index(), event.finish_reason());
      break;
    case v1::ChatResponse::kUsage:
      sink.OnUsage(event.usage());
      break;
    case v1::ChatResponse::kReceipt:
      sink.OnReceipt(event.receipt());
      break;
    case v1::ChatResponse::kDone:
      sink.OnDone({event.done().session_id(), event.done().version()});
      break;
    case v1::ChatResponse::EVENT_NOT_SET:
      break;
  }
}

}  // namespace mneme::gateway
