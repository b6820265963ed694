// What a sequence keeps of its past. A policy answers three questions between the steps of a
// sequence: how to lay out the next chunk of tokens, what attention must report meanwhile, and what
// to keep afterwards, per layer and head. Policies hold parameters only; they are shared by
// sequences and threads.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/memory/kv_shape.h"
#include "common/memory/policy_state.h"
#include "common/memory/retention.h"
#include "mneme/inference/v1/inference.pb.h"

namespace mneme::memory {

class KvSequence;

struct BeaconPass;

// How many of the waiting tokens the next step takes, and what the policy puts between them.
struct ChunkLayout {
  int64_t num_tokens = 0;
  std::shared_ptr<const BeaconPass> pass;  // of policy beacon; null: nothing but the tokens
};

// What attention must report to the policy besides its output.
enum class AttentionStatistics {
  kNone,
  // The attention that entries receive from the queries that the sequence's state wants
  // (policy_state.h): about one more product of queries and keys for those.
  kWeights,
};

class MemoryPolicy {
 public:
  virtual ~MemoryPolicy() = default;

  // "full", "window", "h2o", "snapkv", "l2norm", "namm".
  virtual std::string name() const = 0;
  // Name and parameters, canonical: two policies with equal text treat every sequence alike. Part
  // of the key of everything cached.
  virtual std::string Describe() const = 0;

  // Which entries queries see, beyond what the model's own sliding windows hide.
  virtual AttentionMask mask() const = 0;

  // Question 1. `waiting` tokens are to be processed and the step has room for `room` of them.
  virtual ChunkLayout LayOut(const KvSequence& sequence, int64_t waiting, int64_t room) const = 0;
  // Question 2.
  virtual AttentionStatistics statistics() const = 0;
  // Question 3. Called after each step of the sequence. May update sequence.state().
  virtual Retention Retain(const KvSequence& sequence) const = 0;

  // Says whether entries are ever dropped in a way that depends on more than their age: they move,
  // heads may differ in length, and a beginning can't be cut out of what is left.
  virtual bool moves_entries() const { return false; }
  // Says whether Retain may move entries after the step that makes the sequence `num_tokens` long.
  // Shared pages are copied before such a step, so that moving needs none.
  virtual bool MovesEntriesAt(int64_t num_tokens) const {
    static_cast<void>(num_tokens);
    return false;
  }
  // Says whether sequences can share the memory of their common beginning: nothing of it was ever
  // forgotten.
  virtual bool shares_beginnings() const { return mask().window == 0 && !moves_entries(); }
  // Returns the tokens that a sequence may have under the model's context length.
  virtual int64_t MaxTokens(int64_t context_length) const { return context_length; }
  // Returns the state of a new sequence; null: the policy needs none.
  virtual std::unique_ptr<PolicyState> NewState(const KvShape& shape) const {
    static_cast<void>(shape);
    return nullptr;
  }
  // Returns the state that PolicyState::Serialise wrote; nothing may be there for a policy without.
  // INVALID_ARGUMENT: not such bytes, whatever they are.
  virtual absl::StatusOr<std::unique_ptr<PolicyState>> RestoreState(const KvShape& shape,
                                                                    absl::string_view bytes) const;

  // Says whether a memory that was kept under `earlier` can go on under this policy
  // (KvSequence::Tighten): whatever this one looks at is still there.
  virtual bool CanFollow(const MemoryPolicy& earlier) const {
    return Describe() == earlier.Describe();
  }
  // Returns a policy under which the sequence holds about half of what it holds now, for
  // KvSequence::Tighten; null: there is none, or too little is left.
  virtual std::shared_ptr<const MemoryPolicy> Tighter(const KvSequence& sequence) const {
    static_cast<void>(sequence);
    return nullptr;
  }
  // Returns the policy of the text (Describe) where it can have come of this one by Tighter, or is
  // this one's; null: it can't.
  virtual std::shared_ptr<const MemoryPolicy> TighterOf(absl::string_view description) const {
    static_cast<void>(description);
    return nullptr;
  }

  // Returns a policy of the same kind with twice the budget, for KvSequence::Loosen; null: there is
  // none, or it keeps nearly all.
  virtual std::shared_ptr<const MemoryPolicy> Looser() const { return nullptr; }
  // Returns a policy that drops once, when a sequence has `num_tokens` tokens, as large a part of
  // them as this one has dropped of `of_tokens`; null: none.
  virtual std::shared_ptr<const MemoryPolicy> Shadow(int64_t num_tokens, int64_t of_tokens) const {
    static_cast<void>(num_tokens);
    static_cast<void>(of_tokens);
    return nullptr;
  }

  // Returns the most pages that a sequence holds while it grows to `num_tokens` tokens in steps of
  // at most `step_tokens`: an upper bound, for admission.
  virtual int64_t EstimatePeakPages(const KvShape& shape, int64_t num_tokens,
                                    int64_t step_tokens) const = 0;
  // Returns the pages held after the step that made it `num_tokens` long.
  virtual int64_t EstimateResidentPages(const KvShape& shape, int64_t num_tokens) const = 0;
};

// Keeps every entry that the model itself can still see.
std::shared_ptr<const MemoryPolicy> FullPolicy();

// Keeps the first `sinks` and the latest `recent` entries (StreamingLLM; Xiao et al. 2023). Exact
// per query, whatever the chunks: query i sees entries j < sinks and j > i - recent. Keys keep the
// rotation of their own position; for the sinks the query is rotated to position
// min(i, sinks + recent - 1), which gives the relative positions of StreamingLLM's cache.
// INVALID_ARGUMENT (with the field's name): sinks below 0, recent below 1, or either over 2^24.
absl::StatusOr<std::shared_ptr<const MemoryPolicy>> WindowPolicy(int64_t sinks, int64_t recent);

class NammModel;
struct BeaconSettings;

// What policies of requests may refer to.
struct PolicyResources {
  KvShape shape;            // of the model
  int64_t entry_bytes = 0;  // of one token in one head, keys and values
  std::map<std::string, std::shared_ptr<const NammModel>> namm;  // loaded artifacts by name
  std::shared_ptr<const BeaconSettings> beacons;  // the model's; null: it can't have any
};

// Returns the policy of a request; full where none is chosen. INVALID_ARGUMENT, naming the field:
// values out of range, or a model with sliding windows of its own under a policy that moves entries
// (they would be seen beyond the window). FAILED_PRECONDITION: an artifact that is not loaded, or
// beacons of a model that has nothing to make them of. What else a request says of its memory is in
// policy_choice.h.
absl::StatusOr<std::shared_ptr<const MemoryPolicy>> CreatePolicy(
    const inference::v1::MemoryPolicy& policy,
    const PolicyResources& resources = PolicyResources());

}  // namespace mneme::memory
