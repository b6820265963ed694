// What a policy remembers of one sequence besides its entries: sums of the attention that entries
// received (H2O, SnapKV), spectrograms (NAMM). Belongs to the sequence, follows its forks.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "common/memory/retention.h"

namespace mneme::memory {

class KvSequence;

// Positions [begin, end) of a sequence.
struct PositionRange {
  int64_t begin = 0;
  int64_t end = 0;
};

// Used by the one thread that runs the model.
class PolicyState {
 public:
  virtual ~PolicyState() = default;

  // Returns a state that goes its own way from here.
  virtual std::unique_ptr<PolicyState> Clone() const = 0;

  // Of the queries at positions [begin, end), those whose attention is wanted.
  virtual PositionRange Wanted(int64_t begin, int64_t end) const = 0;

  // Takes the attention that the entries of a layer receive from the queries at `position`,
  // position + 1, …: weights float32 [Hkv, n, K], contiguous, the mean over the query heads of a kv
  // head. Entry K - 1 is at least as new as the last query; entries behind a head's length or a
  // query's position have 0. The result must not depend on how queries are cut into calls.
  virtual void Observe(int64_t layer, int64_t position, const at::Tensor& weights) = 0;

  // Follows entries that move.
  virtual void Keep(absl::Span<const KeptEntries> kept) = 0;

  // Says whether this can be the state of the sequence's present entries. INVALID_ARGUMENT: not.
  virtual absl::Status Check(const KvSequence& sequence) const = 0;

  // Goes back to what it was when the sequence had `num_tokens` tokens, less than it has; returns
  // the entries that every head had. Nothing: it can't, and has not changed.
  virtual std::optional<int64_t> CutTo(int64_t num_tokens) {
    static_cast<void>(num_tokens);
    return std::nullopt;
  }

  // What a stored snapshot has of every head: entries 0 to `num_entries` - 1, of which the first
  // `num_settled` never change again.
  struct Extent {
    int64_t num_entries = 0;
    int64_t num_settled = 0;
  };
  // Nothing: entries are told by the positions of their tokens.
  virtual std::optional<Extent> extent() const { return std::nullopt; }

  virtual int64_t num_bytes() const = 0;

  // The state as bytes, exact; MemoryPolicy::RestoreState takes them.
  virtual std::string Serialise() const = 0;
};

}  // namespace mneme::memory
