// What the gateway does with a request, whichever door it came through: checks it, takes the
// session's lease, encodes, and starts the executor. Knows neither HTTP nor the gRPC server.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/clock/clock.h"
#include "mneme/gateway/v1/chat.pb.h"
#include "services/gateway/admission.h"
#include "services/gateway/answer_log.h"
#include "services/gateway/answer_source.h"
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
    AnswerLogOptions answers;
  };

  // All but `sessions` (null: there are none) must be there and outlive the core.
  ChatCore(CompletionLoop& loop, ExecutorPool& executors, TokenizerClient& tokenizer,
           SessionStore* sessions, Admission& admission, GatewayMetrics& metrics,
           const clock::Clock& clock, const Options& options);

  // Returns the answer once its first token is there. A request of a session whose request id is
  // that of a turn which runs, or has ended, gets that turn's answer. Errors as the public API
  // documents them.
  // `instructions` become a system message, unless the session's last one says the same.
  absl::StatusOr<std::unique_ptr<AnswerSource>> StartChat(const v1::ChatRequest& request,
                                                          Caller caller,
                                                          const std::string& instructions = "");
  absl::StatusOr<std::unique_ptr<AnswerSource>> StartCompletion(CompletionRequest request,
                                                                Caller caller);

  // Adds messages to a session and has nothing said to them. A request id that was used before adds
  // nothing; it may be empty. Returns how many messages there were before.
  absl::StatusOr<int> AddMessages(
      const std::string& session_id,
      const google::protobuf::RepeatedPtrField<inference::v1::Message>& messages,
      const std::string& request_id, const Caller& caller);

  // Goes on with an answer of the caller's tenant after the event of that number.
  absl::StatusOr<std::unique_ptr<AnswerSource>> Attach(const std::string& id, uint64_t after,
                                                       Caller caller);
  // Ends one.
  absl::Status Cancel(const std::string& id, const Caller& caller);

  // Ends all running turns with UNAVAILABLE: the grace time of a shutdown is over.
  void EndTurns() { shutdown_ = true; }

  // The session store; FAILED_PRECONDITION where the server has none.
  absl::StatusOr<SessionStore*> Sessions() const;
  ExecutorPool& executors() { return executors_; }
  TokenizerClient& tokenizer() { return tokenizer_; }
  Admission& admission() { return admission_; }
  GatewayMetrics& metrics() { return metrics_; }

 private:
  // One turn, without a look at others that run. `log` may be null.
  absl::StatusOr<std::unique_ptr<AnswerSource>> StartTurn(const v1::ChatRequest& request,
                                                          Caller caller,
                                                          const std::string& instructions,
                                                          std::shared_ptr<AnswerLog> log);
  // What chats and completions have in common, once the prompts are token ids.
  absl::StatusOr<std::unique_ptr<AnswerSource>> Start(Turn::Parts parts,
                                                      inference::v1::Sampling sampling,
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
  AnswerLogs answers_;
  std::atomic<bool> shutdown_{false};
};

}  // namespace mneme::gateway
