#include "common/snapshot/runs.h"

#include <algorithm>

#include "kernels/paged_attention_layout.h"

namespace mneme::snapshot {
namespace {

void Append(int64_t begin, int64_t end, EntryRuns* runs) {
  if (!runs->empty() && runs->back().end == begin) {
    runs->back().end = end;
  } else {
    runs->push_back({begin, end});
  }
}

}  // namespace

EntryRuns HeldRuns(const memory::KvSequence& sequence, int64_t layer, int64_t head, int64_t begin,
                   int64_t end) {
  constexpr int64_t kPage = kernels::kPageEntries;
  EntryRuns runs;
  if (sequence.policy().moves_entries()) {
    const int64_t last = sequence.IndexOf(layer, head, end);
    for (int64_t i = sequence.IndexOf(layer, head, begin); i < last; ++i) {
      const int64_t serial = sequence.position(layer, head, i);
      Append(serial, serial + 1, &runs);
    }
    return runs;
  }
  for (int64_t at = begin; at < end;) {
    const int64_t next = std::min((at / kPage + 1) * kPage, end);
    if (sequence.page_id(layer, head, at / kPage) >= 0) Append(at, next, &runs);
    at = next;
  }
  return runs;
}

}  // namespace mneme::snapshot
