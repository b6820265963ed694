#include "services/gateway/answer_log.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/status/annotate.h"
#include "common/status/status_macros.h"
#include "services/gateway/chat_events.h"

namespace mneme::gateway {
namespace {

// What an event costs besides its own bytes.
constexpr int64_t kEventOverhead = 96;
// How often a reader looks whether its client is still there.
constexpr absl::Duration kTick = absl::Milliseconds(50);

int64_t SizeOf(const v1::ChatResponse& event) {
  return static_cast<int64_t>(event.ByteSizeLong()) + kEventOverhead;
}

absl::Status NoSuchAnswer(absl::string_view id) {
  return status::WithPayload(
      absl::NotFoundError(absl::StrCat("no such answer here, or it ended a while ago: ", id)),
      status::kReasonPayload, "ANSWER_NOT_FOUND");
}

absl::Status Dropped(uint64_t after) {
  return status::WithPayload(
      absl::OutOfRangeError(absl::StrCat(
          "the answer has more events than are kept; the session has its text. After ", after)),
      status::kReasonPayload, "EVENTS_DROPPED");
}

}  // namespace

AnswerLog::AnswerLog(std::string id, bool resumable, const AnswerLogOptions& options,
                     const clock::Clock& clock, std::atomic<int64_t>* total)
    : id_(std::move(id)), resumable_(resumable), options_(options), clock_(clock), total_(*total) {}

AnswerLog::~AnswerLog() { total_ -= bytes_; }

void AnswerLog::Count(int64_t bytes) {
  bytes_ += bytes;
  total_ += bytes;
}

void AnswerLog::Trim() {
  // What a reader waits for is never dropped before it was there for a moment: one event stays.
  while (events_.size() > 1 && (bytes_ > options_.bytes_per_answer || total_ > options_.bytes)) {
    Count(-SizeOf(events_.front()));
    events_.pop_front();
  }
}

void AnswerLog::Start(const Started& started, std::shared_ptr<const Vocabulary> vocabulary) {
  sync::MutexLock lock(mutex_);
  started_ = started;
  vocabulary_ = std::move(vocabulary);
}

uint64_t AnswerLog::Append(std::vector<v1::ChatResponse>* events) {
  sync::MutexLock lock(mutex_);
  for (v1::ChatResponse& event : *events) {
    event.set_sequence(++last_);
    Count(SizeOf(event));
    events_.push_back(std::move(event));
  }
  events->clear();
  Trim();
  changed_.NotifyAll();
  return last_;
}

void AnswerLog::End(const absl::Status& status) {
  sync::MutexLock lock(mutex_);
  if (std::exchange(ended_, true)) return;
  status_ = status;
  changed_.NotifyAll();
}

void AnswerLog::LeaveClient() {
  {
    sync::MutexLock lock(mutex_);
    if (!std::exchange(has_client_, false)) return;
  }
  Leave();
}

void AnswerLog::Enter() {
  sync::MutexLock lock(mutex_);
  ++readers_;
}

void AnswerLog::Leave() {
  sync::MutexLock lock(mutex_);
  if (--readers_ == 0) left_ = clock_.Now();
}

bool AnswerLog::Abandoned() const {
  if (cancelled_) return true;
  sync::MutexLock lock(mutex_);
  if (readers_ > 0) return false;
  return !resumable_ || clock_.Now() - left_ > options_.detached;
}

AnswerLog::Event AnswerLog::Read(uint64_t after, absl::Time until,
                                 std::vector<v1::ChatResponse>* events, absl::Status* status) {
  sync::MutexLock lock(mutex_);
  while (last_ <= after && !ended_) {
    const absl::Time now = absl::Now();
    if (now >= until) return Event::kNothing;
    changed_.WaitUntil(mutex_,
                       std::chrono::steady_clock::now() + absl::ToChronoMicroseconds(until - now));
  }
  if (last_ <= after) {
    *status = status_;
    return Event::kEnded;
  }
  const uint64_t first = last_ + 1 - events_.size();
  if (after + 1 < first) return Event::kDropped;
  events->assign(events_.begin() + static_cast<std::ptrdiff_t>(after + 1 - first), events_.end());
  return Event::kEvents;
}

bool AnswerLog::ended() const {
  sync::MutexLock lock(mutex_);
  return ended_;
}

bool AnswerLog::failed() const {
  sync::MutexLock lock(mutex_);
  return ended_ && !status_.ok();
}

void AnswerLog::NoteNotStored() {
  sync::MutexLock lock(mutex_);
  is_not_stored_ = true;
}

bool AnswerLog::ended_not_stored() const {
  sync::MutexLock lock(mutex_);
  return ended_ && is_not_stored_;
}

Started AnswerLog::started() const {
  sync::MutexLock lock(mutex_);
  return started_;
}

void AnswerLogs::Prune() {
  const absl::Time now = clock_.Now();
  std::vector<std::map<std::string, Entry>::iterator> ended;
  for (auto entry = by_id_.begin(); entry != by_id_.end(); ++entry) {
    if (!entry->second.log->ended()) continue;
    if (entry->second.ended == absl::InfiniteFuture()) entry->second.ended = now;
    ended.push_back(entry);
  }
  // The oldest ones first, for as long as they are too old, too many or too large together.
  std::sort(ended.begin(), ended.end(),
            [](const auto& a, const auto& b) { return a->second.ended < b->second.ended; });
  for (size_t i = 0; i < ended.size(); ++i) {
    const bool must_go = now - ended[i]->second.ended > options_.ended ||
                         ended.size() - i > options_.max_ended || bytes_ > options_.bytes / 2;
    if (!must_go) break;
    const auto request = by_request_.find(ended[i]->second.request);
    if (request != by_request_.end() && request->second == ended[i]->first) {
      by_request_.erase(request);
    }
    by_id_.erase(ended[i]);
  }
}

std::shared_ptr<AnswerLog> AnswerLogs::JoinOrBegin(const std::string& tenant,
                                                   const std::string& session_id,
                                                   const std::string& request_id,
                                                   const std::string& id, bool resumable,
                                                   bool* made) {
  const std::string request =
      request_id.empty() ? "" : absl::StrCat(tenant, "/", session_id, "/", request_id);
  const std::string key = absl::StrCat(tenant, "/", id);
  sync::MutexLock lock(mutex_);
  Prune();
  *made = false;
  if (!request.empty()) {
    const auto found = by_request_.find(request);
    if (found != by_request_.end()) {
      std::shared_ptr<AnswerLog> log = by_id_.at(found->second).log;
      // One that was not stored may be stored by now: the store knows.
      if (!log->failed() && !log->cancelled() && !log->ended_not_stored()) {
        log->Enter();
        return log;
      }
    }
  }
  *made = true;
  auto log = std::make_shared<AnswerLog>(id, resumable, options_, clock_, &bytes_);
  by_id_[key] = {log, request, absl::InfiniteFuture()};
  if (!request.empty()) by_request_[request] = key;
  return log;
}

absl::StatusOr<std::shared_ptr<AnswerLog>> AnswerLogs::Find(const std::string& tenant,
                                                            const std::string& id) {
  sync::MutexLock lock(mutex_);
  Prune();
  const auto found = by_id_.find(absl::StrCat(tenant, "/", id));
  if (found == by_id_.end()) return NoSuchAnswer(id);
  return found->second.log;
}

AnswerLog::Event LoggedAnswer::Next(absl::Status* status) {
  const AnswerLog::Event event = log_->Read(after_, absl::Now() + kTick, &events_, status);
  if (event == AnswerLog::Event::kEvents) after_ = events_.back().sequence();
  return event;
}

absl::Status LoggedAnswer::Begin() {
  while (true) {
    absl::Status status;
    switch (Next(&status)) {
      case AnswerLog::Event::kEvents:
        started_ = log_->started();
        return absl::OkStatus();
      case AnswerLog::Event::kEnded:
        started_ = log_->started();
        return status;
      case AnswerLog::Event::kDropped:
        return Dropped(after_);
      case AnswerLog::Event::kNothing:
        RETURN_IF_ERROR(CheckStillWanted());
        break;
    }
  }
}

absl::Status LoggedAnswer::AwaitEnd() {
  while (!log_->ended()) {
    RETURN_IF_ERROR(CheckStillWanted());
    absl::SleepFor(kTick);
  }
  return absl::OkStatus();
}

absl::Status LoggedAnswer::CheckStillWanted() const {
  if (caller_.gone && caller_.gone()) return absl::CancelledError("the client went away");
  if (absl::Now() < caller_.deadline) return absl::OkStatus();
  return absl::DeadlineExceededError("the request took longer than it may");
}

absl::Status LoggedAnswer::Run(AnswerSink& sink) {
  // A sink must know what the answer began with, also where its client has seen that.
  if (events_.empty() || !events_.front().has_started()) {
    sink.OnStarted(started_);
    sink.Drop();
  }
  while (true) {
    for (const v1::ChatResponse& event : events_) {
      sink.OnSequence(event.sequence());
      Replay(event, started_, sink);
    }
    events_.clear();
    if (!sink.Flush()) return absl::CancelledError("the client went away");
    RETURN_IF_ERROR(CheckStillWanted());
    absl::Status status;
    const AnswerLog::Event event = Next(&status);
    if (event == AnswerLog::Event::kEnded) return status;
    if (event == AnswerLog::Event::kDropped) return Dropped(after_);
  }
}

bool LoggingSink::Log() {
  if (events_.empty()) return has_client_;
  const uint64_t last = log_.Append(&events_);
  if (has_client_) client_.OnSequence(last);
  return has_client_;
}

void LoggingSink::OnStarted(const Started& started) {
  log_.Start(started, vocabulary_);
  AppendStarted(started, &events_);
  if (Log()) client_.OnStarted(started);
}

void LoggingSink::OnPrompt(int index, const PromptEcho& prompt) {
  AppendPrompt(index, prompt, *vocabulary_, &events_);
  if (Log()) client_.OnPrompt(index, prompt);
}

void LoggingSink::OnDelta(int index, absl::string_view text,
                          absl::Span<const inference::v1::TokenLogprob> tokens) {
  AppendDelta(index, text, tokens, *vocabulary_, &events_);
  if (Log()) client_.OnDelta(index, text, tokens);
}

void LoggingSink::OnFinish(int index, inference::v1::FinishReason reason) {
  AppendFinish(index, reason, &events_);
  if (Log()) client_.OnFinish(index, reason);
}

void LoggingSink::OnUsage(const inference::v1::Usage& usage) {
  AppendUsage(usage, &events_);
  if (Log()) client_.OnUsage(usage);
}

void LoggingSink::OnReceipt(const inference::v1::MemoryReceipt& receipt) {
  if (!receipt.persisted()) log_.NoteNotStored();
  AppendReceipt(receipt, &events_);
  if (Log()) client_.OnReceipt(receipt);
}

void LoggingSink::OnDone(const Done& done) {
  AppendDone(done, &events_);
  if (Log()) client_.OnDone(done);
}

bool LoggingSink::Flush() {
  if (has_client_ && !client_.Flush()) {
    has_client_ = false;
    log_.LeaveClient();
  }
  return !log_.Abandoned();
}

}  // namespace mneme::gateway
