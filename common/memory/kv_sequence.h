// One sequence's key/value memory: pages per (layer, kv head), their order, and how many entries
// each head has. A step goes
//
//   ChunkLayout chunk = sequence.policy().LayOut(sequence, waiting, room);
//   RETURN_IF_ERROR(sequence.Reserve(chunk.num_tokens));  // pages, or RESOURCE_EXHAUSTED
//   … the model writes the new entries behind the present ones …
//   sequence.Advance(chunk.num_tokens);                   // done by Model::Forward
//   RETURN_IF_ERROR(sequence.Forget());                   // the policy gives pages back
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "common/memory/kv_pool.h"
#include "common/memory/kv_shape.h"
#include "common/memory/kv_tables.h"
#include "common/memory/memory_policy.h"
#include "common/stored/runs.h"

namespace mneme::memory {

using stored::EntryRun;

// Movable; not copyable (Fork). Pages go back when it is destroyed. Must not outlive the pool nor,
// while attached, the tables. Used by the one thread that runs the model.
class KvSequence {
 public:
  KvSequence(KvPool* pool, const KvShape& shape, std::shared_ptr<const MemoryPolicy> policy);
  KvSequence(KvSequence&&) = default;
  KvSequence& operator=(KvSequence&&) = default;

  const MemoryPolicy& policy() const { return *policy_; }
  const std::shared_ptr<const MemoryPolicy>& shared_policy() const { return policy_; }
  // What the policy remembers of this sequence; null: nothing.
  PolicyState* state() const { return state_.get(); }
  const KvShape& shape() const { return shape_; }
  KvPool& pool() const { return *pool_; }

  // Takes a slot of `tables` and keeps it up to date from now on; needed to run. Does nothing if
  // attached to the same tables already.
  absl::Status Attach(KvTables& tables);
  // Gives the slot back; pages stay.
  void Detach() { slot_.Reset(); }
  bool attached() const { return static_cast<bool>(slot_); }
  int32_t slot() const { return slot_.index(); }
  KvTables* tables() const { return slot_.tables(); }

  // Makes room for `num_tokens` more entries in every head: takes new pages, and copies partly
  // filled ones that are shared. RESOURCE_EXHAUSTED: too few free pages; then nothing has changed.
  // Entries from `rewritten_from` on will be written by Rearrange: shared pages of theirs are
  // copied, too, so that it can't fail for want of pages.
  absl::Status Reserve(int64_t num_tokens,
                       int64_t rewritten_from = std::numeric_limits<int64_t>::max());
  // Entries per head that fit behind the present ones.
  int64_t reserved_tokens() const { return reserved_tokens_; }
  // Counts `num_tokens` <= reserved_tokens() new entries as present in every head.
  void Advance(int64_t num_tokens) { Advance(num_tokens, num_tokens); }
  // The same where policies put entries of their own between those of tokens.
  void Advance(int64_t num_tokens, int64_t num_entries);
  // Gives back what Reserve took and Advance didn't use.
  void ReleaseReserved();

  // Applies the policy's decision after a step.
  absl::Status Forget();
  // Applies any decision. INVALID_ARGUMENT: indices not ascending or out of range.
  // RESOURCE_EXHAUSTED: moving entries of shared pages needs more pages than are free.
  absl::Status Apply(const Retention& retention);

  // Puts a tighter policy in the place of the sequence's own. What a window does not keep is
  // forgotten at once; those that choose by score drop with their next interval.
  // FAILED_PRECONDITION: it needs what the present policy may have forgotten; rebuild by prefill.
  absl::Status Tighten(std::shared_ptr<const MemoryPolicy> policy);

  // Puts a policy with a larger budget in the place of the sequence's own; what it remembers stays.
  // FAILED_PRECONDITION: it is not what policy().Looser() returns.
  absl::Status Loosen(std::shared_ptr<const MemoryPolicy> policy);

  // A new order of the entries from `first` on, the same in all heads: entry first + i becomes what
  // entry sources[i] is, its key turned by row i of the tables; what isn't named is forgotten, and
  // reserved room is given back where entries become more or fewer.
  struct Rearrangement {
    int64_t first = 0;
    absl::Span<const int64_t> sources;  // any order, repetitions too
    at::Tensor cos;                     // float32 [n, D/2], as kernels::RotaryOut takes them
    at::Tensor sin;
  };
  // INVALID_ARGUMENT: a source out of range. FAILED_PRECONDITION: one that was forgotten, or heads
  // of different lengths, or shared pages that Reserve was not told of.
  absl::Status Rearrange(const Rearrangement& order);

  // Says that the memory is only kept for later: its pages count as idle where nobody else uses
  // them. An idle sequence has no slot and is not written; Fork gives one that isn't idle.
  void SetIdle(bool idle);

  // Turns an empty sequence into one of `num_tokens` tokens, whose entries the caller writes before
  // anybody reads them (a stored memory comes back). `held` names them per (layer, head), as
  // ascending runs; the pages that they touch are taken, all others count as forgotten. Under a
  // policy that moves entries they are packed; RestoreState follows when they are written.
  // INVALID_ARGUMENT: runs not ascending or beyond the tokens. RESOURCE_EXHAUSTED: too few free
  // pages. FAILED_PRECONDITION: not empty. On an error nothing has changed.
  absl::Status Restore(int64_t num_tokens, absl::Span<const std::vector<EntryRun>> held) {
    return Restore(num_tokens, held, num_tokens);
  }
  // The same where heads have another number of entries; RestoreState follows.
  absl::Status Restore(int64_t num_tokens, absl::Span<const std::vector<EntryRun>> held,
                       int64_t num_entries);
  // Takes back what PolicyState::Serialise wrote of a sequence with these entries; nothing for a
  // policy without a state. INVALID_ARGUMENT: not such bytes, or of other entries.
  absl::Status RestoreState(absl::string_view bytes);

  // Returns a sequence with the same past; all pages are shared until one of both writes. Reserved
  // room is given back first, so that the next Reserve of either copies what it will write. The
  // slot is not inherited.
  KvSequence Fork();

  // Goes back to the first `num_tokens` tokens. INVALID_ARGUMENT: there are not so many.
  // FAILED_PRECONDITION: entries needed there were forgotten, or the policy's state covers later
  // tokens; rebuild by prefill.
  absl::Status Truncate(int64_t num_tokens);

  // Tokens processed since the start: the position of the next token.
  int64_t num_tokens() const { return num_tokens_; }
  // Entries present in a head, forgotten pages included: the index of the next one.
  int64_t length(int64_t layer, int64_t head) const {
    return lengths_[layer * shape_.num_kv_heads + head];
  }
  // The token that an entry belongs to, counted from the start of the sequence; for the next entry,
  // length(layer, head), that of the next token.
  int64_t position(int64_t layer, int64_t head, int64_t index) const {
    const int64_t h = layer * shape_.num_kv_heads + head;
    const std::vector<int32_t>& moved = heads_[h].moved;
    // What came after entries moved last came one per token.
    return index < static_cast<int64_t>(moved.size()) ? moved[index]
                                                      : num_tokens_ - lengths_[h] + index;
  }
  // The other way: the first entry of the head whose position is at least `position`.
  int64_t IndexOf(int64_t layer, int64_t head, int64_t position) const;
  // How much a snapshot of the sequence has.
  PolicyState::Extent extent() const {
    const PolicyState::Extent tokens{.num_entries = num_tokens_, .num_settled = num_tokens_};
    return state_ == nullptr ? tokens : state_->extent().value_or(tokens);
  }
  // Says whether none of the entries [begin, end) of the head has been forgotten.
  bool IsResident(int64_t layer, int64_t head, int64_t begin, int64_t end) const;

  // Row of the pool that holds entries [16 * page, 16 * page + 16) of the head; -1: forgotten or
  // not there.
  int32_t page_id(int64_t layer, int64_t head, int64_t page) const {
    const std::vector<KvPage>& pages = heads_[layer * shape_.num_kv_heads + head].pages;
    return page < static_cast<int64_t>(pages.size()) ? pages[page].id() : -1;
  }

  // Pages referred to, and their bytes; shared ones count in full. Reserved ones included.
  int64_t num_pages() const { return num_pages_; }
  int64_t resident_bytes() const { return num_pages_ * pool_->page_bytes(); }
  int64_t peak_bytes() const { return peak_pages_ * pool_->page_bytes(); }
  // Entries present and not forgotten, summed over layers and heads.
  int64_t resident_entries() const;

  // Returns copies of the keys and the values of some entries, both [n, D] in the pool's type.
  // INVALID_ARGUMENT: out of range. FAILED_PRECONDITION: forgotten.
  absl::StatusOr<std::pair<at::Tensor, at::Tensor>> Read(int64_t layer, int64_t head,
                                                         absl::Span<const int64_t> indices) const;

 private:
  struct Head {
    std::vector<KvPage> pages;   // entry j lies in pages[j / 16]; empty: forgotten
    std::vector<int32_t> moved;  // positions of the entries that were there when any moved last
    // Pages known to be empty, so that forgetting need not look at them again.
    int64_t hole_begin = 0;
    int64_t hole_end = 0;
  };

  // Restore, where entries move. The runs have been checked.
  absl::Status RestorePacked(int64_t num_tokens, absl::Span<const std::vector<EntryRun>> held);
  absl::Status ForgetRange(const ForgottenRange& range);
  absl::Status Compact(absl::Span<const KeptEntries> kept);
  absl::Status CheckKept(const KeptEntries& kept) const;
  // Goes back to so many tokens, and entries in every head.
  void CutTo(int64_t num_tokens, int64_t num_entries);
  // Drops pages from `num_pages` on.
  void DropPages(int64_t head, int64_t num_pages);
  void SetTablePage(int64_t head, int64_t page, int32_t id);
  void SyncLengths();
  void NotePages(int64_t change);

  KvPool* pool_;
  KvShape shape_;
  std::shared_ptr<const MemoryPolicy> policy_;
  std::unique_ptr<PolicyState> state_;
  std::vector<Head> heads_;       // [L * Hkv]
  std::vector<int32_t> lengths_;  // [L * Hkv]
  KvSlot slot_;
  int64_t num_tokens_ = 0;
  int64_t reserved_tokens_ = 0;
  int64_t num_pages_ = 0;
  int64_t peak_pages_ = 0;
};

}  // namespace mneme::memory
