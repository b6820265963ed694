// Which entries a sequence holds; sets of entries are in common/stored/runs.h.
#pragma once

#include <cstdint>

#include "common/memory/kv_sequence.h"
#include "common/stored/runs.h"

namespace mneme::snapshot {

using stored::Contains;
using stored::EntryRuns;
using stored::FromWire;
using stored::NumEntries;
using stored::Touches;
using stored::ToWire;

// Returns the serials of [begin, end) whose entries the head has not forgotten.
EntryRuns HeldRuns(const memory::KvSequence& sequence, int64_t layer, int64_t head, int64_t begin,
                   int64_t end);

}  // namespace mneme::snapshot
