#include "services/executor/sequence.h"

#include <algorithm>
#include <utility>

#include "kernels/paged_attention.h"
#include "services/executor/philox.h"
#include "services/executor/session_turn.h"

namespace mneme::executor {
namespace {

double MillisecondsBetween(Instant begin, Instant end) {
  return std::chrono::duration<double, std::milli>(end - begin).count();
}

// Where the memory of the prompt came from.
std::string TierOf(const Sequence& sequence) {
  if (sequence.turn != nullptr && sequence.turn->restored_tokens > 0) return sequence.turn->tier;
  if (sequence.reused_tokens > 0) return "hot";
  const WorkSpec& spec = sequence.request->spec;
  return spec.parent_version > 0 || spec.snapshot_version > 0 ? "rebuilt" : "none";
}

Sampler MakeSampler(const Request& request, int index) {
  const WorkSpec& spec = request.spec;
  Sampler sampler(spec.sampling, SeedOfAnswer(spec.sampling->seed, index));
  sampler.AddPrompt(spec.prompt);
  for (const int32_t id : spec.generated) sampler.AddGenerated(id);
  return sampler;
}

}  // namespace

Sequence::Sequence() = default;
Sequence::~Sequence() = default;

bool Sequence::is_restoring() const { return turn != nullptr && turn->fetch != nullptr; }

bool Sequence::is_stored() const { return turn != nullptr && turn->staging != nullptr; }

bool Sequence::wants_prompt_scores() const {
  return kind == SequenceKind::kAnswer && index == 0 &&
         request->spec.sampling->prompt_logprobs.has_value() && num_scored < num_prompt();
}

int64_t Sequence::NumLogits(int64_t num_tokens) const {
  if (kind == SequenceKind::kContinuation) return num_tokens;
  const int64_t begin = num_computed();
  const int64_t end = begin + num_tokens;
  // The row of token p says what token p + 1 is like.
  if (wants_prompt_scores() && num_scored <= end) {
    const int64_t first_row = std::max(begin, num_scored - 1);
    return std::max<int64_t>(end - first_row, end == num_to_compute() ? 1 : 0);
  }
  return end == num_to_compute() ? 1 : 0;
}

std::unique_ptr<Sequence> MakeLeader(std::shared_ptr<Request> request) {
  auto sequence = std::make_unique<Sequence>();
  const WorkSpec& spec = request->spec;
  sequence->tokens = spec.prompt;
  sequence->num_scored = 1;
  if (spec.is_score()) {
    sequence->kind = SequenceKind::kContext;
    sequence->index = -1;
  } else {
    sequence->tokens.insert(sequence->tokens.end(), spec.generated.begin(), spec.generated.end());
    sequence->sampler = MakeSampler(*request, 0);
  }
  sequence->request = std::move(request);
  return sequence;
}

std::unique_ptr<Sequence> ForkAnswer(Sequence& leader, int index) {
  auto fork = std::make_unique<Sequence>();
  fork->request = leader.request;
  fork->index = index;
  fork->tokens = leader.tokens;
  fork->memory = leader.memory->Fork();
  fork->sampler = MakeSampler(*leader.request, index);
  fork->reused_tokens = leader.num_computed();
  return fork;
}

std::unique_ptr<Sequence> ForkContinuation(Sequence& context, int index) {
  auto fork = std::make_unique<Sequence>();
  const std::vector<int32_t>& ids = context.request->spec.continuations[index];
  fork->request = context.request;
  fork->kind = SequenceKind::kContinuation;
  fork->index = index;
  fork->tokens = context.tokens;
  fork->tokens.insert(fork->tokens.end(), ids.begin(), ids.end());
  fork->memory = context.memory->Fork();
  fork->scores.push_back(context.scores[index]);
  return fork;
}

AnswerEnd MakeEnd(const Sequence& sequence, inference::v1::FinishReason reason, Instant now) {
  const Request& request = *sequence.request;
  AnswerEnd end;
  end.reason = reason;
  end.usage.set_prompt_tokens(static_cast<int32_t>(sequence.num_prompt()));
  end.usage.set_completion_tokens(
      static_cast<int32_t>(sequence.tokens.size() - request.spec.prompt.size()));
  const SessionTurn* const turn = sequence.turn.get();
  const int64_t restored = turn == nullptr ? 0 : turn->restored_tokens;
  end.usage.set_cached_tokens(
      static_cast<int32_t>(std::min(sequence.reused_tokens + restored, sequence.num_prompt())));

  inference::v1::MemoryReceipt& receipt = end.receipt;
  if (turn != nullptr) {
    receipt.set_not_persisted_reason(turn->not_stored_reason);
    receipt.set_bytes_moved(turn->fetched_bytes);
    receipt.set_restored_tokens(restored);
  }
  receipt.set_reused_tokens(sequence.reused_tokens);
  receipt.set_prefilled_tokens(sequence.prefilled_tokens);
  receipt.set_tier(TierOf(sequence));
  receipt.set_kv_bytes_peak(sequence.peak_bytes);
  receipt.set_policy(request.spec.policy->Describe());
  receipt.set_shrinks(sequence.shrinks);
  if (request.spec.guard.has_value()) *receipt.mutable_guard() = sequence.guard;
  if (sequence.memory.has_value()) {
    const memory::KvSequence& memory = *sequence.memory;
    receipt.set_policy(memory.policy().Describe());
    const int64_t num_heads = memory.shape().num_heads();
    const int64_t resident = memory.resident_entries() / num_heads;
    const int64_t full_pages =
        (memory.num_tokens() + kernels::kPageEntries - 1) / kernels::kPageEntries * num_heads;
    const int64_t full_bytes = full_pages * memory.pool().page_bytes();
    receipt.set_resident_tokens(resident);
    // Open windows have entries of their policy's own beside their tokens'.
    receipt.set_evicted_tokens(std::max<int64_t>(memory.num_tokens() - resident, 0));
    receipt.set_kv_bytes_resident(memory.resident_bytes());
    receipt.set_kv_bytes_full(full_bytes);
    receipt.set_kv_bytes_peak(std::max(sequence.peak_bytes, memory.peak_bytes()));
    if (memory.resident_bytes() > 0) {
      receipt.set_compression_ratio(static_cast<double>(full_bytes) /
                                    static_cast<double>(memory.resident_bytes()));
    }
  }
  auto& ms = *receipt.mutable_ms();
  const Instant started = request.started.value_or(now);
  const Instant first_token = sequence.first_token.value_or(now);
  const double restore_ms = turn == nullptr ? 0 : turn->restore_ms;
  ms["queue"] = MillisecondsBetween(request.submitted, started);
  if (restore_ms > 0) ms["restore"] = restore_ms;
  ms["prefill"] = std::max(MillisecondsBetween(started, first_token) - restore_ms, 0.0);
  ms["decode"] = MillisecondsBetween(first_token, now);
  ms["total"] = MillisecondsBetween(request.submitted, now);
  return end;
}

}  // namespace mneme::executor
