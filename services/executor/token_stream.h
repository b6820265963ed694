// What one request's caller gets from the engine: a queue between the engine's thread, which must
// never wait for a slow reader, and the reader. Tokens that the reader has not taken yet are merged
// into one event per answer, so a reader that is slower than the engine gets fewer, larger events.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "common/sync/mutex.h"
#include "mneme/inference/v1/inference.pb.h"
#include "services/executor/sampler.h"

namespace mneme::executor {

// Wakes the engine when there is something to do. Thread-safe; shared by the engine and its
// streams, because a reader may outlive the engine.
class EngineSignal {
 public:
  void Notify();
  // Returns when notified since the last Wait, or at `deadline`.
  void Wait(std::chrono::steady_clock::time_point deadline);

 private:
  sync::Mutex mutex_;
  sync::CondVar changed_;
  bool notified_ ABSL_GUARDED_BY(mutex_) = false;
};

// How an answer ended.
struct AnswerEnd {
  inference::v1::FinishReason reason = inference::v1::FINISH_REASON_UNSPECIFIED;
  inference::v1::Usage usage;
  inference::v1::MemoryReceipt receipt;
  std::string snapshot_id;  // staged in the memory service; empty: none
};

// News of one answer (or, for a Score request, of one continuation).
struct StreamEvent {
  int index = 0;
  std::vector<int32_t> token_ids;
  std::vector<TokenScores> logprobs;         // one per token, if asked for
  std::vector<TokenScores> prompt_logprobs;  // in the order of the prompt, from its second token
  std::optional<AnswerEnd> end;
};

// Thread-safe: one engine writes, one reader reads, anyone may cancel.
class TokenStream {
 public:
  // Tokens that an answer's reader may be behind before the answer pauses.
  static constexpr int64_t kMaxBacklog = 256;

  TokenStream(int num_answers, std::shared_ptr<EngineSignal> signal);

  // The reader's side.
  enum class Read { kEvent, kTimeout, kEnd };
  // Takes the next event, waiting for it until `deadline`. kEnd: there is nothing more; status()
  // says whether all went well. From then on the engine doesn't know the request any more.
  Read Next(StreamEvent* event, std::chrono::steady_clock::time_point deadline);
  // Takes the next event, however long it takes; false at the end.
  bool Next(StreamEvent* event);
  absl::Status status() const;
  // Ends the request within one step; Next reports the end with CANCELLED.
  void Cancel();

  // The engine's side.
  void Push(StreamEvent event);
  void Close(absl::Status status);
  bool cancelled() const { return cancelled_.load(std::memory_order_relaxed); }
  // Says whether the reader of the answer is so far behind that the answer should pause.
  bool is_backed_up(int index) const;

 private:
  struct Pending {
    StreamEvent event;
    int64_t size = 0;  // tokens and prompt logprobs in it
    bool queued = false;
  };

  const std::shared_ptr<EngineSignal> signal_;
  std::atomic<bool> cancelled_ = false;
  mutable sync::Mutex mutex_;
  sync::CondVar changed_;
  std::vector<Pending> pending_ ABSL_GUARDED_BY(mutex_);  // by index
  std::vector<int> order_ ABSL_GUARDED_BY(mutex_);        // indices with news, oldest first
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace mneme::executor
