// What a sequence keeps of its past. A policy answers three questions between the steps of a
// sequence: how to lay out the next chunk of tokens, what attention must report meanwhile, and what
// to keep afterwards, per layer and head. Policies hold parameters only; they are shared by
// sequences and threads.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/memory/kv_shape.h"
#include "mneme/inference/v1/inference.pb.h"

namespace mneme::memory {

class KvSequence;

// How many of the waiting tokens the next step takes. Policies that put tokens of their own between
// the caller's (beacon) will add them here.
struct ChunkLayout {
  int64_t num_tokens = 0;
};

// What attention must report to the policy besides its output.
enum class AttentionStatistics {
  kNone,
};

// Entries [begin, end) of all heads of a layer that no later query sees. Pages wholly inside are
// given back; the other entries keep their indices.
struct ForgottenRange {
  int64_t layer = 0;
  int64_t begin = 0;
  int64_t end = 0;
};

// The entries of one (layer, kv head) that stay, by ascending index; they move together to
// 0, 1, 2, … and the rest is forgotten.
struct KeptEntries {
  int64_t layer = 0;
  int64_t head = 0;
  std::vector<int64_t> indices;
};

// What a policy decides after a step. Nothing is mentioned: everything stays.
struct Retention {
  std::vector<ForgottenRange> forgotten;
  std::vector<KeptEntries> kept;
};

class MemoryPolicy {
 public:
  virtual ~MemoryPolicy() = default;

  // "full", "window".
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
  // Question 3. Called after each step of the sequence.
  virtual Retention Retain(const KvSequence& sequence) const = 0;

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

// Returns the policy of a request; full where none is chosen. INVALID_ARGUMENT as above.
absl::StatusOr<std::shared_ptr<const MemoryPolicy>> CreatePolicy(
    const inference::v1::MemoryPolicy& policy);

}  // namespace mneme::memory
