#include "services/gateway/turn.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/log/log.h"
#include "common/status/annotate.h"
#include "common/status/status_macros.h"

namespace mneme::gateway {
namespace {

namespace iv1 = inference::v1;

// How often the client and the lease are looked at while no token comes.
constexpr absl::Duration kTick = absl::Milliseconds(50);
// Responses taken before what they say is written, where the client is slower than the executor.
constexpr int kMaxBatch = 64;
// How long a turn whose text is complete waits for the executor to store the memory: so long, and
// longer by the bytes that all of it may have. An executor that knows that nothing will come of it
// says so earlier.
constexpr absl::Duration kLastWordPatience = absl::Seconds(2);
constexpr int64_t kMinStoredBytesPerSecond = int64_t{20} << 20;

}  // namespace

Turn::Turn(Parts parts, GatewayMetrics& metrics) : parts_(std::move(parts)), metrics_(metrics) {
  metrics_.in_flight.Increment();
  const size_t count = parts_.prompts.size() * parts_.answers_per_prompt;
  answers_.reserve(count);
  for (size_t i = 0; i < count; ++i) answers_.emplace_back(*parts_.vocabulary, parts_.answer);
  told_.resize(count);
  echoed_.resize(parts_.prompts.size());
  prompt_logprobs_.resize(parts_.prompts.size());
  num_open_ = static_cast<int>(count);
  for (const Prompt& prompt : parts_.prompts) {
    num_prompt_tokens_ += static_cast<int>(prompt.token_ids.size());
  }
  if (parts_.ticket != nullptr) parts_.ticket->Spend(num_prompt_tokens_);
  metrics_.prompt_tokens.Increment(num_prompt_tokens_);
}

Turn::~Turn() {
  parts_.generation.reset();
  if (parts_.log != nullptr) parts_.log->End(absl::CancelledError("the answer was given up"));
  if (parts_.ticket != nullptr) parts_.ticket->Spend(num_tokens_);
  metrics_.completion_tokens.Increment(num_tokens_);
  metrics_.cached_tokens.Increment(usage_.cached_tokens());
  metrics_.in_flight.Decrement();
}

absl::Status Turn::CheckStillWanted() const {
  if (parts_.caller.gone && parts_.caller.gone()) return Gone();
  return CheckLimits();
}

absl::Status Turn::Gone() const {
  return absl::CancelledError(parts_.log != nullptr && parts_.log->cancelled()
                                  ? "the answer was cancelled"
                                  : "the client went away");
}

absl::Status Turn::CheckLimits() const {
  if (parts_.shutdown != nullptr && *parts_.shutdown) {
    return absl::UnavailableError("the server is shutting down");
  }
  if (absl::Now() >= parts_.caller.deadline) {
    return absl::DeadlineExceededError("the request took longer than it may");
  }
  if (parts_.session != nullptr && parts_.session->lease != nullptr &&
      parts_.session->lease->lost()) {
    return status::WithPayload(absl::AbortedError("the session was taken over by another turn"),
                               status::kReasonPayload, "LEASE_LOST");
  }
  return absl::OkStatus();
}

absl::Status Turn::Begin() {
  if (parts_.generation == nullptr) return absl::OkStatus();  // committed before
  while (true) {
    absl::Status status;
    switch (parts_.generation->Next(absl::Now() + kTick, &first_call_, &response_, &status)) {
      case GenerationGroup::Event::kResponse:
        has_first_ = true;
        last_token_ = absl::Now();
        metrics_.time_to_first_token_seconds.Observe(
            absl::ToDoubleSeconds(last_token_ - parts_.caller.arrived));
        return absl::OkStatus();
      case GenerationGroup::Event::kEnded:
        RETURN_IF_ERROR(TakeEnd(first_call_, status));
        break;
      case GenerationGroup::Event::kNothing:
        RETURN_IF_ERROR(CheckStillWanted());
        break;
    }
  }
}

absl::Status Turn::TakeEnd(size_t call, const absl::Status& status) {
  // A call that was cancelled because its answers had all they needed.
  bool open = false;
  for (int k = 0; k < parts_.answers_per_prompt; ++k) {
    open = open || answers_[call * parts_.answers_per_prompt + k].finish_reason() ==
                       iv1::FINISH_REASON_UNSPECIFIED;
  }
  if (!open) return absl::OkStatus();
  if (!status.ok()) return status;
  // Only an executor that died between the last token and the word that it was the last one.
  lost_last_word_ = true;
  executor::v1::GenerateResponse end;
  end.set_finish_reason(iv1::FINISH_REASON_STOP);
  for (int k = 0; k < parts_.answers_per_prompt; ++k) {
    Answer& answer = answers_[call * parts_.answers_per_prompt + k];
    if (answer.finish_reason() != iv1::FINISH_REASON_UNSPECIFIED) continue;
    RETURN_IF_ERROR(answer.Add(end));
    --num_open_;
  }
  return absl::OkStatus();
}

void Turn::WriteEcho(size_t call, AnswerSink& sink) {
  // The prompt's log-probabilities may come in several messages, chunk by chunk.
  const Prompt& prompt = parts_.prompts[call];
  std::vector<iv1::TokenLogprob>& logprobs = prompt_logprobs_[call];
  logprobs.insert(logprobs.end(), response_.prompt_logprobs().begin(),
                  response_.prompt_logprobs().end());
  if (response_.token_ids().empty() &&
      response_.finish_reason() == iv1::FINISH_REASON_UNSPECIFIED) {
    return;
  }
  echoed_[call] = true;
  const int per_prompt = parts_.answers_per_prompt;
  for (int k = 0; k < per_prompt; ++k) {
    sink.OnPrompt(static_cast<int>(call) * per_prompt + k,
                  {prompt.text, prompt.token_ids, logprobs});
  }
  logprobs = {};
}

absl::Status Turn::TakeResponse(size_t call, AnswerSink& sink) {
  const int per_prompt = parts_.answers_per_prompt;
  if (response_.index() < 0 || response_.index() >= per_prompt) {
    return absl::InternalError("the executor sent an answer that was not asked for");
  }
  const size_t index = call * per_prompt + response_.index();
  if (parts_.echo && !echoed_[call]) WriteEcho(call, sink);
  if (response_.has_receipt()) receipt_ = response_.receipt();
  if (index == 0 && response_.finish_reason() != iv1::FINISH_REASON_UNSPECIFIED) {
    has_last_word_ = true;
    snapshot_id_ = response_.snapshot_id();
  }
  if (response_.has_usage()) {
    usage_.set_cached_tokens(std::max(usage_.cached_tokens(), response_.usage().cached_tokens()));
  }
  Answer& answer = answers_[index];
  if (answer.finish_reason() != iv1::FINISH_REASON_UNSPECIFIED) return absl::OkStatus();
  if (parts_.echo_only) {
    response_.clear_token_ids();
    response_.clear_logprobs();
    if (response_.finish_reason() != iv1::FINISH_REASON_UNSPECIFIED) {
      response_.set_finish_reason(iv1::FINISH_REASON_LENGTH);
    }
  }
  const int before = answer.num_tokens();
  RETURN_IF_ERROR(answer.Add(response_));
  const int added = answer.num_tokens() - before;
  num_tokens_ += added;
  if (answer.finish_reason() != iv1::FINISH_REASON_UNSPECIFIED) {
    --num_open_;
    // A session's generation is finished in good order instead: its memory is to be kept.
    if (answer.stopped_by_string() && per_prompt == 1 && parts_.session == nullptr) {
      parts_.generation->Cancel(call);
    }
  }
  if (added > 0) {
    const absl::Time now = absl::Now();
    if (now > last_token_) {
      metrics_.inter_token_seconds.Observe(absl::ToDoubleSeconds(now - last_token_) / added);
    }
    last_token_ = now;
  }
  return absl::OkStatus();
}

void Turn::WriteNew(AnswerSink& sink) {
  for (size_t i = 0; i < answers_.size(); ++i) {
    Answer& answer = answers_[i];
    if (told_[i]) continue;
    const int index = static_cast<int>(i);
    if (!answer.new_text().empty() || !answer.new_logprobs().empty()) {
      sink.OnDelta(index, answer.new_text(), answer.new_logprobs());
      answer.ClearNew();
    }
    if (answer.finish_reason() != iv1::FINISH_REASON_UNSPECIFIED) {
      sink.OnFinish(index, answer.finish_reason());
      told_[i] = true;
    }
  }
}

absl::Status Turn::WriteAndFlush(AnswerSink& sink) {
  WriteNew(sink);
  // A sink that takes nothing has found its client gone.
  return sink.Flush() ? absl::OkStatus() : Gone();
}

absl::Status Turn::Pump(AnswerSink& sink) {
  int batch = 0;  // responses taken and not yet written
  if (has_first_) {
    RETURN_IF_ERROR(TakeResponse(first_call_, sink));
    batch = 1;
  }
  while (num_open_ > 0) {
    size_t call = 0;
    absl::Status status;
    GenerationGroup::Event event = GenerationGroup::Event::kNothing;
    if (batch < kMaxBatch) {
      const absl::Time until = batch > 0 ? absl::InfinitePast() : absl::Now() + kTick;
      event = parts_.generation->Next(until, &call, &response_, &status);
    }
    switch (event) {
      case GenerationGroup::Event::kResponse:
        RETURN_IF_ERROR(TakeResponse(call, sink));
        ++batch;
        break;
      case GenerationGroup::Event::kEnded:
        RETURN_IF_ERROR(TakeEnd(call, status));
        ++batch;
        break;
      case GenerationGroup::Event::kNothing:
        if (batch > 0) {
          RETURN_IF_ERROR(WriteAndFlush(sink));
          RETURN_IF_ERROR(CheckLimits());
        } else {
          RETURN_IF_ERROR(CheckStillWanted());
        }
        batch = 0;
        break;
    }
  }
  WriteNew(sink);
  return absl::OkStatus();
}

void Turn::AwaitLastWord(AnswerSink& sink) {
  const Answer& answer = answers_.front();
  if (answer.stopped_by_string() && !has_last_word_) {
    parts_.generation->Finish(0, static_cast<int>(answer.TokensOfText().size()));
  }
  const int64_t bytes = (num_prompt_tokens_ + num_tokens_) * parts_.kv_bytes_per_token;
  const absl::Duration patience =
      kLastWordPatience + absl::Milliseconds(1000 * bytes / kMinStoredBytesPerSecond);
  const absl::Time until = std::min(parts_.caller.deadline, absl::Now() + patience);
  while (!has_last_word_ && !lost_last_word_ && absl::Now() < until) {
    size_t call = 0;
    absl::Status status;
    switch (parts_.generation->Next(until, &call, &response_, &status)) {
      case GenerationGroup::Event::kResponse:
        TakeResponse(call, sink).IgnoreError();  // the answer has ended: nothing is added to it
        break;
      case GenerationGroup::Event::kEnded:
        lost_last_word_ = true;
        break;
      case GenerationGroup::Event::kNothing:
        break;
    }
  }
  if (has_last_word_) return;
  parts_.generation->CancelAll();
  receipt_.set_snapshot_lost_reason(
      lost_last_word_ ? "the executor was lost before it had stored the memory"
                      : "the executor did not say in time that it had stored the memory");
}

uint64_t Turn::Commit() {
  SessionPart& session = *parts_.session;
  Answer& answer = answers_.front();
  iv1::Message& message = *session.turn.add_messages();
  message.set_role("assistant");
  message.set_content(answer.text());
  const absl::Span<const int32_t> kept = answer.TokensOfText();
  session.turn.mutable_token_ids()->Add(kept.begin(), kept.end());
  session.turn.set_finish_reason(answer.finish_reason());
  *session.turn.mutable_usage() = usage_;
  memory::v1::CommitTurnRequest commit;
  commit.set_parent_version(session.parent_version);
  *commit.mutable_turn() = session.turn;
  commit.set_snapshot_id(snapshot_id_);
  commit.set_executor(parts_.generation->ExecutorOf(0));
  const absl::Time begun = absl::Now();
  const absl::StatusOr<memory::v1::CommitTurnResponse> committed = session.lease->Commit(&commit);
  (*receipt_.mutable_ms())["commit"] = absl::ToDoubleMilliseconds(absl::Now() - begun);
  if (committed.ok()) {
    receipt_.set_persisted(true);
    receipt_.set_committed_version(committed->version());
    if (!committed->snapshot_lost_reason().empty()) {
      receipt_.set_snapshot_lost_reason(committed->snapshot_lost_reason());
    } else if (!receipt_.not_persisted_reason().empty()) {
      // What the executor could not store is the memory; text and tokens are stored now.
      receipt_.set_snapshot_lost_reason(receipt_.not_persisted_reason());
    }
    receipt_.clear_not_persisted_reason();
    return committed->version();
  }
  metrics_.unpersisted_turns.Increment();
  std::string reason(committed.status().message());
  log::Warning("a turn was answered but not committed",
               {{"request_id", parts_.caller.context.request_id}, {"error", reason}});
  const bool away =
      absl::IsUnavailable(committed.status()) || absl::IsDeadlineExceeded(committed.status());
  if (away && session.store->CommitLater(std::move(session.lease), std::move(commit))) {
    reason += "; the turn is committed as soon as it does, unless another one comes first";
  }
  receipt_.set_persisted(false);
  receipt_.set_not_persisted_reason(std::move(reason));
  return session.parent_version;
}

absl::Status Turn::Replay(AnswerSink& sink) {
  const memory::v1::Turn& turn = parts_.session->turn;
  if (turn.messages_size() > 0) {
    sink.OnDelta(0, turn.messages(turn.messages_size() - 1).content(), {});
  }
  sink.OnFinish(0, turn.finish_reason());
  sink.OnUsage(turn.usage());
  receipt_.set_persisted(true);
  receipt_.set_committed_version(turn.version());
  sink.OnReceipt(receipt_);
  sink.OnDone({parts_.session->session_id, turn.version()});
  return sink.Flush() ? absl::OkStatus() : Gone();
}

absl::Status Turn::Run(AnswerSink& sink) {
  if (parts_.log == nullptr) return Give(sink);
  LoggingSink logging(*parts_.log, sink, parts_.vocabulary);
  const absl::Status status = Give(logging);
  parts_.log->End(status);
  if (status.ok() && !logging.has_client()) return absl::CancelledError("the client went away");
  return status;
}

absl::Status Turn::Give(AnswerSink& sink) {
  sink.OnStarted(parts_.started);
  if (parts_.generation == nullptr) return Replay(sink);
  absl::Status status = Pump(sink);
  if (!status.ok()) {
    if (absl::IsCancelled(status)) metrics_.cancelled.Increment();
    return status;
  }
  usage_.set_prompt_tokens(num_prompt_tokens_);
  usage_.set_completion_tokens(num_tokens_);
  Done done;
  if (parts_.session != nullptr) {
    // The text is out already; what remains to say waits for the commit.
    if (!sink.Flush()) {
      metrics_.cancelled.Increment();
      return Gone();
    }
    AwaitLastWord(sink);
    done.session_id = parts_.session->session_id;
    done.version = Commit();
  }
  (*receipt_.mutable_ms())["total"] =
      absl::ToDoubleMilliseconds(absl::Now() - parts_.caller.arrived);
  if (receipt_.tier().empty()) receipt_.set_tier("none");
  sink.OnUsage(usage_);
  sink.OnReceipt(receipt_);
  sink.OnDone(done);
  return sink.Flush() ? absl::OkStatus() : Gone();
}

}  // namespace mneme::gateway
