// Which part of a Redis Cluster a key or a command belongs to.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "common/redis/command.h"

namespace mneme::redis {

inline constexpr int kNumSlots = 16384;

// Returns the key's slot: CRC16 of what stands between its first '{' and the next '}', or of all of
// it where that is empty or missing.
int HashSlot(absl::string_view key);

// What a command is about.
enum class Scope {
  kKeys,      // the keys it names, which must be of one slot
  kAnyNode,   // none in particular: PING, TIME, INFO
  kEachNode,  // everything that one server has, and says nothing of the others: KEYS, FLUSHALL
};

struct Target {
  Scope scope = Scope::kAnyNode;
  int slot = -1;  // kKeys only
};

// Returns where in a cluster a command is to run. Takes the first key of those that it names:
// whether the others are of the same slot is for Redis to say (CROSSSLOT). INVALID_ARGUMENT: a
// command that needs a key has none.
absl::StatusOr<Target> TargetOf(const Command& command);

}  // namespace mneme::redis
