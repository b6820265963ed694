#include "services/executor/sequence_cache.h"

#include <algorithm>

#include "absl/hash/hash.h"

namespace mneme::executor {
namespace {

// Entries with the same blocks that are compared for the longer beginning.
constexpr int kMaxCandidates = 8;

uint64_t Mix(uint64_t hash, uint64_t value) {
  hash = (hash ^ value) * 0x9E3779B97F4A7C15;
  return hash ^ hash >> 32;
}

int64_t CommonTokens(absl::Span<const int32_t> a, absl::Span<const int32_t> b) {
  const size_t size = std::min(a.size(), b.size());
  return std::mismatch(a.begin(), a.begin() + size, b.begin()).first - a.begin();
}

// Beginnings are shared only where nothing is forgotten: with a window they would have to end at
// the same token.
bool IsShareable(const memory::MemoryPolicy& policy) { return policy.shares_beginnings(); }

}  // namespace

std::vector<uint64_t> SequenceCache::ChainOf(absl::string_view tenant,
                                             const memory::MemoryPolicy& policy,
                                             absl::Span<const int32_t> tokens) const {
  std::vector<uint64_t> chain;
  if (!IsShareable(policy)) return chain;
  uint64_t hash = absl::HashOf(tenant, policy.Describe());
  const size_t num_blocks = tokens.size() / kBlockTokens;
  chain.reserve(num_blocks);
  for (size_t block = 0; block < num_blocks; ++block) {
    for (const int32_t token : tokens.subspan(block * kBlockTokens, kBlockTokens)) {
      hash = Mix(hash, static_cast<uint32_t>(token));
    }
    chain.push_back(hash);
  }
  return chain;
}

std::optional<SequenceCache::Match> SequenceCache::FindLongest(
    absl::string_view tenant, const memory::MemoryPolicy& policy, absl::Span<const int32_t> tokens,
    absl::Span<const uint64_t> chain) const {
  // A chain hash stands for all tokens up to its block, so the last known one is the longest match.
  size_t known = 0;
  while (known < chain.size() && blocks_.contains(chain[known])) ++known;
  if (known == 0) return std::nullopt;
  const std::vector<Position>& candidates = blocks_.at(chain[known - 1]);
  std::optional<Match> best;
  int looked_at = 0;
  for (auto it = candidates.rbegin(); it != candidates.rend() && looked_at < kMaxCandidates;
       ++it, ++looked_at) {
    const CachedSequence& sequence = (*it)->sequence;
    if (sequence.tenant != tenant || sequence.memory.policy().Describe() != policy.Describe()) {
      continue;
    }
    const int64_t common = CommonTokens(sequence.tokens, tokens);
    if (common > 0 && (!best.has_value() || common > best->num_tokens)) best = Match{*it, common};
  }
  return best;
}

void SequenceCache::DropContinued(const CachedSequence& sequence,
                                  absl::Span<const uint64_t> chain) {
  std::vector<Position> continued;
  for (size_t block = 0; block < chain.size(); ++block) {
    const auto found = blocks_.find(chain[block]);
    if (found == blocks_.end()) break;
    for (const Position candidate : found->second) {
      const CachedSequence& other = candidate->sequence;
      if (candidate->chain.size() == block + 1 && other.session_id.empty() &&
          other.tenant == sequence.tenant && other.tokens.size() <= sequence.tokens.size() &&
          std::equal(other.tokens.begin(), other.tokens.end(), sequence.tokens.begin())) {
        continued.push_back(candidate);
      }
    }
  }
  for (const Position entry : continued) Remove(entry);
}

void SequenceCache::Insert(CachedSequence sequence) {
  if (sequence.tenant.empty() || max_pages_ <= 0 || sequence.memory.num_tokens() == 0) return;
  sequence.tokens.resize(sequence.memory.num_tokens());
  const memory::MemoryPolicy& policy = sequence.memory.policy();
  std::vector<uint64_t> chain = ChainOf(sequence.tenant, policy, sequence.tokens);
  const bool is_session = !sequence.session_id.empty();
  if (!is_session) {
    if (chain.empty()) return;
    const std::optional<Match> match = FindLongest(sequence.tenant, policy, sequence.tokens, chain);
    if (match.has_value() && match->num_tokens == static_cast<int64_t>(sequence.tokens.size())) {
      entries_.splice(entries_.end(), entries_, match->entry);
      return;
    }
  } else {
    const auto earlier = sessions_.find({sequence.tenant, sequence.session_id});
    if (earlier != sessions_.end()) Remove(earlier->second);
  }
  DropContinued(sequence, chain);
  sequence.memory.SetIdle(true);
  entries_.push_back({std::move(sequence), std::move(chain)});
  const Position entry = std::prev(entries_.end());
  if (is_session) {
    sessions_[{entry->sequence.tenant, entry->sequence.session_id}] = entry;
  }
  for (const uint64_t hash : entry->chain) blocks_[hash].push_back(entry);
  while (pool_->idle_pages() > max_pages_ && EvictOldest()) {
  }
}

CachedSequence SequenceCache::Remove(Position entry) {
  for (const uint64_t hash : entry->chain) {
    const auto block = blocks_.find(hash);
    std::erase(block->second, entry);
    if (block->second.empty()) blocks_.erase(block);
  }
  CachedSequence sequence = std::move(entry->sequence);
  if (!sequence.session_id.empty()) sessions_.erase({sequence.tenant, sequence.session_id});
  entries_.erase(entry);
  return sequence;
}

std::optional<CachedSequence> SequenceCache::TakeSession(absl::string_view tenant,
                                                         absl::string_view session_id,
                                                         const memory::PolicyChoice& choice,
                                                         absl::Span<const int32_t> tokens,
                                                         int64_t max_tokens) {
  const auto found = sessions_.find(std::pair(std::string(tenant), std::string(session_id)));
  if (found == sessions_.end()) return std::nullopt;
  CachedSequence sequence = Remove(found->second);
  const int64_t common = std::min(CommonTokens(sequence.tokens, tokens), max_tokens);
  memory::KvSequence& memory = sequence.memory;
  // Cut first: what is cut off must not decide what is forgotten.
  if (common <= 0 || !memory.Truncate(common).ok() || !choice.TakeUp(&memory).ok()) {
    return std::nullopt;
  }
  memory.SetIdle(false);
  sequence.tokens.resize(common);
  return sequence;
}

std::optional<memory::KvSequence> SequenceCache::Share(absl::string_view tenant,
                                                       const memory::MemoryPolicy& policy,
                                                       absl::Span<const int32_t> tokens,
                                                       int64_t max_tokens) {
  if (tenant.empty() || max_tokens <= 0 || !IsShareable(policy)) return std::nullopt;
  const std::vector<uint64_t> chain = ChainOf(tenant, policy, tokens);
  const std::optional<Match> match = FindLongest(tenant, policy, tokens, chain);
  if (!match.has_value()) return std::nullopt;
  memory::KvSequence fork = match->entry->sequence.memory.Fork();
  // A model's own window may have forgotten what the cut needs.
  if (!fork.Truncate(std::min(match->num_tokens, max_tokens)).ok()) return std::nullopt;
  entries_.splice(entries_.end(), entries_, match->entry);
  return fork;
}

bool SequenceCache::EvictOldest() {
  if (entries_.empty()) return false;
  Remove(entries_.begin());
  metrics_->prefix_cache_evictions.Increment();
  return true;
}

void SequenceCache::Forget(absl::string_view tenant, absl::string_view session_id) {
  for (Position entry = entries_.begin(); entry != entries_.end();) {
    const Position next = std::next(entry);
    const CachedSequence& sequence = entry->sequence;
    if (sequence.tenant == tenant && (session_id.empty() || sequence.session_id == session_id)) {
      Remove(entry);
    }
    entry = next;
  }
}

void SequenceCache::Clear() {
  while (!entries_.empty()) Remove(entries_.begin());
}

}  // namespace mneme::executor
