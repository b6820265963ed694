// An answer as the public API's numbered events, and back: what gRPC clients get, and what is kept
// of an answer that its client may attach to again.
#pragma once

#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "mneme/gateway/v1/chat.pb.h"
#include "services/gateway/answer_sink.h"

namespace mneme::gateway {

// Appends the events of one call of an AnswerSink; what says nothing makes none.
void AppendStarted(const Started& started, std::vector<v1::ChatResponse>* events);
void AppendPrompt(int index, const PromptEcho& prompt, const Vocabulary& vocabulary,
                  std::vector<v1::ChatResponse>* events);
void AppendDelta(int index, absl::string_view text,
                 absl::Span<const inference::v1::TokenLogprob> tokens, const Vocabulary& vocabulary,
                 std::vector<v1::ChatResponse>* events);
void AppendFinish(int index, inference::v1::FinishReason reason,
                  std::vector<v1::ChatResponse>* events);
void AppendUsage(const inference::v1::Usage& usage, std::vector<v1::ChatResponse>* events);
void AppendReceipt(const inference::v1::MemoryReceipt& receipt,
                   std::vector<v1::ChatResponse>* events);
void AppendDone(const Done& done, std::vector<v1::ChatResponse>* events);

// Writes one event to a sink. `started` is what the answer began with.
void Replay(const v1::ChatResponse& event, const Started& started, AnswerSink& sink);

}  // namespace mneme::gateway
