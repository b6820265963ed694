// What a chunk says of itself, and how long that makes its payload (docs/snapshots.md). Stored
// memory as bytes, without a tensor library: common/snapshot brings it into sequences and out, the
// memory service makes it smaller where it lies. Start here, then window.h and recode.h.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/stored/runs.h"
#include "mneme/snapshot/v1/snapshot.pb.h"

namespace mneme::stored {

namespace v1 = ::mneme::snapshot::v1;

inline constexpr int64_t kMaxChunkBytes = int64_t{1} << 20;

// A chunk with its bytes. The digest is not set: the store makes it.
struct EncodedChunk {
  v1::Chunk chunk;
  std::string payload;
};

// The entries of each head of a chunk, heads within layers.
using HeadRuns = std::vector<EntryRuns>;

// INVALID_ARGUMENT: no model has such a shape.
absl::Status CheckShape(const v1::Shape& shape);

// Checks what a chunk says of itself, without its payload. The shape must have passed CheckShape.
// INVALID_ARGUMENT names what is wrong.
absl::Status CheckChunk(const v1::Chunk& chunk, const v1::Shape& shape);

// Returns the serials that the payload holds.
absl::StatusOr<HeadRuns> RunsOf(const v1::Chunk& chunk, int64_t num_kv_heads);

int64_t PayloadBytes(const HeadRuns& heads, v1::Encoding encoding, int64_t head_size);

}  // namespace mneme::stored
