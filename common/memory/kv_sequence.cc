#include "common/memory/kv_sequence.h"

#include <ATen/Functions.h>
#include <ATen/TensorIndexing.h>
#include <ATen/TensorOperators.h>

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/model/torch_status.h"
#include "common/status/status_macros.h"
#include "kernels/paged_attention.h"
#include "kernels/rotary.h"

namespace mneme::memory {
namespace {

using kernels::kPageEntries;

int64_t PagesOf(int64_t entries) { return (entries + kPageEntries - 1) / kPageEntries; }

at::Tensor ToDevice(const std::vector<int64_t>& values, at::Device device) {
  return at::tensor(values, at::TensorOptions().dtype(at::kLong)).to(device);
}

// Entry (page, offset) of the pool as an index: keys [P, 16, D] and values [P, 16, D].
at::Tensor KeysOf(const KvPool& pool) {
  const int64_t width = kPageEntries * pool.head_size();
  return pool.tensor()
      .narrow(1, 0, width)
      .view({pool.num_pages(), pool.head_size(), kPageEntries})
      .transpose(1, 2);
}

at::Tensor ValuesOf(const KvPool& pool) {
  const int64_t width = kPageEntries * pool.head_size();
  return pool.tensor()
      .narrow(1, width, width)
      .view({pool.num_pages(), kPageEntries, pool.head_size()});
}

}  // namespace

KvSequence::KvSequence(KvPool* pool, const KvShape& shape,
                       std::shared_ptr<const MemoryPolicy> policy)
    : pool_(pool),
      shape_(shape),
      policy_(std::move(policy)),
      state_(policy_->NewState(shape)),
      heads_(shape.num_heads()),
      lengths_(shape.num_heads(), 0) {}

absl::Status KvSequence::Attach(KvTables& tables) {
  if (slot_.tables() == &tables) return absl::OkStatus();
  size_t most_pages = 0;
  for (const Head& head : heads_) most_pages = std::max(most_pages, head.pages.size());
  RETURN_IF_ERROR(tables.ReservePages(static_cast<int64_t>(most_pages)));
  ASSIGN_OR_RETURN(slot_, tables.Acquire());
  for (size_t h = 0; h < heads_.size(); ++h) {
    for (size_t p = 0; p < heads_[h].pages.size(); ++p) {
      // Cells of a free slot may hold old ids on the device, so empty pages are written too.
      SetTablePage(static_cast<int64_t>(h), static_cast<int64_t>(p), heads_[h].pages[p].id());
    }
  }
  SyncLengths();
  return absl::OkStatus();
}

void KvSequence::SetTablePage(int64_t head, int64_t page, int32_t id) {
  // Can't fail: every caller has made room by ReservePages.
  if (slot_) slot_.tables()->SetPage(slot_.index(), head, page, id).IgnoreError();
}

void KvSequence::SyncLengths() {
  if (slot_) slot_.tables()->SetLengths(slot_.index(), lengths_);
}

void KvSequence::NotePages(int64_t change) {
  num_pages_ += change;
  peak_pages_ = std::max(peak_pages_, num_pages_);
}

absl::Status KvSequence::Reserve(int64_t num_tokens, int64_t rewritten_from) {
  // Entries will move into any of the present pages.
  if (policy_->MovesEntriesAt(num_tokens_ + num_tokens)) rewritten_from = 0;
  const bool rewrites = rewritten_from != std::numeric_limits<int64_t>::max();
  if (num_tokens <= reserved_tokens_ && !rewrites) return absl::OkStatus();
  if (num_tokens > std::numeric_limits<int32_t>::max() / 2 - num_tokens_) {
    return absl::InvalidArgumentError(absl::StrCat("the sequence would pass 2^30 tokens: has ",
                                                   num_tokens_, ", adds ", num_tokens));
  }
  int64_t needed = 0;
  int64_t most_pages = 0;
  std::vector<std::pair<int64_t, int64_t>> copied;  // head, page
  for (int64_t h = 0; h < shape_.num_heads(); ++h) {
    const std::vector<KvPage>& pages = heads_[h].pages;
    const int64_t total = PagesOf(lengths_[h] + num_tokens);
    needed += std::max<int64_t>(total - static_cast<int64_t>(pages.size()), 0);
    most_pages = std::max(most_pages, total);
    const int64_t written_from = std::min<int64_t>(lengths_[h], rewritten_from);
    for (int64_t p = written_from / kPageEntries; p < PagesOf(lengths_[h]); ++p) {
      if (pages[p] && pages[p].is_shared()) copied.emplace_back(h, p);
    }
  }
  if (slot_) RETURN_IF_ERROR(slot_.tables()->ReservePages(most_pages));
  std::vector<KvPage> fresh;
  RETURN_IF_ERROR(pool_->Allocate(needed + static_cast<int64_t>(copied.size()), fresh));
  if (!copied.empty()) {
    std::vector<int64_t> from, to;
    for (size_t i = 0; i < copied.size(); ++i) {
      from.push_back(heads_[copied[i].first].pages[copied[i].second].id());
      to.push_back(fresh[fresh.size() - 1 - i].id());
    }
    RETURN_IF_ERROR(CatchTorch("copying shared pages", [&] {
      const at::Tensor rows = pool_->tensor().index_select(0, ToDevice(from, pool_->device()));
      pool_->tensor().index_copy_(0, ToDevice(to, pool_->device()), rows);
    }));
    for (const auto& [h, page] : copied) {
      heads_[h].pages[page] = std::move(fresh.back());
      fresh.pop_back();
      SetTablePage(h, page, heads_[h].pages[page].id());
    }
  }
  for (int64_t h = 0; h < shape_.num_heads(); ++h) {
    std::vector<KvPage>& pages = heads_[h].pages;
    const int64_t total = PagesOf(lengths_[h] + num_tokens);
    while (static_cast<int64_t>(pages.size()) < total) {
      pages.push_back(std::move(fresh.back()));
      fresh.pop_back();
      SetTablePage(h, static_cast<int64_t>(pages.size()) - 1, pages.back().id());
    }
  }
  NotePages(needed);
  reserved_tokens_ = std::max(reserved_tokens_, num_tokens);
  return absl::OkStatus();
}

void KvSequence::Advance(int64_t num_tokens, int64_t num_entries) {
  for (int32_t& length : lengths_) length += static_cast<int32_t>(num_entries);
  num_tokens_ += num_tokens;
  reserved_tokens_ -= num_entries;
  SyncLengths();
}

void KvSequence::DropPages(int64_t head, int64_t num_pages) {
  std::vector<KvPage>& pages = heads_[head].pages;
  heads_[head].hole_end = std::min(heads_[head].hole_end, num_pages);
  while (static_cast<int64_t>(pages.size()) > num_pages) {
    if (pages.back()) NotePages(-1);
    pages.pop_back();
    SetTablePage(head, static_cast<int64_t>(pages.size()), -1);
  }
}

void KvSequence::ReleaseReserved() {
  for (int64_t h = 0; h < shape_.num_heads(); ++h) DropPages(h, PagesOf(lengths_[h]));
  reserved_tokens_ = 0;
}

absl::Status KvSequence::Forget() { return Apply(policy_->Retain(*this)); }

absl::Status KvSequence::Tighten(std::shared_ptr<const MemoryPolicy> policy) {
  if (policy->Describe() == policy_->Describe()) return absl::OkStatus();
  // First entries that a model's own window has dropped can't stay.
  const bool lacks_sinks =
      shape_.has_sliding_windows() && policy->mask().sinks > policy_->mask().sinks;
  if (lacks_sinks || !policy->CanFollow(*policy_)) {
    return absl::FailedPreconditionError(absl::StrCat("a memory under ", policy_->Describe(),
                                                      " can't go on under ", policy->Describe(),
                                                      "; rebuild by prefill"));
  }
  state_ = policy->NewState(shape_);
  policy_ = std::move(policy);
  return Forget();
}

absl::Status KvSequence::Loosen(std::shared_ptr<const MemoryPolicy> policy) {
  const std::shared_ptr<const MemoryPolicy> looser = policy_->Looser();
  if (looser == nullptr || looser->Describe() != policy->Describe()) {
    return absl::FailedPreconditionError(absl::StrCat(
        "a memory under ", policy_->Describe(), " can't be loosened to ", policy->Describe()));
  }
  policy_ = std::move(policy);
  return absl::OkStatus();
}

absl::Status KvSequence::Apply(const Retention& retention) {
  for (const ForgottenRange& range : retention.forgotten) RETURN_IF_ERROR(ForgetRange(range));
  if (retention.kept.empty()) return absl::OkStatus();
  return Compact(retention.kept);
}

absl::Status KvSequence::ForgetRange(const ForgottenRange& range) {
  if (range.layer < 0 || range.layer >= shape_.num_layers || range.begin < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("no such entries to forget: layer ", range.layer, ", from ", range.begin));
  }
  for (int64_t i = 0; i < shape_.num_kv_heads; ++i) {
    const int64_t h = range.layer * shape_.num_kv_heads + i;
    if (range.end > lengths_[h]) {
      return absl::InvalidArgumentError(absl::StrCat("entries to forget end at ", range.end, " of ",
                                                     lengths_[h], ", layer ", range.layer));
    }
    Head& head = heads_[h];
    const int64_t first = PagesOf(range.begin);
    const int64_t last = range.end / kPageEntries;
    for (int64_t p = first; p < last; ++p) {
      if (p >= head.hole_begin && p < head.hole_end) {
        p = head.hole_end - 1;
        continue;
      }
      if (!head.pages[p]) continue;
      head.pages[p].Reset();
      NotePages(-1);
      SetTablePage(h, p, -1);
    }
    if (first >= last) continue;
    if (first <= head.hole_end && last >= head.hole_begin && head.hole_begin < head.hole_end) {
      head.hole_begin = std::min(head.hole_begin, first);
      head.hole_end = std::max(head.hole_end, last);
    } else {
      head.hole_begin = first;
      head.hole_end = last;
    }
  }
  return absl::OkStatus();
}

absl::Status KvSequence::CheckKept(const KeptEntries& kept) const {
  if (kept.layer < 0 || kept.layer >= shape_.num_layers || kept.head < 0 ||
      kept.head >= shape_.num_kv_heads) {
    return absl::InvalidArgumentError(
        absl::StrCat("no such head: layer ", kept.layer, ", head ", kept.head));
  }
  int64_t previous = -1;
  const int64_t size = length(kept.layer, kept.head);
  for (const int64_t index : kept.indices) {
    if (index <= previous || index >= size) {
      return absl::InvalidArgumentError(absl::StrCat(
          "indices of kept entries must ascend and stay below the length: ", index, " after ",
          previous, ", length ", size, ", layer ", kept.layer, ", head ", kept.head));
    }
    if (!IsResident(kept.layer, kept.head, index, index + 1)) {
      return absl::FailedPreconditionError(absl::StrCat(
          "an entry to keep was forgotten: ", index, ", layer ", kept.layer, ", head ", kept.head));
    }
    previous = index;
  }
  return absl::OkStatus();
}

absl::Status KvSequence::Compact(absl::Span<const KeptEntries> kept) {
  // One target page per 16 kept entries: the present one where nobody shares it, else a new one.
  int64_t needed = 0;
  std::vector<bool> seen(heads_.size(), false);
  for (const KeptEntries& entries : kept) {
    RETURN_IF_ERROR(CheckKept(entries));
    const int64_t h = entries.layer * shape_.num_kv_heads + entries.head;
    if (seen[h]) return absl::InvalidArgumentError("a head is mentioned twice");
    seen[h] = true;
    for (int64_t p = 0; p < PagesOf(static_cast<int64_t>(entries.indices.size())); ++p) {
      const KvPage& page = heads_[h].pages[p];
      needed += !page || page.is_shared();
    }
  }
  std::vector<KvPage> fresh;
  RETURN_IF_ERROR(pool_->Allocate(needed, fresh));
  const at::Tensor keys = KeysOf(*pool_);
  const at::Tensor values = ValuesOf(*pool_);
  if (state_ != nullptr) state_->Keep(kept);
  for (const KeptEntries& entries : kept) {
    const int64_t h = entries.layer * shape_.num_kv_heads + entries.head;
    std::vector<KvPage>& pages = heads_[h].pages;
    heads_[h].hole_begin = heads_[h].hole_end = 0;
    const int64_t count = static_cast<int64_t>(entries.indices.size());
    std::vector<int32_t> moved;
    moved.reserve(entries.indices.size());
    for (const int64_t index : entries.indices) {
      moved.push_back(static_cast<int32_t>(position(entries.layer, entries.head, index)));
    }
    heads_[h].moved = std::move(moved);
    std::vector<int64_t> from_pages, from_offsets, to_pages, to_offsets;
    for (const int64_t index : entries.indices) {
      from_pages.push_back(pages[index / kPageEntries].id());
      from_offsets.push_back(index % kPageEntries);
    }
    // The sources are gathered before anything is written, so targets may overlap them; replaced
    // pages are given back only when the copy is done.
    std::vector<KvPage> replaced;
    for (int64_t p = 0; p < PagesOf(count); ++p) {
      if (pages[p] && !pages[p].is_shared()) continue;
      NotePages(pages[p] ? 0 : 1);
      replaced.push_back(std::exchange(pages[p], std::move(fresh.back())));
      fresh.pop_back();
      SetTablePage(h, p, pages[p].id());
    }
    for (int64_t i = 0; i < count; ++i) {
      to_pages.push_back(pages[i / kPageEntries].id());
      to_offsets.push_back(i % kPageEntries);
    }
    if (count > 0) {
      RETURN_IF_ERROR(CatchTorch("moving kept entries", [&] {
        using List = c10::List<std::optional<at::Tensor>>;
        const at::Device device = pool_->device();
        const List from({ToDevice(from_pages, device), ToDevice(from_offsets, device)});
        const List to({ToDevice(to_pages, device), ToDevice(to_offsets, device)});
        const at::Tensor kept_keys = at::index(keys, from);
        const at::Tensor kept_values = at::index(values, from);
        at::Tensor target_keys = keys;
        at::Tensor target_values = values;
        at::index_put_(target_keys, to, kept_keys);
        at::index_put_(target_values, to, kept_values);
      }));
    }
    lengths_[h] = static_cast<int32_t>(count);
    DropPages(h, PagesOf(count));
  }
  reserved_tokens_ = 0;
  ReleaseReserved();
  SyncLengths();
  return absl::OkStatus();
}

absl::Status KvSequence::Rearrange(const Rearrangement& order) {
  const int64_t size = lengths_[0];
  const int64_t end = order.first + static_cast<int64_t>(order.sources.size());
  for (const int32_t length : lengths_) {
    if (length != size) {
      return absl::FailedPreconditionError("heads of different lengths can't be rearranged as one");
    }
  }
  if (order.first < 0 || order.first > size || end > size + reserved_tokens_) {
    return absl::InvalidArgumentError(
        absl::StrCat("no such place for entries: from ", order.first, " to ", end, " of ", size));
  }
  std::vector<int64_t> from_pages, from_offsets, to_pages, to_offsets;
  for (const Head& head : heads_) {
    for (const int64_t source : order.sources) {
      if (source < 0 || source >= size) {
        return absl::InvalidArgumentError(absl::StrCat("no such entry: ", source, " of ", size));
      }
      const KvPage& page = head.pages[source / kPageEntries];
      if (!page) return absl::FailedPreconditionError("an entry to keep was forgotten");
      from_pages.push_back(page.id());
      from_offsets.push_back(source % kPageEntries);
    }
    for (int64_t i = order.first; i < end; ++i) {
      const KvPage& page = head.pages[i / kPageEntries];
      if (!page || page.is_shared()) {
        return absl::FailedPreconditionError("no page of its own for a rearranged entry");
      }
      to_pages.push_back(page.id());
      to_offsets.push_back(i % kPageEntries);
    }
  }
  if (!order.sources.empty()) {
    RETURN_IF_ERROR(CatchTorch("rearranging entries", [&] {
      using List = c10::List<std::optional<at::Tensor>>;
      const at::Device device = pool_->device();
      const List from({ToDevice(from_pages, device), ToDevice(from_offsets, device)});
      const List to({ToDevice(to_pages, device), ToDevice(to_offsets, device)});
      at::Tensor keys = KeysOf(*pool_);
      at::Tensor values = ValuesOf(*pool_);
      // Gathered before anything is written: targets may overlap sources.
      const at::Tensor kept_values = at::index(values, from);
      const auto num_heads = static_cast<int64_t>(heads_.size());
      const auto count = static_cast<int64_t>(order.sources.size());
      const at::Tensor kept_keys = at::index(keys, from)
                                       .to(at::kFloat)
                                       .view({num_heads, count, pool_->head_size()})
                                       .transpose(0, 1)
                                       .contiguous();  // [n, heads, D]: a row of the table each
      kernels::RotaryOut(kept_keys, order.cos, order.sin, kept_keys);
      at::index_put_(
          keys, to,
          kept_keys.transpose(0, 1).reshape({num_heads * count, -1}).to(keys.scalar_type()));
      at::index_put_(values, to, kept_values);
    }));
  }
  for (size_t h = 0; h < heads_.size(); ++h) {
    lengths_[h] = static_cast<int32_t>(end);
    heads_[h].hole_begin = heads_[h].hole_end = 0;
  }
  if (end != size) ReleaseReserved();
  SyncLengths();
  return absl::OkStatus();
}

void KvSequence::SetIdle(bool idle) {
  if (idle) {
    ReleaseReserved();
    Detach();
  }
  for (Head& head : heads_) {
    for (KvPage& page : head.pages) page.SetIdle(idle);
  }
}

absl::Status KvSequence::Restore(int64_t num_tokens, absl::Span<const std::vector<EntryRun>> held,
                                 int64_t num_entries) {
  if (num_tokens_ != 0 || num_pages_ != 0) {
    return absl::FailedPreconditionError("only an empty sequence can take a stored memory");
  }
  if (num_tokens < 0 || num_tokens > std::numeric_limits<int32_t>::max() / 2 || num_entries < 0 ||
      num_entries > std::numeric_limits<int32_t>::max() / 2 ||
      static_cast<int64_t>(held.size()) != shape_.num_heads()) {
    return absl::InvalidArgumentError(absl::StrCat("no such memory: ", num_tokens, " tokens, ",
                                                   held.size(), " heads of ", shape_.num_heads()));
  }
  int64_t needed = 0;
  for (const std::vector<EntryRun>& runs : held) {
    int64_t end = 0;
    int64_t next_page = 0;
    for (const EntryRun& run : runs) {
      if (run.begin < end || run.end <= run.begin || run.end > num_entries) {
        return absl::InvalidArgumentError(
            absl::StrCat("runs of entries must ascend and end within the tokens: [", run.begin,
                         ", ", run.end, ") after ", end, " of ", num_entries));
      }
      needed += PagesOf(run.end) - std::max(run.begin / kPageEntries, next_page);
      next_page = PagesOf(run.end);
      end = run.end;
    }
  }
  if (policy_->moves_entries()) return RestorePacked(num_tokens, held);
  std::vector<KvPage> fresh;
  RETURN_IF_ERROR(pool_->Allocate(needed, fresh));
  for (int64_t h = 0; h < shape_.num_heads(); ++h) {
    std::vector<KvPage>& pages = heads_[h].pages;
    pages.resize(PagesOf(num_entries));
    for (const EntryRun& run : held[h]) {
      for (int64_t p = run.begin / kPageEntries; p < PagesOf(run.end); ++p) {
        if (pages[p]) continue;
        pages[p] = std::move(fresh.back());
        fresh.pop_back();
      }
    }
    lengths_[h] = static_cast<int32_t>(num_entries);
  }
  NotePages(needed);
  num_tokens_ = num_tokens;
  return absl::OkStatus();
}

absl::Status KvSequence::RestorePacked(int64_t num_tokens,
                                       absl::Span<const std::vector<EntryRun>> held) {
  int64_t needed = 0;
  for (int64_t h = 0; h < shape_.num_heads(); ++h) {
    int64_t count = 0;
    for (const EntryRun& run : held[h]) count += run.end - run.begin;
    needed += PagesOf(count);
  }
  std::vector<KvPage> fresh;
  RETURN_IF_ERROR(pool_->Allocate(needed, fresh));
  for (int64_t h = 0; h < shape_.num_heads(); ++h) {
    std::vector<int32_t>& moved = heads_[h].moved;
    for (const EntryRun& run : held[h]) {
      for (int64_t i = run.begin; i < run.end; ++i) moved.push_back(static_cast<int32_t>(i));
    }
    lengths_[h] = static_cast<int32_t>(moved.size());
    for (int64_t p = 0; p < PagesOf(lengths_[h]); ++p) {
      heads_[h].pages.push_back(std::move(fresh.back()));
      fresh.pop_back();
    }
  }
  NotePages(needed);
  num_tokens_ = num_tokens;
  return absl::OkStatus();
}

absl::Status KvSequence::RestoreState(absl::string_view bytes) {
  ASSIGN_OR_RETURN(std::unique_ptr<PolicyState> state, policy_->RestoreState(shape_, bytes));
  if (state != nullptr) RETURN_IF_ERROR(state->Check(*this));
  state_ = std::move(state);
  return absl::OkStatus();
}

KvSequence KvSequence::Fork() {
  ReleaseReserved();
  KvSequence fork(pool_, shape_, policy_);
  for (int64_t h = 0; h < shape_.num_heads(); ++h) {
    const int64_t count = PagesOf(lengths_[h]);
    fork.heads_[h].hole_begin = heads_[h].hole_begin;
    fork.heads_[h].hole_end = heads_[h].hole_end;
    fork.heads_[h].moved = heads_[h].moved;
    fork.heads_[h].pages.reserve(count);
    for (int64_t p = 0; p < count; ++p) {
      fork.heads_[h].pages.push_back(heads_[h].pages[p].Share());
      if (fork.heads_[h].pages.back()) fork.NotePages(1);
    }
  }
  if (state_ != nullptr) fork.state_ = state_->Clone();
  fork.lengths_ = lengths_;
  fork.num_tokens_ = num_tokens_;
  return fork;
}

absl::Status KvSequence::Truncate(int64_t num_tokens) {
  if (num_tokens < 0 || num_tokens > num_tokens_) {
    return absl::InvalidArgumentError(
        absl::StrCat("cannot go back to token ", num_tokens, ": the sequence has ", num_tokens_));
  }
  if (num_tokens == num_tokens_) {
    ReleaseReserved();
    return absl::OkStatus();
  }
  if (state_ != nullptr) {
    const std::optional<int64_t> num_entries = state_->CutTo(num_tokens);
    if (!num_entries.has_value()) {
      return absl::FailedPreconditionError(absl::StrCat(
          "what the policy remembers covers later tokens, rebuild by prefill: to token ",
          num_tokens, " of ", num_tokens_, ", policy ", policy_->Describe()));
    }
    CutTo(num_tokens, *num_entries);
    return absl::OkStatus();
  }
  for (int64_t layer = 0; layer < shape_.num_layers; ++layer) {
    const AttentionMask mask = MaskOfLayer(policy_->mask(), shape_.sliding_window(layer));
    // What the query at index num_tokens will see.
    const int64_t recent_begin =
        mask.window == 0 ? 0 : std::max<int64_t>(num_tokens - mask.window + 1, 0);
    for (int64_t head = 0; head < shape_.num_kv_heads; ++head) {
      if (length(layer, head) != num_tokens_ ||
          !IsResident(layer, head, 0, std::min(mask.sinks, num_tokens)) ||
          !IsResident(layer, head, std::min(recent_begin, num_tokens), num_tokens)) {
        return absl::FailedPreconditionError(
            absl::StrCat("entries needed to go back were forgotten, rebuild by prefill: to token ",
                         num_tokens, " of ", num_tokens_, ", policy ", policy_->Describe()));
      }
    }
  }
  CutTo(num_tokens, num_tokens);
  return absl::OkStatus();
}

void KvSequence::CutTo(int64_t num_tokens, int64_t num_entries) {
  for (int64_t h = 0; h < shape_.num_heads(); ++h) {
    lengths_[h] = static_cast<int32_t>(num_entries);
    heads_[h].moved.clear();  // nothing was dropped, so every entry is at its position
    DropPages(h, PagesOf(num_entries));
  }
  num_tokens_ = num_tokens;
  reserved_tokens_ = 0;
  SyncLengths();
}

int64_t KvSequence::IndexOf(int64_t layer, int64_t head, int64_t position) const {
  const int64_t h = layer * shape_.num_kv_heads + head;
  const std::vector<int32_t>& moved = heads_[h].moved;
  const auto found = std::lower_bound(moved.begin(), moved.end(), position);
  if (found != moved.end()) return found - moved.begin();
  return std::max(static_cast<int64_t>(moved.size()), position - (num_tokens_ - lengths_[h]));
}

bool KvSequence::IsResident(int64_t layer, int64_t head, int64_t begin, int64_t end) const {
  if (begin >= end) return true;
  const std::vector<KvPage>& pages = heads_[layer * shape_.num_kv_heads + head].pages;
  if (begin < 0 || end > length(layer, head)) return false;
  for (int64_t p = begin / kPageEntries; p < PagesOf(end); ++p) {
    if (!pages[p]) return false;
  }
  return true;
}

int64_t KvSequence::resident_entries() const {
  int64_t entries = 0;
  for (int64_t h = 0; h < shape_.num_heads(); ++h) {
    for (int64_t p = 0; p < PagesOf(lengths_[h]); ++p) {
      if (heads_[h].pages[p]) entries += std::min(kPageEntries, lengths_[h] - p * kPageEntries);
    }
  }
  return entries;
}

absl::StatusOr<std::pair<at::Tensor, at::Tensor>> KvSequence::Read(
    int64_t layer, int64_t head, absl::Span<const int64_t> indices) const {
  if (layer < 0 || layer >= shape_.num_layers || head < 0 || head >= shape_.num_kv_heads) {
    return absl::InvalidArgumentError(absl::StrCat("no such head: layer ", layer, ", head ", head));
  }
  std::vector<int64_t> pages, offsets;
  for (const int64_t index : indices) {
    if (index < 0 || index >= length(layer, head)) {
      return absl::InvalidArgumentError(
          absl::StrCat("no such entry: ", index, " of ", length(layer, head)));
    }
    const KvPage& page = heads_[layer * shape_.num_kv_heads + head].pages[index / kPageEntries];
    if (!page) return absl::FailedPreconditionError(absl::StrCat("entry was forgotten: ", index));
    pages.push_back(page.id());
    offsets.push_back(index % kPageEntries);
  }
  return CatchTorch("reading entries", [&] {
    const c10::List<std::optional<at::Tensor>> at_entries(
        {ToDevice(pages, pool_->device()), ToDevice(offsets, pool_->device())});
    return std::pair(at::index(KeysOf(*pool_), at_entries),
                     at::index(ValuesOf(*pool_), at_entries));
  });
}

}  // namespace mneme::memory
