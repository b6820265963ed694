#include "services/gateway/generation.h"

#include <algorithm>
#include <chrono>
#include <optional>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/time/clock.h"
#include "common/log/log.h"
#include "common/rpc/client.h"
#include "common/rpc/grpc_status.h"
#include "common/status/annotate.h"

namespace mneme::gateway {
namespace {

namespace ev1 = executor::v1;
namespace iv1 = inference::v1;

constexpr absl::Duration kPickInterval = absl::Milliseconds(20);
constexpr absl::Duration kFinishTimeout = absl::Seconds(1);

// The delay after which a retry makes sense; none where `status` names none.
std::optional<absl::Duration> RetryAfterOf(const absl::Status& status) {
  int64_t ms = 0;
  if (!absl::SimpleAtoi(status::PayloadOf(status, status::kRetryAfterPayload), &ms)) {
    return std::nullopt;
  }
  return absl::Milliseconds(ms);
}

bool IsQueueFull(const absl::Status& status) {
  // Without a delay it is the request that is too large, for this executor at least.
  return absl::IsResourceExhausted(status) && RetryAfterOf(status).has_value();
}

}  // namespace

// One Generate call over all its attempts. At most one operation is pending in the loop. All but
// OnDone are called under the group's lock.
class GenerationGroup::Call final : public CompletionLoop::Handler {
 public:
  Call(GenerationGroup& group, ev1::GenerateRequest request, ExecutorPool::Preference prefer,
       ExecutorPool::Claim claim)
      : group_(group),
        request_(std::move(request)),
        prefer_(std::move(prefer)),
        claim_(std::move(claim)) {}

  // Begins, or begins again; without a ready executor the call waits for one.
  void Start() {
    if (claim_.get() == nullptr) {
      const ExecutorPool::Query query{request_.model(), fingerprint_, prefer_, excluded_};
      absl::StatusOr<ExecutorPool::Claim> claim = group_.pool_.Pick(query);
      if (!claim.ok() || cancelled_) return Wait(claim.status());
      claim_ = *std::move(claim);
    }
    address_ = claim_->address;
    num_ended_ = claim_->num_ended;
    if (fingerprint_.empty()) {
      fingerprint_ =
          group_.pool_.Describe(request_.model()).value_or(ev1::GetModelResponse()).fingerprint();
    }
    context_ = std::make_unique<grpc::ClientContext>();
    rpc::Prepare(group_.context_, group_.deadline_, context_.get());
    state_ = State::kPosted;
    group_.loop_.Post(this);
  }

  // The pending operation is done.
  void OnDone(bool ok) override {
    const std::shared_ptr<Lock> lock = group_.lock_;
    {
      sync::MutexLock held(lock->mutex);
      Advance(ok);
    }
    // After unlocking: whoever is woken would only wait again.
    lock->changed.NotifyOne();
  }

  void OnTick(absl::Time now) {
    if (state_ == State::kWaiting && (now >= next_try_ || cancelled_)) Start();
  }

  bool TakeResponse(ev1::GenerateResponse* response) {
    if (responses_.empty()) return false;
    response->Swap(&responses_.front());
    responses_.pop_front();
    Resume();
    return true;
  }

  bool TakeEnd(absl::Status* status) {
    if (state_ != State::kEnded || told_) return false;
    told_ = true;
    *status = error_;
    return true;
  }

  void Cancel() {
    cancelled_ = true;
    if (context_ != nullptr) context_->TryCancel();
  }

  // From now on the call is not begun again elsewhere. Returns the executor that it runs on, null
  // where it runs on none; `finish` says which generation it is.
  ExecutorPool::Executor* BeginFinish(ev1::FinishGenerationRequest* finish) {
    finishing_ = true;
    finish->set_tenant(request_.tenant());
    finish->set_session_id(request_.session_id());
    finish->set_lease_token(request_.lease_token());
    return claim_.get();
  }

  const std::string& address() const { return address_; }

  bool pending() const {
    return state_ != State::kWaiting && state_ != State::kPaused && state_ != State::kEnded;
  }
  bool waiting() const { return state_ == State::kWaiting; }
  bool cancelled() const { return cancelled_; }
  // Forgets what nobody wants any more, so that the call can end.
  void Discard() {
    responses_.clear();
    Resume();
  }
  void EndUnstarted() {
    state_ = State::kEnded;
    told_ = true;
  }

 private:
  enum class State {
    kWaiting,  // for an executor
    kPosted,   // the loop is to begin it
    kStarting,
    kReading,
    kPaused,    // enough is read that nobody has taken
    kResuming,  // the loop is to read on
    kFinishing,
    kEnded,
  };

  int NumAnswers() const { return std::max(1, request_.sampling().n()); }

  void Advance(bool ok) {
    switch (state_) {
      case State::kPosted:
        reader_ =
            claim_->stub->PrepareAsyncGenerate(context_.get(), request_, group_.loop_.queue());
        state_ = State::kStarting;
        reader_->StartCall(Tag());
        break;
      case State::kStarting:
      case State::kResuming:
        Read();
        break;
      case State::kReading:
        if (ok) {
          Receive();
        } else {
          state_ = State::kFinishing;
          reader_->Finish(&status_, Tag());
        }
        break;
      case State::kFinishing:
        OnFinished();
        break;
      case State::kWaiting:
      case State::kPaused:
      case State::kEnded:
        break;
    }
  }

  // There is no executor for the call now, as `status` says.
  void Wait(const absl::Status& status) {
    const absl::Time now = absl::Now();
    state_ = State::kWaiting;
    if (error_.ok()) error_ = status;
    if (IsQueueFull(status)) {
      give_up_ = absl::InfiniteFuture();  // executors are there, and places become free
    } else if (give_up_ == absl::InfiniteFuture()) {
      give_up_ = now + group_.options_.failover_wait;
    }
    const bool may_wait =
        !absl::IsResourceExhausted(error_) || (IsQueueFull(error_) && group_.HasPlace());
    if (now >= std::min(give_up_, group_.deadline_) || cancelled_ || !may_wait) {
      End(error_);
      return;
    }
    // Whoever failed may be back by then.
    excluded_.clear();
    next_try_ = now + kPickInterval;
  }

  void* Tag() { return static_cast<CompletionLoop::Handler*>(this); }

  void Resume() {
    if (state_ != State::kPaused) return;
    state_ = State::kResuming;
    group_.loop_.Post(this);
  }

  void Read() {
    state_ = State::kReading;
    reader_->Read(&response_, Tag());
  }

  void Receive() {
    give_up_ = absl::InfiniteFuture();
    error_ = absl::OkStatus();
    received_ = true;
    group_.has_received_ = true;
    if (response_.finish_reason() != iv1::FINISH_REASON_UNSPECIFIED) ++finished_;
    if (NumAnswers() == 1) request_.mutable_generated_ids()->MergeFrom(response_.token_ids());
    responses_.emplace_back();
    responses_.back().Swap(&response_);
    if (responses_.size() < group_.options_.max_untaken) {
      Read();
    } else {
      state_ = State::kPaused;
    }
  }

  void OnFinished() {
    absl::Status status = rpc::FromGrpc(status_);
    ExecutorPool::Executor* const executor = claim_.get();
    reader_.reset();
    context_.reset();
    // Before the place is free, so that nobody is sent to a queue that is known to be full.
    const bool refused = IsQueueFull(status);
    if (refused) {
      group_.pool_.ReportFull(executor, num_ended_, *RetryAfterOf(status));
    } else {
      ++executor->num_ended;
    }
    claim_ = ExecutorPool::Claim();
    if (finished_ >= NumAnswers()) return End(absl::OkStatus());
    if (cancelled_) return End(absl::CancelledError("the request was cancelled"));
    if (finishing_) return End(absl::UnavailableError("the executor ended before its last word"));
    if (status.ok()) {
      status = absl::InternalError("the executor ended a generation without a finish reason");
    }
    // A server that ends its running calls at shutdown cancels them.
    const bool lost = absl::IsUnavailable(status) || absl::IsCancelled(status);
    if (lost) group_.pool_.ReportFailure(executor);
    const bool try_again = lost || refused || (absl::IsResourceExhausted(status) && !received_);
    if (!try_again) return End(std::move(status));
    if (absl::IsCancelled(status)) {
      status = absl::UnavailableError("the executor ended the generation: it is shutting down");
    }
    error_ = std::move(status);
    if (received_ && NumAnswers() > 1) return End(error_);
    if (received_ && EndedBeforeLoss()) return End(absl::OkStatus());
    if (give_up_ == absl::InfiniteFuture()) {
      give_up_ = absl::Now() + group_.options_.failover_wait;
    }
    excluded_.push_back(executor);
    (received_ ? group_.metrics_.failovers : group_.metrics_.retries).Increment();
    // Refusals are only counted: a flood must not fill the disk.
    if (refused) return Start();
    log::Warning(received_ ? "generation goes on elsewhere" : "generation is begun again",
                 {{"request_id", group_.context_.request_id},
                  {"executor", executor->address},
                  {"tokens", request_.generated_ids_size()},
                  {"error", std::string(error_.message())}});
    Start();
  }

  // The last tokens came but not the message that says so: nothing is left to generate.
  bool EndedBeforeLoss() {
    const auto& ids = request_.generated_ids();
    const auto& sampling = request_.sampling();
    if (ids.empty()) return false;
    const auto contains = [last = ids[ids.size() - 1]](const auto& list) {
      return std::count(list.begin(), list.end(), last) > 0;
    };
    bool stop = ids.size() >= sampling.min_tokens() && contains(sampling.stop_token_ids());
    if (!sampling.ignore_eos() && ids.size() >= sampling.min_tokens()) {
      const auto model = group_.pool_.Describe(request_.model());
      stop = stop || (model.ok() && contains(model->eos_token_ids()));
    }
    const bool full = sampling.has_max_tokens() && ids.size() >= sampling.max_tokens();
    return stop || full;
  }

  void End(absl::Status status) {
    error_ = std::move(status);
    state_ = State::kEnded;
    --group_.running_;
  }

  GenerationGroup& group_;
  ev1::GenerateRequest request_;
  const ExecutorPool::Preference prefer_;
  std::string address_;
  std::string fingerprint_;
  std::vector<const ExecutorPool::Executor*> excluded_;
  ExecutorPool::Claim claim_;
  uint64_t num_ended_ = 0;  // the executor's, when the call was made
  std::unique_ptr<grpc::ClientContext> context_;
  std::unique_ptr<grpc::ClientAsyncReader<ev1::GenerateResponse>> reader_;
  ev1::GenerateResponse response_;
  std::deque<ev1::GenerateResponse> responses_;  // not taken yet
  grpc::Status status_;
  State state_ = State::kWaiting;
  absl::Status error_;
  absl::Time give_up_ = absl::InfiniteFuture();
  absl::Time next_try_ = absl::InfinitePast();
  int finished_ = 0;
  bool received_ = false;
  bool cancelled_ = false;
  bool finishing_ = false;
  bool told_ = false;
};

GenerationGroup::GenerationGroup(CompletionLoop& loop, ExecutorPool& pool, GatewayMetrics& metrics,
                                 const GenerationOptions& options, trace::RequestContext context,
                                 absl::Time deadline)
    : loop_(loop),
      pool_(pool),
      metrics_(metrics),
      options_(options),
      context_(std::move(context)),
      deadline_(deadline),
      lock_(std::make_shared<Lock>()) {}

GenerationGroup::~GenerationGroup() {
  sync::MutexLock lock(lock_->mutex);
  not_started_.clear();
  for (const auto& call : calls_) call->Cancel();
  const auto pending = [this] {
    bool any = false;
    for (const auto& call : calls_) {
      call->Discard();
      any = any || call->pending();
    }
    return any;
  };
  while (pending()) lock_->changed.Wait(lock_->mutex);
}

void GenerationGroup::Add(ev1::GenerateRequest request, ExecutorPool::Preference prefer,
                          ExecutorPool::Claim claim) {
  sync::MutexLock lock(lock_->mutex);
  not_started_.push_back(calls_.size());
  calls_.push_back(
      std::make_unique<Call>(*this, std::move(request), std::move(prefer), std::move(claim)));
  StartWaiting();
}

void GenerationGroup::StartWaiting() {
  while (running_ < options_.max_parallel && !not_started_.empty()) {
    const size_t i = not_started_.front();
    not_started_.pop_front();
    ++running_;
    calls_[i]->Start();
  }
}

GenerationGroup::Event GenerationGroup::Next(absl::Time until, size_t* call,
                                             ev1::GenerateResponse* response,
                                             absl::Status* status) {
  sync::MutexLock lock(lock_->mutex);
  while (true) {
    StartWaiting();
    // In turns, so that no call of many starves the others.
    for (size_t k = 0; k < calls_.size(); ++k) {
      const size_t i = (next_ + k) % calls_.size();
      *call = i;
      const bool has_response = calls_[i]->TakeResponse(response);
      if (!has_response && !calls_[i]->TakeEnd(status)) continue;
      next_ = i + 1;
      return has_response ? Event::kResponse : Event::kEnded;
    }
    const absl::Time now = absl::Now();
    if (now >= until) return Event::kNothing;
    absl::Time wake = until;
    bool refused = false;
    for (const auto& each : calls_) {
      // Where one finds no executor the next would find none either.
      if (!refused || each->cancelled()) each->OnTick(now);
      refused = refused || each->waiting();
    }
    if (refused) wake = std::min(wake, now + kPickInterval);
    lock_->changed.WaitUntil(
        lock_->mutex, std::chrono::steady_clock::now() + absl::ToChronoMicroseconds(wake - now));
  }
}

void GenerationGroup::Finish(size_t call, int num_tokens) {
  ev1::FinishGenerationRequest finish;
  ExecutorPool::Executor* executor = nullptr;
  {
    sync::MutexLock lock(lock_->mutex);
    executor = calls_[call]->BeginFinish(&finish);
  }
  absl::Status status = absl::UnavailableError("the generation runs on no executor");
  if (executor != nullptr) {
    finish.set_num_tokens(num_tokens);
    ev1::FinishGenerationResponse response;
    grpc::ClientContext context;
    rpc::Prepare(context_, absl::Now() + kFinishTimeout, &context);
    status = rpc::FromGrpc(executor->stub->FinishGeneration(&context, finish, &response));
  }
  // One that is not running any more has said its last word.
  if (status.ok() || absl::IsNotFound(status)) return;
  log::Warning("a generation could not be finished and is cancelled",
               {{"request_id", context_.request_id}, {"error", std::string(status.message())}});
  Cancel(call);
}

std::string GenerationGroup::ExecutorOf(size_t call) const {
  sync::MutexLock lock(lock_->mutex);
  return calls_[call]->address();
}

bool GenerationGroup::HasPlace() const {
  return has_received_ || std::any_of(calls_.begin(), calls_.end(),
                                      [](const auto& call) { return call->pending(); });
}

void GenerationGroup::CancelLocked(size_t call) {
  const auto waiting = std::find(not_started_.begin(), not_started_.end(), call);
  if (waiting != not_started_.end()) {
    not_started_.erase(waiting);
    calls_[call]->EndUnstarted();
    return;
  }
  calls_[call]->Cancel();
}

void GenerationGroup::Cancel(size_t call) {
  sync::MutexLock lock(lock_->mutex);
  CancelLocked(call);
}

void GenerationGroup::CancelAll() {
  sync::MutexLock lock(lock_->mutex);
  for (size_t i = 0; i < calls_.size(); ++i) CancelLocked(i);
}

}  // namespace mneme::gateway
