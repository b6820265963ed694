// What the gateway does with a request, whichever door it came through: checks it, takes the
// session's lease, encodes, and starts the executor. Knows neither HTTP nor the gRPC server.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "mneme/gateway/v1/chat.pb.h"
#include "services/gateway/admission.h"
#include "services/gateway/caller.h"
#include "services/gateway/completion_loop.h"
#include "services/gateway/executor_pool.h"
#include "services/gateway/gateway_metrics.h"
#include "services/gateway/session_store.h"
#include "services/gateway/tokenizer_client.h"
#include "services/gateway/turn.h"

namespace mneme::gateway {

// Plain text to be continued. Unlike the public message it may hold several prompts.
struct CompletionRequest {
  struct Prompt {
    std::string text;                // either a text …
    std::vector<int32_t> token_ids;  // … or token ids
  };
  std::string model;
  std::vector<Prompt> prompts;
  inference::v1::Sampling sampling;
  inference::v1::MemoryPolicy memory_policy;
  bool echo = false;
  bool echo_only = false;  // with echo: nothing is generated
};

// Thread-safe.
class ChatCore {
 public:
  struct Options {
    int max_messages = 4096;
    int max_prompts = 256;
    absl::Duration request_timeout = absl::Minutes(10);
    GenerationOptions generation;
  };

  // All but `sessions` (null: there are none) must be there and outlive the core.
  ChatCore(CompletionLoop& loop, ExecutorPool& executors, TokenizerClient& tokenizer,
           SessionStore* sessions, Admission& admission, GatewayMetrics& metrics,
           const Options& options);

  // Returns the turn once its first token is there. Errors as the public API documents them.
  absl::StatusOr<std::unique_ptr<Turn>> StartChat(const v1::ChatRequest& request, Caller caller);
  absl::StatusOr<std::unique_ptr<Turn>> StartCompletion(CompletionRequest request, Caller caller);

  // Ends all running turns with UNAVAILABLE: the grace time of a shutdown is over.
  void EndTurns() { shutdown_ = true; }

  // The session store; FAILED_PRECONDITION where the server has none.
  absl::StatusOr<SessionStore*> Sessions() const;
  ExecutorPool& executors() { return executors_; }
  TokenizerClient& tokenizer() { return tokenizer_; }
  Admission& admission() { return admission_; }
  GatewayMetrics& metrics() { return metrics_; }

 private:
  // What chats and completions have in common, once the prompts are token ids.
  absl::StatusOr<std::unique_ptr<Turn>> Start(Turn::Parts parts, inference::v1::Sampling sampling,
                                              const inference::v1::MemoryPolicy& policy,
                                              ExecutorPool::Claim claim);
  absl::StatusOr<std::unique_ptr<Admission::Ticket>> Enter(const Caller& caller);
  // Claims a place for the request's first generation, so that a request that has no chance is
  // refused before any other service works for it. RESOURCE_EXHAUSTED: every executor is full. An
  // empty claim: none is ready; the generation waits for one.
  absl::StatusOr<ExecutorPool::Claim> ClaimPlace(const ExecutorPool::Query& query);
  // Returns `status`, counted where it says that the executors are full.
  absl::Status CountFull(absl::Status status);
  absl::Status OpenSession(const v1::ChatRequest& request, const std::string& model,
                           const Caller& caller, SessionStore::Opened* opened);

  CompletionLoop& loop_;
  ExecutorPool& executors_;
  TokenizerClient& tokenizer_;
  SessionStore* const sessions_;
  Admission& admission_;
  GatewayMetrics& metrics_;
  const Options options_;
  std::atomic<bool> shutdown_{false};
};

}  // namespace mneme::gateway
