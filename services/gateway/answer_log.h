// Answers that outlive the connections of their clients.
//
// The turn writes an answer's events into a log as it writes them to its client. Whoever comes back
// with the answer's id and the number of the last event reads on from there; a repeated request id
// reads from the beginning. An answer with no reader is given up after a while.
//
// Memory is bounded: an answer whose log is full, or that finds all logs together full, drops its
// oldest events. Its own client never notices; one that comes back for them is told.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "common/clock/clock.h"
#include "common/sync/mutex.h"
#include "mneme/gateway/v1/chat.pb.h"
#include "services/gateway/answer_sink.h"
#include "services/gateway/answer_source.h"
#include "services/gateway/caller.h"

namespace mneme::gateway {

struct AnswerLogOptions {
  absl::Duration detached = absl::Minutes(1);  // how long an answer goes on without a reader
  absl::Duration ended = absl::Minutes(1);     // how long one that has ended is kept
  int64_t bytes_per_answer = 4 << 20;
  int64_t bytes = 64 << 20;  // of all together; those that have ended may take half of it
  size_t max_ended = 4096;
};

// One answer. Thread-safe; the turn's thread alone appends.
class AnswerLog {
 public:
  enum class Event {
    kEvents,   // some were read
    kEnded,    // there are no more; the status says how the answer ended
    kDropped,  // the next one is not kept any more
    kNothing,  // `until` has passed
  };

  // Its client is the first reader. `total` counts the bytes of all logs; it and `options` must
  // outlive the log.
  AnswerLog(std::string id, bool resumable, const AnswerLogOptions& options,
            const clock::Clock& clock, std::atomic<int64_t>* total);
  ~AnswerLog();

  const std::string& id() const { return id_; }
  bool resumable() const { return resumable_; }

  // The first event. `vocabulary` is kept for those who read later.
  void Start(const Started& started, std::shared_ptr<const Vocabulary> vocabulary);
  // Numbers the events. Returns the last one's number.
  uint64_t Append(std::vector<v1::ChatResponse>* events);
  // The turn was answered and is not stored.
  void NoteNotStored();
  // How the answer ended; only the first call counts.
  void End(const absl::Status& status);

  // The turn's own client has gone; only the first call counts.
  void LeaveClient();
  // Further readers.
  void Enter();
  void Leave();
  // Ends the answer.
  void Cancel() { cancelled_ = true; }
  bool cancelled() const { return cancelled_; }
  // Whether nobody wants the answer any more.
  bool Abandoned() const;

  // Waits for events after number `after`; takes them all.
  Event Read(uint64_t after, absl::Time until, std::vector<v1::ChatResponse>* events,
             absl::Status* status);
  bool ended() const;
  bool failed() const;
  // It has ended, and its turn was not stored then.
  bool ended_not_stored() const;
  Started started() const;

 private:
  void Trim() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Count(int64_t bytes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const std::string id_;
  const bool resumable_;
  const AnswerLogOptions& options_;
  const clock::Clock& clock_;
  std::atomic<int64_t>& total_;
  std::atomic<bool> cancelled_{false};
  mutable sync::Mutex mutex_;
  sync::CondVar changed_;
  std::shared_ptr<const Vocabulary> vocabulary_ ABSL_GUARDED_BY(mutex_);
  Started started_ ABSL_GUARDED_BY(mutex_);
  std::deque<v1::ChatResponse> events_ ABSL_GUARDED_BY(mutex_);
  uint64_t last_ ABSL_GUARDED_BY(mutex_) = 0;  // number of the last event
  int64_t bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
  bool is_not_stored_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
  bool has_client_ ABSL_GUARDED_BY(mutex_) = true;
  int readers_ ABSL_GUARDED_BY(mutex_) = 1;
  absl::Time left_ ABSL_GUARDED_BY(mutex_);  // when the last reader went
};

// The answers of this gateway. Thread-safe.
class AnswerLogs {
 public:
  // `clock` must outlive this object and all logs.
  AnswerLogs(const AnswerLogOptions& options, const clock::Clock& clock)
      : options_(options), clock_(clock) {}

  // Returns the log of the answer to this request of the session, if there is one that has not
  // failed nor ended without being stored, as a reader of it; else makes one and sets `made`. An
  // empty request id is nobody's.
  std::shared_ptr<AnswerLog> JoinOrBegin(const std::string& tenant, const std::string& session_id,
                                         const std::string& request_id, const std::string& id,
                                         bool resumable, bool* made);
  // NOT_FOUND: no such answer of the tenant.
  absl::StatusOr<std::shared_ptr<AnswerLog>> Find(const std::string& tenant, const std::string& id);

  int64_t bytes() const { return bytes_; }

 private:
  struct Entry {
    std::shared_ptr<AnswerLog> log;
    std::string request;                        // its key in by_request_; "": none
    absl::Time ended = absl::InfiniteFuture();  // when it was seen to have ended
  };
  void Prune() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const AnswerLogOptions options_;
  const clock::Clock& clock_;
  std::atomic<int64_t> bytes_{0};
  sync::Mutex mutex_;
  std::map<std::string, Entry> by_id_ ABSL_GUARDED_BY(mutex_);             // "tenant/id"
  std::map<std::string, std::string> by_request_ ABSL_GUARDED_BY(mutex_);  // -> key in by_id_
};

// An answer read from its log, while it is being given or after.
class LoggedAnswer final : public AnswerSource {
 public:
  // The caller has entered the log already; the destructor leaves it.
  LoggedAnswer(std::shared_ptr<AnswerLog> log, uint64_t after, Caller caller)
      : log_(std::move(log)), after_(after), caller_(std::move(caller)) {}
  ~LoggedAnswer() override { log_->Leave(); }

  // Waits until there is something to write. Returns the error of an answer that failed before it
  // began; OUT_OF_RANGE: events after `after` are not kept any more.
  absl::Status Begin();
  // Waits until the answer has ended, well or not.
  absl::Status AwaitEnd();

  absl::Status Run(AnswerSink& sink) override;
  const Started& started() const override { return started_; }
  int num_completion_tokens() const override { return 0; }  // they are the first reader's
  int num_prompt_tokens() const override { return 0; }

 private:
  AnswerLog::Event Next(absl::Status* status);
  absl::Status CheckStillWanted() const;

  const std::shared_ptr<AnswerLog> log_;
  uint64_t after_;
  const Caller caller_;
  Started started_;
  std::vector<v1::ChatResponse> events_;  // read, not written
};

// Writes to a client's sink and to the log. A client that goes away does not end the answer while
// somebody may still want it.
class LoggingSink final : public AnswerSink {
 public:
  // Both must outlive the sink.
  LoggingSink(AnswerLog& log, AnswerSink& client, std::shared_ptr<const Vocabulary> vocabulary)
      : log_(log), client_(client), vocabulary_(std::move(vocabulary)) {}

  void OnStarted(const Started& started) override;
  void OnPrompt(int index, const PromptEcho& prompt) override;
  void OnDelta(int index, absl::string_view text,
               absl::Span<const inference::v1::TokenLogprob> tokens) override;
  void OnFinish(int index, inference::v1::FinishReason reason) override;
  void OnUsage(const inference::v1::Usage& usage) override;
  void OnReceipt(const inference::v1::MemoryReceipt& receipt) override;
  void OnDone(const Done& done) override;
  bool Flush() override;

  bool has_client() const { return has_client_; }

 private:
  // Logs `events_`; returns whether the client is to get them too.
  bool Log();

  AnswerLog& log_;
  AnswerSink& client_;
  const std::shared_ptr<const Vocabulary> vocabulary_;
  std::vector<v1::ChatResponse> events_;
  bool has_client_ = true;
};

}  // namespace mneme::gateway
