// Sets of entries, as the wire has them (Runs: so many left out, so many taken, …) and as code
// does.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "mneme/snapshot/v1/snapshot.pb.h"

namespace mneme::stored {

namespace v1 = ::mneme::snapshot::v1;

// Entries [begin, end) of a head.
struct EntryRun {
  int64_t begin = 0;
  int64_t end = 0;
};

// Ascending, none empty, none touching the next.
using EntryRuns = std::vector<EntryRun>;

// Returns the runs counted from `origin`. INVALID_ARGUMENT: they end beyond `limit`, or are more
// than a set of so many entries can have.
absl::StatusOr<EntryRuns> FromWire(const v1::Runs& runs, int64_t origin, int64_t limit);
void ToWire(const EntryRuns& runs, int64_t origin, v1::Runs* wire);

int64_t NumEntries(const EntryRuns& runs);
// Says whether all of [begin, end) is in the set.
bool Contains(const EntryRuns& runs, int64_t begin, int64_t end);
// Says whether any of [begin, end) is in the set.
bool Touches(const EntryRuns& runs, int64_t begin, int64_t end);

// Returns what is in both sets.
EntryRuns Intersect(const EntryRuns& a, const EntryRuns& b);

}  // namespace mneme::stored
