// Memory of sequences that have ended, kept for later ones while nobody running needs the pages: a
// session's own, which its next turn takes back, and that of stateless requests, whose beginnings
// later requests of the same tenant share.
//
// Nothing is ever found by another tenant, nor under another policy; an executor has one model and
// one cache, so the model is not part of the key. What is found is compared token by token: hashes
// only say where to look.
#pragma once

#include <cstdint>
#include <list>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "common/memory/kv_pool.h"
#include "common/memory/kv_sequence.h"
#include "common/memory/memory_policy.h"
#include "common/memory/policy_choice.h"
#include "services/executor/executor_metrics.h"
#include "services/executor/stored_snapshot.h"

namespace mneme::executor {

// What is kept of a sequence.
struct CachedSequence {
  std::string tenant;
  std::string session_id;       // empty: stateless
  std::vector<int32_t> tokens;  // those that `memory` covers
  memory::KvSequence memory;
  std::optional<StoredSnapshot> snapshot;  // of a session's memory, where there is one
};

// Used by the engine's thread.
class SequenceCache {
 public:
  // Tokens that are hashed together; shorter beginnings are not shared.
  static constexpr int64_t kBlockTokens = 16;

  // Keeps at most `max_pages` pages that nobody else uses. `pool` and `metrics` must outlive this.
  SequenceCache(memory::KvPool* pool, int64_t max_pages, ExecutorMetrics* metrics)
      : pool_(pool), max_pages_(max_pages), metrics_(metrics) {}

  // Keeps a sequence as the one used last; its tokens are cut to what its memory covers. It takes
  // the place of the session's earlier one, or of stateless ones that it continues. Dropped: what
  // has no tenant, stateless memory that can't be shared (another policy than full, shorter than a
  // block), or is there already.
  void Insert(CachedSequence sequence);

  // Takes the session's memory out, cut back to the tokens that it has in common with `tokens`, at
  // most `max_tokens`, and tightened to the chosen policy where it is under a wider one. Nothing:
  // there is none, it can't be cut or does not fit (its policy forgot what is needed); then it is
  // gone.
  std::optional<CachedSequence> TakeSession(absl::string_view tenant, absl::string_view session_id,
                                            const memory::PolicyChoice& choice,
                                            absl::Span<const int32_t> tokens, int64_t max_tokens);

  // Returns a fork of the memory with the longest common beginning, cut to it and to `max_tokens`.
  std::optional<memory::KvSequence> Share(absl::string_view tenant,
                                          const memory::MemoryPolicy& policy,
                                          absl::Span<const int32_t> tokens, int64_t max_tokens);

  // Drops the entry that was used longest ago; false if there is none. Pages that running sequences
  // share stay.
  bool EvictOldest();
  // Drops the tenant's entries, or the session's alone where one is named.
  void Forget(absl::string_view tenant, absl::string_view session_id);
  void Clear();

  int64_t num_entries() const { return static_cast<int64_t>(entries_.size()); }

 private:
  struct Entry {
    CachedSequence sequence;
    std::vector<uint64_t> chain;  // of its full blocks; empty: not shared
  };
  using Position = std::list<Entry>::iterator;

  // A beginning shared with an entry.
  struct Match {
    Position entry;
    int64_t num_tokens = 0;
  };

  std::vector<uint64_t> ChainOf(absl::string_view tenant, const memory::MemoryPolicy& policy,
                                absl::Span<const int32_t> tokens) const;
  std::optional<Match> FindLongest(absl::string_view tenant, const memory::MemoryPolicy& policy,
                                   absl::Span<const int32_t> tokens,
                                   absl::Span<const uint64_t> chain) const;
  // Drops stateless entries that `sequence` begins with.
  void DropContinued(const CachedSequence& sequence, absl::Span<const uint64_t> chain);
  CachedSequence Remove(Position entry);

  memory::KvPool* const pool_;
  const int64_t max_pages_;
  ExecutorMetrics* const metrics_;
  std::list<Entry> entries_;  // used longest ago first
  absl::flat_hash_map<std::pair<std::string, std::string>, Position> sessions_;
  absl::flat_hash_map<uint64_t, std::vector<Position>> blocks_;  // by chain hash, newest last
};

}  // namespace mneme::executor
