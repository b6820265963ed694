// Sets of entries, as the wire has them (Runs: so many left out, so many taken, …) and as code
// does.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "common/memory/kv_sequence.h"
#include "mneme/snapshot/v1/snapshot.pb.h"

namespace mneme::snapshot {

// Ascending, none empty, none touching the next.
using EntryRuns = std::vector<memory::EntryRun>;

// Returns the runs counted from `origin`. INVALID_ARGUMENT: they end beyond `limit`, or are more
// than a set of so many entries can have.
absl::StatusOr<EntryRuns> FromWire(const v1::Runs& runs, int64_t origin, int64_t limit);
void ToWire(const EntryRuns& runs, int64_t origin, v1::Runs* wire);

// Returns the entries of [begin, end) that the head has not forgotten.
EntryRuns HeldRuns(const memory::KvSequence& sequence, int64_t layer, int64_t head, int64_t begin,
                   int64_t end);

int64_t NumEntries(const EntryRuns& runs);
// Says whether all of [begin, end) is in the set.
bool Contains(const EntryRuns& runs, int64_t begin, int64_t end);
// Says whether any of [begin, end) is in the set.
bool Touches(const EntryRuns& runs, int64_t begin, int64_t end);

}  // namespace mneme::snapshot
