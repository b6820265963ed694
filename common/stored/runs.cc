#include "common/stored/runs.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace mneme::stored {
namespace {

void Append(int64_t begin, int64_t end, EntryRuns* runs) {
  if (begin >= end) return;
  if (!runs->empty() && runs->back().end == begin) {
    runs->back().end = end;
  } else {
    runs->push_back({begin, end});
  }
}

}  // namespace

absl::StatusOr<EntryRuns> FromWire(const v1::Runs& runs, int64_t origin, int64_t limit) {
  if (runs.lengths_size() > 2 * (limit - origin) + 2) {
    return absl::InvalidArgumentError(
        absl::StrCat("more runs than entries: ", runs.lengths_size(), " of ", limit - origin));
  }
  EntryRuns result;
  int64_t at = origin;
  for (int i = 0; i < runs.lengths_size(); ++i) {
    if (runs.lengths(i) > static_cast<uint64_t>(limit - at)) {
      return absl::InvalidArgumentError(absl::StrCat("runs end beyond their entries: length ",
                                                     runs.lengths(i), " at ", at, " of ", limit));
    }
    const int64_t end = at + static_cast<int64_t>(runs.lengths(i));
    if (i % 2 == 1) Append(at, end, &result);
    at = end;
  }
  return result;
}

void ToWire(const EntryRuns& runs, int64_t origin, v1::Runs* wire) {
  wire->clear_lengths();
  int64_t at = origin;
  for (const EntryRun& run : runs) {
    wire->add_lengths(static_cast<uint64_t>(run.begin - at));
    wire->add_lengths(static_cast<uint64_t>(run.end - run.begin));
    at = run.end;
  }
}

int64_t NumEntries(const EntryRuns& runs) {
  int64_t count = 0;
  for (const EntryRun& run : runs) count += run.end - run.begin;
  return count;
}

bool Contains(const EntryRuns& runs, int64_t begin, int64_t end) {
  if (begin >= end) return true;
  const auto after =
      std::upper_bound(runs.begin(), runs.end(), begin,
                       [](int64_t entry, const EntryRun& run) { return entry < run.begin; });
  return after != runs.begin() && std::prev(after)->end >= end;
}

bool Touches(const EntryRuns& runs, int64_t begin, int64_t end) {
  return std::any_of(runs.begin(), runs.end(), [begin, end](const EntryRun& run) {
    return run.begin < end && begin < run.end;
  });
}

EntryRuns Intersect(const EntryRuns& a, const EntryRuns& b) {
  EntryRuns both;
  auto left = a.begin();
  auto right = b.begin();
  while (left != a.end() && right != b.end()) {
    Append(std::max(left->begin, right->begin), std::min(left->end, right->end), &both);
    if (left->end < right->end) {
      ++left;
    } else {
      ++right;
    }
  }
  return both;
}

}  // namespace mneme::stored
