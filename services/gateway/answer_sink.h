// Where the core writes an answer: one implementation per front.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "mneme/inference/v1/inference.pb.h"
#include "services/gateway/tokenizer_client.h"

namespace mneme::gateway {

// What is known when an answer begins.
struct Started {
  std::string id;                // of the answer
  bool resumable = false;        // its client may attach to it again
  std::string session_id;        // "": stateless
  uint64_t session_version = 0;  // of the session, once the turn is committed
  std::string model;
  std::string fingerprint;  // of model and settings
  uint64_t seed = 0;
  int64_t created_unix_s = 0;
  int num_answers = 1;                     // over all prompts
  const Vocabulary* vocabulary = nullptr;  // outlives the sink's use
};

// A prompt that is given back before its answer.
struct PromptEcho {
  absl::string_view text;
  absl::Span<const int32_t> token_ids;
  // From the second token on; empty where not asked for.
  absl::Span<const inference::v1::TokenLogprob> logprobs;
};

// How it all ended.
struct Done {
  std::string session_id;
  uint64_t version = 0;
};

// Calls come from one thread in this order: Started, then per answer Prompt, Deltas and Finish
// (answers are interleaved), then Usage, Receipt and Done. What is written may be kept back until
// Flush.
class AnswerSink {
 public:
  virtual ~AnswerSink() = default;

  virtual void OnStarted(const Started& started) = 0;
  virtual void OnPrompt(int index, const PromptEcho& prompt) = 0;
  // `text` is whole UTF-8 and may be empty; `tokens` have their log-probabilities.
  virtual void OnDelta(int index, absl::string_view text,
                       absl::Span<const inference::v1::TokenLogprob> tokens) = 0;
  virtual void OnFinish(int index, inference::v1::FinishReason reason) = 0;
  virtual void OnUsage(const inference::v1::Usage& usage) = 0;
  virtual void OnReceipt(const inference::v1::MemoryReceipt& receipt) = 0;
  virtual void OnDone(const Done& done) = 0;

  // The next call's events are numbered up to `last`. Only where answers are numbered.
  virtual void OnSequence(uint64_t last) { static_cast<void>(last); }
  // Forgets what was written since the last Flush.
  virtual void Drop() {}

  // Hands over what was written. Returns false when the client is gone.
  virtual bool Flush() = 0;
};

}  // namespace mneme::gateway
