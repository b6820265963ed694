// What passes with beacons do to the key/value memory beside adding to it: keys are kept rotated,
// so they are turned when their positions or the frequencies change.
#pragma once

#include "absl/status/status.h"
#include "common/memory/beacon_pass.h"
#include "common/memory/kv_sequence.h"
#include "common/model/rotary_tables.h"

namespace mneme::model {

// Before the pass: turns the memory's keys where the pass makes a growing rope scaling grow.
absl::Status TurnMemory(const RotaryTables& rotary, const memory::BeaconPass& pass,
                        memory::KvSequence* sequence);

// After the pass, whose rows are in the memory: leaves what the pass says is kept.
absl::Status RearrangeMemory(const RotaryTables& rotary, const memory::BeaconPass& pass,
                             memory::KvSequence* sequence);

}  // namespace mneme::model
