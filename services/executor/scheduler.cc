#include "services/executor/scheduler.h"

#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <utility>

#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/log/log.h"
#include "common/status/status_macros.h"
#include "kernels/paged_attention.h"
#include "services/executor/step_plan.h"

namespace mneme::executor {
namespace {

// Floats of logits that chunks may ask for in one step: 96 MiB.
constexpr int64_t kMaxChunkLogits = int64_t{24} << 20;
// Chunks don't shrink below this, or reading prompts would stop under load.
constexpr int64_t kMinChunkTokens = 32;

int64_t PagesOf(int64_t entries) {
  return (entries + kernels::kPageEntries - 1) / kernels::kPageEntries;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Scheduler>> Scheduler::Create(StepModel* model,
                                                             const SchedulerOptions& options,
                                                             ExecutorMetrics* metrics) {
  auto scheduler = absl::WrapUnique(new Scheduler(model, options, metrics));
  const memory::KvPoolOptions pool_options = model->PoolOptions(options.kv_budget_bytes);
  ASSIGN_OR_RETURN(scheduler->pool_, memory::KvPool::Create(pool_options));
  ASSIGN_OR_RETURN(scheduler->tables_,
                   memory::KvTables::Create(model->kv_shape(), pool_options.device));
  scheduler->results_ = std::make_unique<StepResults>(metrics);
  metrics->kv_pages_total.Set(static_cast<double>(scheduler->pool_->num_pages()));
  return scheduler;
}

void Scheduler::Add(std::shared_ptr<Request> request) {
  const WorkSpec& spec = request->spec;
  request->open_answers = spec.num_answers();
  metrics_->prompt_tokens.Increment(static_cast<double>(spec.prompt.size()));
  for (size_t i = 0; i < spec.continuations.size(); ++i) {
    if (spec.continuations[i].size() > 1) request->todo.push_back(static_cast<int>(i));
  }
  Enqueue(MakeLeader(std::move(request)));
}

bool Scheduler::Step() {
  const c10::InferenceMode inference;
  DropGoneRequests();
  UpdatePauses();
  SpawnContinuations();
  Admit();
  const std::vector<Share> wanted = Plan();
  const std::vector<Share> plan = ReservePages(wanted);
  if (plan.empty()) {
    if (!wanted.empty()) {
      // TokenLimit keeps this from happening; if it does, one request must not block the others.
      log::Error("no pages for the oldest sequence", {{"free_pages", pool_->free_pages()}});
      CloseRequest(
          wanted.front().sequence->request,
          absl::ResourceExhaustedError(
              "the key/value memory is too small for this request; raise kv_budget_bytes"));
    }
    UpdateGauges();
    return !wanted.empty();
  }
  const absl::Status status = Run(plan);
  if (!status.ok()) {
    log::Error("step failed", {{"error", std::string(status.message())},
                               {"sequences", static_cast<int64_t>(plan.size())}});
    std::vector<std::shared_ptr<Request>> requests;
    for (const Share& share : plan) requests.push_back(share.sequence->request);
    for (const std::shared_ptr<Request>& request : requests) CloseRequest(request, status);
  }
  UpdateGauges();
  return true;
}

void Scheduler::DropGoneRequests() {
  const absl::Time now = absl::Now();
  std::vector<std::shared_ptr<Request>> gone;
  const auto look = [&](const std::unique_ptr<Sequence>& sequence) {
    const Request& request = *sequence->request;
    if (!request.stream->cancelled() && now < request.spec.deadline) return;
    if (gone.empty() || gone.back() != sequence->request) gone.push_back(sequence->request);
  };
  for (const auto& sequence : running_) look(sequence);
  for (const auto& sequence : waiting_) look(sequence);
  for (const std::shared_ptr<Request>& request : gone) {
    CloseRequest(request, request->stream->cancelled()
                              ? absl::CancelledError("the caller cancelled the request")
                              : absl::DeadlineExceededError("the request's deadline has passed"));
  }
}

void Scheduler::UpdatePauses() {
  const Instant now = std::chrono::steady_clock::now();
  for (const auto& sequence : running_) {
    if (sequence->kind != SequenceKind::kAnswer) continue;
    if (!sequence->request->stream->is_backed_up(sequence->index)) {
      sequence->paused_since.reset();
    } else if (!sequence->paused_since.has_value()) {
      sequence->paused_since = now;
    }
  }
}

void Scheduler::SpawnContinuations() {
  std::vector<Sequence*> contexts;
  int64_t places = 0;
  int64_t continuations = 0;
  for (const auto& sequence : running_) {
    places += sequence->num_places();
    continuations += sequence->kind == SequenceKind::kContinuation ? 1 : 0;
    if (sequence->is_idle_context() && !sequence->request->todo.empty()) {
      contexts.push_back(sequence.get());
    }
  }
  for (Sequence* const context : contexts) {
    std::vector<int>& todo = context->request->todo;
    bool has_fork = std::any_of(running_.begin(), running_.end(), [&](const auto& sequence) {
      return sequence->request == context->request && sequence.get() != context;
    });
    // At most half of the places, or one request with many continuations would keep all others out.
    const int64_t most = options_.max_running / 2;
    while (!todo.empty() &&
           ((places < options_.max_running && continuations < most) || !has_fork)) {
      const int64_t length =
          static_cast<int64_t>(context->request->spec.continuations[todo.back()].size());
      const int64_t pages = model_->kv_shape().num_heads() * (1 + PagesOf(length));
      if (has_fork && pool_->free_pages() < pages) break;
      metrics_->reused_tokens.Increment(static_cast<double>(context->num_computed()));
      Insert(ForkContinuation(*context, todo.back()));
      todo.pop_back();
      has_fork = true;
      ++places;
      ++continuations;
    }
  }
}

bool Scheduler::HasRoomFor(const Sequence& sequence) const {
  const memory::KvShape& shape = model_->kv_shape();
  int64_t places = sequence.num_places();
  // What the running ones will still take: the rest of their prompts, and a page a head to grow.
  int64_t promised = 0;
  for (const auto& other : running_) {
    places += other->num_places();
    promised += other->num_places() * shape.num_heads();
    if (other->waiting_tokens() <= 1) continue;
    const int64_t peak = other->request->spec.policy->EstimatePeakPages(
        shape, other->num_to_compute(), options_.step_tokens);
    promised += std::max<int64_t>(peak - other->memory->num_pages(), 0);
  }
  if (places > options_.max_running) return false;
  if (running_.empty()) return true;
  const int64_t needed = sequence.num_places() * shape.num_heads() +
                         sequence.request->spec.policy->EstimatePeakPages(
                             shape, sequence.num_to_compute(), options_.step_tokens);
  return needed + promised <= pool_->free_pages();
}

bool Scheduler::TakeFromPaused() {
  const Instant now = std::chrono::steady_clock::now();
  for (auto it = running_.rbegin(); it != running_.rend(); ++it) {
    if ((*it)->paused_since.has_value() && now - *(*it)->paused_since >= options_.pause_limit) {
      Preempt(it->get());
      return true;
    }
  }
  return false;
}

void Scheduler::Admit() {
  for (;;) {
    // One that paused before it was preempted waits for its reader without blocking the queue.
    const auto next = std::find_if(waiting_.begin(), waiting_.end(), [](const auto& sequence) {
      return sequence->kind != SequenceKind::kAnswer ||
             !sequence->request->stream->is_backed_up(sequence->index);
    });
    if (next == waiting_.end()) return;
    if (!HasRoomFor(**next)) {
      if (!TakeFromPaused()) return;
      continue;
    }
    std::unique_ptr<Sequence> sequence = std::move(*next);
    waiting_.erase(next);
    Request& request = *sequence->request;
    if (!request.started.has_value()) {
      request.started = std::chrono::steady_clock::now();
      last_queue_seconds_ =
          std::chrono::duration<double>(*request.started - request.submitted).count();
      metrics_->queue_seconds.Observe(last_queue_seconds_);
    }
    sequence->memory.emplace(pool_.get(), model_->kv_shape(), request.spec.policy);
    Insert(std::move(sequence));
  }
}

std::vector<Scheduler::Share> Scheduler::Plan() const {
  std::vector<Share> shares;
  std::vector<StepWish> wishes;
  bool has_decode = false;
  for (const auto& sequence : running_) {
    if (sequence->paused_since.has_value() || sequence->waiting_tokens() == 0) continue;
    shares.push_back({sequence.get(), 0});
    wishes.push_back({sequence->waiting_tokens(), sequence->kind == SequenceKind::kContinuation ||
                                                      sequence->wants_prompt_scores()});
    has_decode |= wishes.back().waiting_tokens == 1;
  }
  StepRoom room;
  room.step_tokens = options_.step_tokens;
  room.prefill_tokens = options_.step_tokens;
  if (has_decode && tokens_per_second_ > 0) {
    const double seconds = std::chrono::duration<double>(options_.decode_step_target).count();
    room.prefill_tokens =
        std::clamp(static_cast<int64_t>(tokens_per_second_ * seconds),
                   std::min(kMinChunkTokens, options_.step_tokens), options_.step_tokens);
  }
  room.logit_rows = std::max<int64_t>(kMaxChunkLogits / model_->limits().vocab_size, 1);
  const std::vector<int64_t> plan = PlanStep(wishes, room);
  for (size_t i = 0; i < shares.size(); ++i) {
    const Sequence& sequence = *shares[i].sequence;
    if (plan[i] == 0) continue;
    shares[i].num_tokens = sequence.memory->policy()
                               .LayOut(*sequence.memory, sequence.waiting_tokens(), plan[i])
                               .num_tokens;
  }
  std::erase_if(shares, [](const Share& share) { return share.num_tokens == 0; });
  return shares;
}

std::vector<Scheduler::Share> Scheduler::ReservePages(std::vector<Share> plan) {
  std::vector<Share> reserved;
  for (size_t i = 0; i < plan.size(); ++i) {
    Sequence* const sequence = plan[i].sequence;
    if (sequence == nullptr) continue;  // preempted meanwhile
    absl::Status status = sequence->memory->Attach(*tables_);
    if (status.ok()) status = sequence->memory->Reserve(plan[i].num_tokens);
    while (!status.ok() && PreemptFor(*sequence, &plan)) {
      status = sequence->memory->Attach(*tables_);
      if (status.ok()) status = sequence->memory->Reserve(plan[i].num_tokens);
    }
    // Without pages it stands still until an older one ends.
    if (status.ok()) reserved.push_back(plan[i]);
  }
  return reserved;
}

bool Scheduler::PreemptFor(const Sequence& needy, std::vector<Share>* plan) {
  Sequence* victim = nullptr;
  for (const auto& candidate : running_) {
    if (candidate.get() == &needy || candidate->memory->num_pages() == 0) continue;
    const bool is_paused = candidate->paused_since.has_value();
    if (!is_paused && !IsOlder(needy, *candidate)) continue;
    // running_ is sorted by age: the last one wins, a paused one over any other.
    if (victim == nullptr || is_paused || !victim->paused_since.has_value()) {
      victim = candidate.get();
    }
  }
  if (victim == nullptr) return false;
  for (Share& share : *plan) {
    if (share.sequence == victim) share.sequence = nullptr;
  }
  Preempt(victim);
  return true;
}

void Scheduler::Preempt(Sequence* sequence) {
  std::unique_ptr<Sequence> owned = TakeRunning(sequence);
  metrics_->preemptions.Increment();
  if (owned->kind == SequenceKind::kContinuation) {
    // Its context makes it anew.
    owned->request->todo.push_back(owned->index);
    return;
  }
  owned->peak_bytes = std::max(owned->peak_bytes, owned->memory->peak_bytes());
  owned->memory.reset();
  owned->paused_since.reset();
  Enqueue(std::move(owned));
}

absl::Status Scheduler::Run(const std::vector<Share>& plan) {
  const Instant begin = std::chrono::steady_clock::now();
  std::vector<model::SequenceStep> steps;
  std::vector<StepResults::Rows> rows;
  int64_t num_tokens = 0;
  int64_t num_rows = 0;
  bool has_chunks = false;
  for (const Share& share : plan) {
    Sequence& sequence = *share.sequence;
    const int64_t num_logits = sequence.NumLogits(share.num_tokens);
    steps.push_back(
        {&*sequence.memory,
         absl::MakeConstSpan(sequence.tokens).subspan(sequence.num_computed(), share.num_tokens),
         num_logits});
    rows.push_back({&sequence, num_rows, num_logits});
    num_rows += num_logits;
    num_tokens += share.num_tokens;
    has_chunks |= share.num_tokens > 1;
    if (!sequence.first_token.has_value()) sequence.prefilled_tokens += share.num_tokens;
  }
  ASSIGN_OR_RETURN(at::Tensor logits, model_->Forward(steps));
  if (!logits.device().is_cpu()) logits = logits.to(at::kCPU);
  for (const Share& share : plan) RETURN_IF_ERROR(share.sequence->memory->Forget());

  StepResults::Outcome outcome = results_->Take(logits, rows);
  for (auto& sequence : outcome.forked) Insert(std::move(sequence));
  std::vector<Sequence*> scored;
  for (const StepResults::Rows& entry : rows) {
    Sequence& context = *entry.sequence;
    if (context.is_idle_context() && !context.forked) scored.push_back(&context);
  }
  for (Sequence* const sequence : outcome.broken) {
    const auto owner = std::find_if(running_.begin(), running_.end(),
                                    [&](const auto& other) { return other.get() == sequence; });
    if (owner == running_.end()) continue;  // gone with another of its request
    CloseRequest((*owner)->request,
                 absl::InternalError("the model gave no finite logits; are the weights intact?"));
  }
  for (Sequence* const context : scored) EndSingleTokens(context);
  for (Sequence* const sequence : outcome.ended) Retire(sequence);

  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  NoteRate(num_tokens, has_chunks, seconds);
  return absl::OkStatus();
}

void Scheduler::EndSingleTokens(Sequence* context) {
  const std::shared_ptr<Request> request = context->request;
  context->forked = true;
  for (size_t i = 0; i < request->spec.continuations.size(); ++i) {
    if (request->spec.continuations[i].size() > 1) continue;
    StreamEvent event;
    event.index = static_cast<int>(i);
    event.logprobs.push_back(context->scores[i]);
    request->stream->Push(std::move(event));
    --request->open_answers;
  }
  if (request->open_answers == 0) CloseRequest(request, absl::OkStatus());
}

void Scheduler::Retire(Sequence* sequence) {
  const std::unique_ptr<Sequence> owned = TakeRunning(sequence);
  if (owned == nullptr) return;
  const std::shared_ptr<Request> request = owned->request;
  if (owned->kind == SequenceKind::kContinuation) {
    StreamEvent event;
    event.index = owned->index;
    event.logprobs = std::move(owned->scores);
    request->stream->Push(std::move(event));
  }
  if (--request->open_answers == 0) CloseRequest(request, absl::OkStatus());
}

void Scheduler::NoteRate(int64_t num_tokens, bool has_chunks, double seconds) {
  metrics_->steps.Increment();
  metrics_->step_seconds.Observe(seconds);
  metrics_->step_tokens.Observe(static_cast<double>(num_tokens));
  if (!has_chunks || num_tokens < kMinChunkTokens || seconds <= 0) return;
  const double rate = static_cast<double>(num_tokens) / seconds;
  tokens_per_second_ = tokens_per_second_ == 0 ? rate : 0.7 * tokens_per_second_ + 0.3 * rate;
}

void Scheduler::UpdateGauges() {
  const double used = static_cast<double>(pool_->used_pages());
  metrics_->running_sequences.Set(static_cast<double>(running_.size()));
  metrics_->waiting_requests.Set(static_cast<double>(waiting_.size()));
  metrics_->kv_pages_used.Set(used);
  metrics_->kv_usage_ratio.Set(used / static_cast<double>(pool_->num_pages()));
}

void Scheduler::Enqueue(std::unique_ptr<Sequence> sequence) {
  const auto place = std::upper_bound(waiting_.begin(), waiting_.end(), sequence,
                                      [](const auto& a, const auto& b) { return IsOlder(*a, *b); });
  waiting_.insert(place, std::move(sequence));
}

void Scheduler::Insert(std::unique_ptr<Sequence> sequence) {
  const auto place = std::upper_bound(running_.begin(), running_.end(), sequence,
                                      [](const auto& a, const auto& b) { return IsOlder(*a, *b); });
  running_.insert(place, std::move(sequence));
}

std::unique_ptr<Sequence> Scheduler::TakeRunning(const Sequence* sequence) {
  const auto it = std::find_if(running_.begin(), running_.end(),
                               [&](const auto& other) { return other.get() == sequence; });
  if (it == running_.end()) return nullptr;
  std::unique_ptr<Sequence> taken = std::move(*it);
  running_.erase(it);
  return taken;
}

// By value: the sequences that go may hold the caller's reference.
void Scheduler::CloseRequest(std::shared_ptr<Request> request, const absl::Status& status) {
  const auto is_its = [&](const auto& sequence) { return sequence->request == request; };
  const size_t removed = std::erase_if(running_, is_its) + std::erase_if(waiting_, is_its);
  if (!status.ok() && removed > 0) {
    switch (status.code()) {
      case absl::StatusCode::kCancelled:
        metrics_->cancelled.Increment();
        break;
      case absl::StatusCode::kDeadlineExceeded:
        metrics_->deadline_exceeded.Increment();
        break;
      default:
        metrics_->failed.Increment();
    }
  }
  if (!status.ok() && removed == 0) return;  // closed already
  request->stream->Close(status);
}

void Scheduler::CloseAll(const absl::Status& status) {
  while (!running_.empty()) CloseRequest(running_.front()->request, status);
  while (!waiting_.empty()) CloseRequest(waiting_.front()->request, status);
  UpdateGauges();
}

}  // namespace mneme::executor
