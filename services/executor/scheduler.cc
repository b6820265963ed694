#include "services/executor/scheduler.h"

#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <utility>

#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/log/log.h"
#include "common/memory/beacon_pass.h"
#include "common/status/status_macros.h"
#include "kernels/paged_attention.h"
#include "services/executor/session_turn.h"
#include "services/executor/step_plan.h"

namespace mneme::executor {
namespace {

// Floats of logits that chunks may ask for in one step: 96 MiB.
constexpr int64_t kMaxChunkLogits = int64_t{24} << 20;
// Chunks don't shrink below this, or reading prompts would stop under load.
constexpr int64_t kMinChunkTokens = 32;
// What copying stored memory into pages may add to a step while others run, and at most before
// callers that go away are noticed.
constexpr std::chrono::milliseconds kRestoreSlice{5};
constexpr std::chrono::milliseconds kRestoreSliceAlone{50};
// New entries that are handed to the network between two steps: about 3 ms of copying.
constexpr int64_t kExportSliceBytes = int64_t{8} << 20;

int64_t PagesOf(int64_t entries) {
  return (entries + kernels::kPageEntries - 1) / kernels::kPageEntries;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Scheduler>> Scheduler::Create(StepModel* model,
                                                             const SchedulerOptions& options,
                                                             ExecutorMetrics* metrics) {
  return Create(model, options, metrics,
                std::make_unique<SessionMemory>(SessionMemoryOptions(), nullptr, nullptr, metrics));
}

absl::StatusOr<std::unique_ptr<Scheduler>> Scheduler::Create(
    StepModel* model, const SchedulerOptions& options, ExecutorMetrics* metrics,
    std::unique_ptr<SessionMemory> sessions) {
  auto scheduler = absl::WrapUnique(new Scheduler(model, options, metrics));
  const memory::KvPoolOptions pool_options = model->PoolOptions(options.kv_budget_bytes);
  ASSIGN_OR_RETURN(scheduler->pool_, memory::KvPool::Create(pool_options));
  ASSIGN_OR_RETURN(scheduler->tables_,
                   memory::KvTables::Create(model->kv_shape(), pool_options.device));
  scheduler->results_ = std::make_unique<StepResults>(metrics);
  const double share = std::clamp(options.page_cache_share, 0.0, 1.0);
  scheduler->cache_ = std::make_unique<SequenceCache>(
      scheduler->pool_.get(),
      static_cast<int64_t>(share * static_cast<double>(scheduler->pool_->num_pages())), metrics);
  scheduler->guard_ =
      std::make_unique<QualityGuard>(model, scheduler->pool_.get(), scheduler->tables_.get(),
                                     scheduler->cache_.get(), options.step_tokens, metrics);
  scheduler->sessions_ = std::move(sessions);
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
    const bool has_moved = AdvanceTurns(/*has_run=*/false);
    // Those that are being stored or restored have pages that will come free.
    const bool must_wait = !closing_.empty() || has_moved ||
                           std::any_of(running_.begin(), running_.end(), [](const auto& sequence) {
                             return sequence->is_restoring();
                           });
    if (!wanted.empty() && !must_wait) {
      // TokenLimit keeps this from happening; if it does, one request must not block the others.
      log::Error("no pages for the oldest sequence", {{"free_pages", pool_->free_pages()}});
      CloseRequest(
          wanted.front().sequence->request,
          absl::ResourceExhaustedError(
              "the key/value memory is too small for this request; raise kv_budget_bytes"));
    }
    UpdateGauges();
    return has_moved || (!wanted.empty() && !must_wait);
  }
  const absl::Status status = Run(plan);
  if (!status.ok()) {
    log::Error("step failed", {{"error", std::string(status.message())},
                               {"sequences", static_cast<int64_t>(plan.size())}});
    std::vector<std::shared_ptr<Request>> requests;
    for (const Share& share : plan) requests.push_back(share.sequence->request);
    for (const std::shared_ptr<Request>& request : requests) CloseRequest(request, status);
  }
  AdvanceTurns(/*has_run=*/true);
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
  for (const auto& sequence : closing_) look(sequence);
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
      if (has_fork && AvailablePages() < pages) break;
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
    const int64_t peak = other->memory->policy().EstimatePeakPages(shape, other->num_to_compute(),
                                                                   options_.step_tokens);
    promised += std::max<int64_t>(peak - other->memory->num_pages(), 0);
  }
  if (places > options_.max_running) return false;
  if (running_.empty()) return true;
  const int64_t needed = sequence.num_places() * shape.num_heads() +
                         sequence.request->spec.policy->EstimatePeakPages(
                             shape, sequence.num_to_compute(), options_.step_tokens);
  return needed + promised <= AvailablePages();
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
    OpenMemory(sequence.get());
    Insert(std::move(sequence));
  }
}

void Scheduler::OpenMemory(Sequence* sequence) {
  const WorkSpec& spec = sequence->request->spec;
  const int64_t most = sequence->most_reusable();
  std::optional<StoredSnapshot> snapshot;
  if (sequence->is_session_turn()) {
    std::optional<CachedSequence> own =
        cache_->TakeSession(spec.tenant, spec.session_id, spec.choice(), sequence->tokens, most);
    if (own.has_value()) {
      sequence->memory.emplace(std::move(own->memory));
      snapshot = std::move(own->snapshot);
    }
  }
  if (!sequence->memory.has_value()) {
    sequence->memory = cache_->Share(spec.tenant, *spec.policy, sequence->tokens, most);
  }
  if (!sequence->memory.has_value()) {
    sequence->memory.emplace(pool_.get(), model_->kv_shape(), spec.policy);
  }
  if (std::exchange(sequence->opened, true)) return;  // what it finds now it has computed itself
  sequence->reused_tokens = sequence->num_computed();
  if (sequence->is_session_turn()) sessions_->Begin(sequence, std::move(snapshot));
  metrics_->reused_tokens.Increment(static_cast<double>(sequence->reused_tokens));
  if (spec.tenant.empty()) return;
  metrics_->prefix_cache_queries.Increment(static_cast<double>(sequence->tokens.size()));
  metrics_->prefix_cache_hits.Increment(static_cast<double>(sequence->reused_tokens));
}

void Scheduler::KeepMemory(Sequence* sequence) {
  // Continuations are their context's affair, further answers of a session nobody's.
  if (!sequence->memory.has_value() || sequence->kind == SequenceKind::kContinuation) return;
  if (sequence->is_forgotten || (sequence->is_restoring() && sequence->turn->is_importing)) return;
  const WorkSpec& spec = sequence->request->spec;
  const bool is_session_turn = sequence->is_session_turn();
  if (!spec.session_id.empty() && !is_session_turn) return;
  cache_->Insert({.tenant = spec.tenant,
                  .session_id = is_session_turn ? spec.session_id : "",
                  .tokens = sequence->tokens,
                  .memory = *std::move(sequence->memory),
                  .snapshot = SessionMemory::SnapshotOf(*sequence)});
  sequence->memory.reset();
}

std::vector<Scheduler::Share> Scheduler::Plan() const {
  std::vector<Share> shares;
  std::vector<StepWish> wishes;
  bool has_decode = false;
  for (const auto& sequence : running_) {
    if (sequence->paused_since.has_value() || sequence->waiting_tokens() == 0 ||
        sequence->is_restoring()) {
      continue;
    }
    shares.push_back({sequence.get(), {}});
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
    shares[i].layout =
        sequence.memory->policy().LayOut(*sequence.memory, sequence.waiting_tokens(), plan[i]);
  }
  std::erase_if(shares, [](const Share& share) { return share.num_tokens() == 0; });
  return shares;
}

std::vector<Scheduler::Share> Scheduler::ReservePages(std::vector<Share> plan) {
  std::vector<Share> reserved;
  for (size_t i = 0; i < plan.size(); ++i) {
    Sequence* const sequence = plan[i].sequence;
    if (sequence == nullptr) continue;  // preempted meanwhile
    const auto reserve = [this, &memory = *sequence->memory, &layout = plan[i].layout] {
      RETURN_IF_ERROR(memory.Attach(*tables_));
      if (layout.pass == nullptr) return memory.Reserve(layout.num_tokens);
      return memory.Reserve(layout.pass->room(), layout.pass->first_rewritten);
    };
    absl::Status status = reserve();
    while (!status.ok() && (FreePages() || PreemptFor(*sequence, &plan))) {
      status = reserve();
    }
    // Without pages it stands still until an older one ends.
    if (status.ok()) reserved.push_back(plan[i]);
  }
  return reserved;
}

bool Scheduler::ShrinkLargest() {
  Sequence* largest = nullptr;
  std::shared_ptr<const memory::MemoryPolicy> tighter;
  for (const auto& candidate : running_) {
    if (!candidate->request->spec.is_elastic || candidate->is_restoring()) continue;
    if (largest != nullptr && candidate->memory->num_pages() <= largest->memory->num_pages()) {
      continue;
    }
    auto policy = candidate->memory->policy().Tighter(*candidate->memory);
    if (policy == nullptr) continue;
    largest = candidate.get();
    tighter = std::move(policy);
  }
  if (largest == nullptr) return false;
  largest->peak_bytes = std::max(largest->peak_bytes, largest->memory->peak_bytes());
  const int64_t pages = largest->memory->num_pages();
  if (const absl::Status status = largest->memory->Tighten(std::move(tighter)); !status.ok()) {
    log::Error("an elastic memory could not be tightened", {{"error", status.ToString()}});
    return false;
  }
  ++largest->shrinks;
  metrics_->shrinks.Increment();
  log::Info("an elastic memory was tightened for want of pages",
            {{"request", largest->request->spec.request_id},
             {"policy", largest->memory->policy().Describe()},
             {"pages_before", pages},
             {"pages", largest->memory->num_pages()}});
  return true;
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
  KeepMemory(owned.get());
  owned->memory.reset();
  owned->paused_since.reset();
  if (owned->is_restoring()) {
    // It begins anew when there is room again.
    owned->turn.reset();
    owned->opened = false;
  }
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
    const int64_t num_logits = sequence.NumLogits(share.num_tokens());
    steps.push_back(
        {&*sequence.memory,
         absl::MakeConstSpan(sequence.tokens).subspan(sequence.num_computed(), share.num_tokens()),
         num_logits, share.layout.pass.get()});
    rows.push_back({&sequence, num_rows, num_logits});
    num_rows += num_logits;
    num_tokens += share.num_tokens();
    has_chunks |= share.num_tokens() > 1;
    if (!sequence.first_token.has_value()) sequence.prefilled_tokens += share.num_tokens();
  }
  ASSIGN_OR_RETURN(at::Tensor logits, model_->Forward(steps));
  if (!logits.device().is_cpu()) logits = logits.to(at::kCPU);
  std::vector<Sequence*> guarded;
  for (const Share& share : plan) {
    RETURN_IF_ERROR(share.sequence->memory->Forget());
    if (QualityGuard::IsDue(*share.sequence)) guarded.push_back(share.sequence);
  }
  // Before answers end, so that what a memory is kept under does not depend on where they do.
  if (!guarded.empty()) logits = logits.clone();
  for (Sequence* const sequence : guarded) RETURN_IF_ERROR(guard_->Probe(sequence));

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
  std::unique_ptr<Sequence> owned = TakeRunning(sequence);
  if (owned == nullptr) return;
  const std::shared_ptr<Request> request = owned->request;
  if (owned->kind == SequenceKind::kContinuation) {
    StreamEvent event;
    event.index = owned->index;
    event.logprobs = std::move(owned->scores);
    request->stream->Push(std::move(event));
  }
  EndAnswer(std::move(owned));
}

void Scheduler::EndAnswer(std::unique_ptr<Sequence> sequence) {
  if (sequence->is_stored()) {
    closing_.push_back(std::move(sequence));
    return;
  }
  const std::shared_ptr<Request> request = sequence->request;
  KeepMemory(sequence.get());
  if (--request->open_answers == 0) CloseRequest(request, absl::OkStatus());
}

bool Scheduler::AdvanceTurns(bool has_run) {
  const Instant deadline =
      std::chrono::steady_clock::now() + (has_run ? kRestoreSlice : kRestoreSliceAlone);
  bool has_moved = RestoreTurns(deadline);
  int64_t bytes = kExportSliceBytes;
  for (const auto& sequence : running_) {
    if (bytes > 0) bytes -= sessions_->Export(sequence.get(), bytes);
  }
  has_moved |= bytes < kExportSliceBytes;
  return CloseTurns() || has_moved;
}

bool Scheduler::RestoreTurns(Instant deadline) {
  std::vector<Sequence*> restoring;
  for (const auto& sequence : running_) {
    if (sequence->is_restoring()) restoring.push_back(sequence.get());
  }
  bool has_moved = false;
  for (Sequence* const sequence : restoring) {
    const bool is_there = std::any_of(running_.begin(), running_.end(),
                                      [&](const auto& other) { return other.get() == sequence; });
    if (!is_there) continue;  // gave its pages to an older one
    const int num_imported = sequence->turn->num_imported;
    std::vector<Share> nobody;
    absl::Status status = sessions_->Restore(sequence, deadline);
    while (absl::IsResourceExhausted(status) && (FreePages() || PreemptFor(*sequence, &nobody))) {
      status = sessions_->Restore(sequence, deadline);
    }
    has_moved |= !sequence->is_restoring() || sequence->turn->num_imported > num_imported;
  }
  return has_moved;
}

bool Scheduler::CloseTurns() {
  bool has_moved = false;
  for (size_t i = 0; i < closing_.size();) {
    Sequence& sequence = *closing_[i];
    const int64_t exported = sequence.turn->exported_entries;
    if (!sessions_->Close(&sequence, kExportSliceBytes)) {
      has_moved |= sequence.turn->exported_entries > exported;
      ++i;
      continue;
    }
    has_moved = true;
    std::unique_ptr<Sequence> owned = std::move(closing_[i]);
    closing_.erase(closing_.begin() + static_cast<std::ptrdiff_t>(i));
    const std::shared_ptr<Request> request = owned->request;
    StreamEvent event;
    event.index = owned->index;
    event.end = std::move(owned->end);
    request->stream->Push(std::move(event));
    KeepMemory(owned.get());
    if (--request->open_answers == 0) CloseRequest(request, absl::OkStatus());
  }
  return has_moved;
}

absl::Status Scheduler::FinishTurn(absl::string_view tenant, absl::string_view session_id,
                                   uint64_t lease_token, int64_t num_tokens) {
  const auto is_it = [&](const auto& sequence) {
    const WorkSpec& spec = sequence->request->spec;
    return sequence->is_session_turn() && spec.tenant == tenant && spec.session_id == session_id &&
           spec.lease_token == lease_token;
  };
  const auto find_in = [&](auto& sequences) {
    const auto found = std::find_if(sequences.begin(), sequences.end(), is_it);
    return found == sequences.end() ? nullptr : found->get();
  };
  Sequence* const closing = find_in(closing_);
  Sequence* const running = find_in(running_);
  Sequence* const waiting = find_in(waiting_);
  Sequence* const sequence = closing != nullptr ? closing : running != nullptr ? running : waiting;
  if (sequence == nullptr) {
    return absl::NotFoundError("no turn of this session is being computed under this lease");
  }
  const int64_t num_known = static_cast<int64_t>(sequence->tokens.size());
  const int64_t wanted = sequence->num_prompt() + num_tokens;
  if (num_tokens < 0 || wanted > num_known) {
    return absl::InvalidArgumentError(
        absl::StrCat("num_tokens must be from 0 to the number of generated tokens, ",
                     num_known - sequence->num_prompt(), ": ", num_tokens));
  }
  if (sequence == closing) {
    // It has ended by itself meanwhile; the memory that is being stored covers too much.
    if (wanted < num_known) {
      SessionMemory::Abandon(
          closing, absl::FailedPreconditionError("the answer was cut after it had ended"));
    }
    return absl::OkStatus();
  }
  std::unique_ptr<Sequence> owned;
  if (sequence == running) {
    owned = TakeRunning(sequence);
  } else {
    const auto place = std::find_if(waiting_.begin(), waiting_.end(), is_it);
    owned = std::move(*place);
    waiting_.erase(place);
  }
  owned->tokens.resize(wanted);
  // As always the last generated token is not in the memory.
  const int64_t covered = num_tokens == 0 ? wanted : wanted - 1;
  absl::Status status;
  if (owned->is_restoring()) {
    status = absl::FailedPreconditionError("the answer was cut before it began");
  } else if (owned->num_computed() > covered) {
    status = owned->memory->Truncate(covered);
  }
  if (!status.ok()) {
    owned->memory.reset();
    if (owned->is_stored()) owned->turn->staging->Cancel(status);
  }
  const Instant now = std::chrono::steady_clock::now();
  owned->end = MakeEnd(*owned, inference::v1::FINISH_REASON_STOP, now);
  metrics_->Finished(inference::v1::FINISH_REASON_STOP).Increment();
  if (owned->is_stored()) {
    sessions_->CutBack(owned.get());
  } else {
    StreamEvent event;
    event.index = owned->index;
    event.end = std::move(owned->end);
    owned->request->stream->Push(std::move(event));
  }
  EndAnswer(std::move(owned));
  return absl::OkStatus();
}

void Scheduler::Forget(const std::string& tenant, const std::string& session_id) {
  const auto mark = [&](const auto& sequence) {
    const WorkSpec& spec = sequence->request->spec;
    if (spec.tenant != tenant || (!session_id.empty() && spec.session_id != session_id)) return;
    sequence->is_forgotten = true;
    if (sequence->is_stored()) {
      sequence->turn->staging->Cancel(absl::AbortedError("the session's memory was forgotten"));
    }
  };
  for (const auto& sequence : running_) mark(sequence);
  for (const auto& sequence : waiting_) mark(sequence);
  for (const auto& sequence : closing_) mark(sequence);
  cache_->Forget(tenant, session_id);
  sessions_->Forget(tenant, session_id);
  UpdateGauges();
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
  metrics_->kv_pages_cached.Set(static_cast<double>(pool_->idle_pages()));
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
  // After an error of the model nothing is kept that it may have touched.
  if (status.ok() || status.code() == absl::StatusCode::kCancelled ||
      status.code() == absl::StatusCode::kDeadlineExceeded) {
    for (const auto& sequence : running_) {
      if (is_its(sequence)) KeepMemory(sequence.get());
    }
    for (const auto& sequence : closing_) {
      if (is_its(sequence)) KeepMemory(sequence.get());
    }
  }
  const size_t removed = std::erase_if(running_, is_its) + std::erase_if(waiting_, is_its) +
                         std::erase_if(closing_, is_its);
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
  while (!closing_.empty()) CloseRequest(closing_.front()->request, status);
  UpdateGauges();
}

}  // namespace mneme::executor
