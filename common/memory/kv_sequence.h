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
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/memory/kv_pool.h"
#include "common/memory/kv_shape.h"
#include "common/memory/kv_tables.h"
#include "common/memory/memory_policy.h"

namespace mneme::memory {

// Entries [begin, end) of a head.
struct EntryRun {
  int64_t begin = 0;
  int64_t end = 0;
};

// Movable; not copyable (Fork). Pages go back when it is destroyed. Must not outlive the pool nor,
// while attached, the tables. Used by the one thread that runs the model.
class KvSequence {
 public:
  KvSequence(KvPool* pool, const KvShape& shape, std::shared_ptr<const MemoryPolicy> policy);
  KvSequence(KvSequence&&) = default;
  KvSequence& operator=(KvSequence&&) = default;

  const MemoryPolicy& policy() const { return *policy_; }
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
  absl::Status Reserve(int64_t num_tokens);
  // Entries per head that fit behind the present ones.
  int64_t reserved_tokens() const { return reserved_tokens_; }
  // Counts `num_tokens` <= reserved_tokens() new entries as present in every head.
  void Advance(int64_t num_tokens);
  // Gives back what Reserve took and Advance didn't use.
  void ReleaseReserved();

  // Applies the policy's decision after a step.
  absl::Status Forget();
  // Applies any decision. INVALID_ARGUMENT: indices not ascending or out of range.
  // RESOURCE_EXHAUSTED: moving entries of shared pages needs more pages than are free.
  absl::Status Apply(const Retention& retention);

  // Says that the memory is only kept for later: its pages count as idle where nobody else uses
  // them. An idle sequence has no slot and is not written; Fork gives one that isn't idle.
  void SetIdle(bool idle);

  // Turns an empty sequence into one of `num_tokens` tokens, whose entries the caller writes before
  // anybody reads them (a stored memory comes back). `held` names them per (layer, head), as
  // ascending runs; the pages that they touch are taken, all others count as forgotten.
  // INVALID_ARGUMENT: runs not ascending or beyond the tokens. RESOURCE_EXHAUSTED: too few free
  // pages. FAILED_PRECONDITION: not empty. On an error nothing has changed.
  absl::Status Restore(int64_t num_tokens, absl::Span<const std::vector<EntryRun>> held);

  // Returns a sequence with the same past; all pages are shared until one of both writes. Reserved
  // room is given back first, so that the next Reserve of either copies what it will write. The
  // slot is not inherited.
  KvSequence Fork();

  // Goes back to the first `num_tokens` tokens. INVALID_ARGUMENT: there are not so many.
  // FAILED_PRECONDITION: entries needed there were forgotten; rebuild by prefill.
  absl::Status Truncate(int64_t num_tokens);

  // Tokens processed since the start: the position of the next token.
  int64_t num_tokens() const { return num_tokens_; }
  // Entries present in a head, forgotten pages included: the index of the next one.
  int64_t length(int64_t layer, int64_t head) const {
    return lengths_[layer * shape_.num_kv_heads + head];
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
    std::vector<KvPage> pages;  // entry j lies in pages[j / 16]; empty: forgotten
    // Pages known to be empty, so that forgetting need not look at them again.
    int64_t hole_begin = 0;
    int64_t hole_end = 0;
  };

  absl::Status ForgetRange(const ForgottenRange& range);
  absl::Status Compact(absl::Span<const KeptEntries> kept);
  absl::Status CheckKept(const KeptEntries& kept) const;
  // Drops pages from `num_pages` on.
  void DropPages(int64_t head, int64_t num_pages);
  void SetTablePage(int64_t head, int64_t page, int32_t id);
  void SyncLengths();
  void NotePages(int64_t change);

  KvPool* pool_;
  KvShape shape_;
  std::shared_ptr<const MemoryPolicy> policy_;
  std::vector<Head> heads_;       // [L * Hkv]
  std::vector<int32_t> lengths_;  // [L * Hkv]
  KvSlot slot_;
  int64_t num_tokens_ = 0;
  int64_t reserved_tokens_ = 0;
  int64_t num_pages_ = 0;
  int64_t peak_pages_ = 0;
};

}  // namespace mneme::memory
