// What the memory service has of a session's memory, as the engine remembers it.
#pragma once

#include <cstdint>
#include <vector>

#include "mneme/snapshot/v1/snapshot.pb.h"

namespace mneme::executor {

// Its chunks need not be sent again.
struct StoredSnapshot {
  uint64_t version = 0;     // of the session: the turn that it belongs to
  int64_t num_settled = 0;  // entries per head that later turns leave as they are
  std::vector<snapshot::v1::Chunk> chunks;
};

}  // namespace mneme::executor
