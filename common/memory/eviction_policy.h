// Policies that keep a fixed number of entries per head, chosen by a score: H2O, SnapKV, L2 key
// norm. Entries keep the rotation of their own position.
//
// Dropping happens when the sequence has a multiple of `interval` tokens, and steps end there:
// what is kept depends on the tokens alone, not on how a prompt was cut into steps or on who else
// is in the batch. Between two such points a head grows by at most `interval` entries over its
// budget, during prefill as well.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "common/memory/memory_policy.h"

namespace mneme::memory {

inline constexpr int64_t kDefaultInterval = 128;

// How many entries a head may have after dropping: a number, or a share of the tokens so far.
struct EvictionBudget {
  int64_t tokens = 0;   // 0: `fraction` counts
  double fraction = 0;  // in (0, 1)

  int64_t At(int64_t num_tokens) const;
};

// Heavy hitters (H2O; Zhang et al. 2023): an entry's score is the attention that it has received
// since it came, the mean over the query heads of its kv head. The `recent` newest entries stay
// and, of the others, those of the largest score.
struct H2oOptions {
  EvictionBudget budget;
  int64_t recent = 0;  // 0: half of the budget
  int64_t interval = kDefaultInterval;
};

// SnapKV (Li et al. 2024): the last `window` queries before a drop vote: an entry's score is the
// attention that it receives from them, averaged over `kernel_size` neighbours. The window's own
// entries stay and, of the others, those of the largest score. Where the paper drops once, after
// the prompt, this does so at every interval.
struct SnapKvOptions {
  EvictionBudget budget;
  int64_t window = 32;
  int64_t kernel_size = 5;  // odd
  int64_t interval = kDefaultInterval;
};

// L2 key norm (Devoto et al. 2024): the entries of the smallest keys stay. The first layers, where
// norms say little, keep everything.
struct L2NormOptions {
  EvictionBudget budget;
  int64_t skip_layers = 2;
  int64_t interval = kDefaultInterval;
};

// INVALID_ARGUMENT, naming the field ("memory_policy.h2o.budget"): a budget below the minimum (2
// entries; more than window or recent), a fraction not in (0, 1), an interval not from 1 to 65536,
// a window longer than the interval, an even kernel.
absl::StatusOr<std::shared_ptr<const MemoryPolicy>> H2oPolicy(const H2oOptions& options);
absl::StatusOr<std::shared_ptr<const MemoryPolicy>> SnapKvPolicy(const SnapKvOptions& options);
absl::StatusOr<std::shared_ptr<const MemoryPolicy>> L2NormPolicy(const L2NormOptions& options);

}  // namespace mneme::memory
