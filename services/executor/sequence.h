// A request inside the engine and the sequences it is made of. Plain data with the few rules that
// concern one sequence alone; who runs when is the scheduler's affair.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "common/memory/kv_sequence.h"
#include "common/memory/memory_policy.h"
#include "common/memory/policy_choice.h"
#include "common/trace/request_context.h"
#include "mneme/snapshot/v1/snapshot.pb.h"
#include "services/executor/sampler.h"
#include "services/executor/sampling_params.h"
#include "services/executor/token_stream.h"

namespace mneme::executor {

using Instant = std::chrono::steady_clock::time_point;

struct SessionTurn;  // session_turn.h

// A checked request. With `sampling` it generates; without, it scores `continuations`.
struct WorkSpec {
  std::string request_id;
  std::string tenant;      // whose memory may be shared with it; empty: nobody's
  std::string session_id;  // empty: stateless
  uint64_t lease_token = 0;
  uint64_t parent_version = 0;    // of the session, that the prompt goes on from
  uint64_t snapshot_version = 0;  // of its latest snapshot; 0: it has none
  snapshot::v1::Encoding snapshot_encoding = snapshot::v1::ENCODING_UNSPECIFIED;
  trace::RequestContext trace;
  std::vector<int32_t> prompt;     // or the context of a Score request; at least one token
  std::vector<int32_t> generated;  // what another executor had generated already
  std::shared_ptr<const SamplingParams> sampling;
  std::vector<std::vector<int32_t>> continuations;
  std::shared_ptr<const memory::MemoryPolicy> policy;
  bool is_elastic = false;
  std::optional<memory::GuardSettings> guard;
  absl::Time deadline = absl::InfiniteFuture();
  memory::PolicyChoice choice() const {
    return {.policy = policy, .is_elastic = is_elastic, .guard = guard};
  }
  bool is_score() const { return sampling == nullptr; }
  int num_answers() const {
    return is_score() ? static_cast<int>(continuations.size()) : sampling->n;
  }
};

// What the sequences of a request share.
struct Request {
  WorkSpec spec;
  uint64_t arrival = 0;     // counts up
  int64_t token_limit = 0;  // an answer ends when prompt and answer have so many tokens
  std::shared_ptr<TokenStream> stream;
  Instant submitted;
  std::optional<Instant> started;  // when it first got a place in the batch
  int open_answers = 0;            // answers or continuations that have not ended
  std::vector<int> todo;           // Score: continuations without a sequence
};

enum class SequenceKind {
  kAnswer,        // prompt, then one token after the other; index 0 computes the prompt for all
  kContext,       // the context of a Score request; stays until its continuations are done
  kContinuation,  // the context's fork with one continuation
};

// Engine thread only.
struct Sequence {
  Sequence();
  ~Sequence();

  std::shared_ptr<Request> request;
  SequenceKind kind = SequenceKind::kAnswer;
  int index = 0;                             // which answer or continuation; -1: a context
  std::vector<int32_t> tokens;               // all that are known
  std::optional<memory::KvSequence> memory;  // none while waiting in the queue
  std::optional<Sampler> sampler;            // answers only

  int64_t num_scored = 0;  // tokens [1, num_scored) of the prompt have their logprobs
  // Of a continuation: of its tokens so far. Of a context: of each continuation's first token.
  std::vector<TokenScores> scores;
  bool forked = false;                // the other answers have been made
  bool opened = false;                // has had a place in the batch
  std::unique_ptr<SessionTurn> turn;  // of a session's, once it has had a place in the batch
  AnswerEnd end;                      // of one that waits for its snapshot
  bool is_forgotten = false;          // nothing of it may be kept

  // For the receipt.
  int64_t reused_tokens = 0;
  int64_t prefilled_tokens = 0;
  int64_t peak_bytes = 0;  // of earlier stays in the batch
  int shrinks = 0;         // times that its memory was tightened
  inference::v1::GuardReport guard;
  std::optional<Instant> first_token;
  Instant last_token;
  std::optional<Instant> paused_since;

  int64_t num_computed() const { return memory.has_value() ? memory->num_tokens() : 0; }
  // Tokens to compute: an answer's all; the last one of a continuation is only scored.
  int64_t num_to_compute() const {
    return static_cast<int64_t>(tokens.size()) - (kind == SequenceKind::kContinuation ? 1 : 0);
  }
  int64_t waiting_tokens() const { return num_to_compute() - num_computed(); }
  int64_t num_prompt() const { return static_cast<int64_t>(request->spec.prompt.size()); }
  // Tokens that need not be computed if their entries are there: what follows gives the logits.
  int64_t most_reusable() const {
    return wants_prompt_scores() ? num_scored - 1 : num_to_compute() - 1;
  }
  // The memory is the session's: the next turn goes on from it.
  bool is_session_turn() const {
    return kind == SequenceKind::kAnswer && index == 0 && !request->spec.session_id.empty();
  }
  // It waits for stored memory.
  bool is_restoring() const;
  // Its memory goes to the memory service; the answer's end waits for that.
  bool is_stored() const;
  // Says whether the answers still have to be forked off this one.
  bool is_unforked_leader() const {
    return kind == SequenceKind::kAnswer && index == 0 && request->spec.sampling->n > 1 && !forked;
  }
  // A context that only waits for its continuations.
  bool is_idle_context() const { return kind == SequenceKind::kContext && waiting_tokens() == 0; }

  // Logprobs of prompt tokens are still wanted.
  bool wants_prompt_scores() const;
  // Rows of logits wanted of the next `num_tokens` tokens: so many of the last ones.
  int64_t NumLogits(int64_t num_tokens) const;

  // Places in the batch that this takes or will take.
  int64_t num_places() const {
    if (is_unforked_leader()) return request->spec.sampling->n;
    return is_idle_context() ? 0 : 1;
  }
};

// Returns whether `a` is served before `b`: by arrival, then by index.
inline bool IsOlder(const Sequence& a, const Sequence& b) {
  if (a.request->arrival != b.request->arrival) return a.request->arrival < b.request->arrival;
  return a.index < b.index;
}

// Makes the first sequence of a request: the answer that computes the prompt, or the context.
std::unique_ptr<Sequence> MakeLeader(std::shared_ptr<Request> request);

// Returns answer `index` with the prompt's memory shared; `leader` has computed all its tokens.
std::unique_ptr<Sequence> ForkAnswer(Sequence& leader, int index);
// The same for a continuation of a context.
std::unique_ptr<Sequence> ForkContinuation(Sequence& context, int index);

// Returns how an answer ended; `now` is the end.
AnswerEnd MakeEnd(const Sequence& sequence, inference::v1::FinishReason reason, Instant now);

}  // namespace mneme::executor
