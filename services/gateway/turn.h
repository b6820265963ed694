// One request being answered: what was prepared for it, and the loop that carries tokens from the
// executor to the client.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "mneme/memory/v1/memory.pb.h"
#include "services/gateway/admission.h"
#include "services/gateway/answer.h"
#include "services/gateway/answer_log.h"
#include "services/gateway/answer_sink.h"
#include "services/gateway/answer_source.h"
#include "services/gateway/caller.h"
#include "services/gateway/gateway_metrics.h"
#include "services/gateway/generation.h"
#include "services/gateway/session_store.h"

namespace mneme::gateway {

// Made by ChatCore, used by one thread, run once. The destructor gives everything back on every
// path: the executor stops, the session's lease is released, the tenant's place is free. A turn
// that nobody waits for is not committed; with a log somebody may still come.
class Turn final : public AnswerSource {
 public:
  // One prompt of the request.
  struct Prompt {
    std::vector<int32_t> token_ids;
    std::string text;  // for the echo
  };

  // The session's side of the turn.
  struct SessionPart {
    std::unique_ptr<SessionStore::Lease> lease;  // null: `turn` was committed before
    std::string session_id;
    uint64_t parent_version = 0;
    SessionStore* store = nullptr;
    memory::v1::MemoryPlan plan;
    std::string executor;  // who may have the memory hot; "": nobody
    uint64_t snapshot_version = 0;
    memory::v1::Turn turn;  // what to commit, without the answer; or what was committed
  };

  struct Parts {
    Caller caller;
    std::unique_ptr<Admission::Ticket> ticket;
    std::shared_ptr<const Vocabulary> vocabulary;
    Started started;
    std::vector<Prompt> prompts;
    int answers_per_prompt = 1;
    bool echo = false;
    bool echo_only = false;  // nothing is to be generated; the executor's one token is dropped
    Answer::Options answer;
    std::unique_ptr<GenerationGroup> generation;
    std::unique_ptr<SessionPart> session;  // null: stateless
    std::shared_ptr<AnswerLog> log;        // null: nobody but the client gets the answer
    int64_t kv_bytes_per_token = 0;        // of the model's memory
    const std::atomic<bool>* shutdown = nullptr;
  };

  Turn(Parts parts, GatewayMetrics& metrics);
  ~Turn() override;

  // Waits until the executor has sent something, so that whatever keeps it from beginning is known
  // before the client is told anything.
  absl::Status Begin();

  absl::Status Run(AnswerSink& sink) override;
  const Started& started() const override { return parts_.started; }
  int num_completion_tokens() const override { return num_tokens_; }
  int num_prompt_tokens() const override { return num_prompt_tokens_; }

 private:
  // Writes everything; the body of Run.
  absl::Status Give(AnswerSink& sink);
  absl::Status Gone() const;  // why nobody wants the answer any more
  absl::Status CheckStillWanted() const;
  absl::Status CheckLimits() const;  // the same but for the client
  absl::Status TakeResponse(size_t call, AnswerSink& sink);
  absl::Status TakeEnd(size_t call, const absl::Status& status);
  void WriteEcho(size_t call, AnswerSink& sink);
  void WriteNew(AnswerSink& sink);
  absl::Status WriteAndFlush(AnswerSink& sink);
  absl::Status Pump(AnswerSink& sink);
  absl::Status Replay(AnswerSink& sink);
  // Waits, for a bounded time, until the executor has said what became of the memory.
  void AwaitLastWord(AnswerSink& sink);
  uint64_t Commit();

  Parts parts_;
  GatewayMetrics& metrics_;
  std::vector<Answer> answers_;
  std::vector<bool> told_;    // per answer: its end was written
  std::vector<bool> echoed_;  // per prompt
  std::vector<std::vector<inference::v1::TokenLogprob>> prompt_logprobs_;  // per prompt
  int num_open_ = 0;  // answers that have not ended
  executor::v1::GenerateResponse response_;
  size_t first_call_ = 0;
  bool has_first_ = false;
  inference::v1::Usage usage_;
  inference::v1::MemoryReceipt receipt_;
  std::string snapshot_id_;     // of the session's memory after the turn, staged by the executor
  bool has_last_word_ = false;  // of the executor, on the first answer
  bool lost_last_word_ = false;
  int num_tokens_ = 0;
  int num_prompt_tokens_ = 0;
  absl::Time last_token_;
};

}  // namespace mneme::gateway
