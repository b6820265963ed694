// What both stores ask of a snapshot before they keep it.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <tuple>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "mneme/memory/v1/memory.pb.h"
#include "mneme/snapshot/v1/snapshot.pb.h"

namespace mneme::memory {

inline constexpr size_t kMaxChunkBytes = 1 << 20;
inline constexpr size_t kChunkDigestBytes = 16;
inline constexpr uint32_t kSnapshotFormat = 1;

// Checks a chunk's payload against what its description says and returns its digest. DATA_LOSS: the
// payload is not what was sent. INVALID_ARGUMENT: too large, or empty.
absl::StatusOr<std::string> DigestOf(const v1::ChunkPayload& chunk);

// The chunks that came with one snapshot, by the place in the memory that they say they hold.
class SentChunks {
 public:
  // Remembers a chunk whose digest is set.
  void Add(const snapshot::v1::Chunk& chunk);

  // Whether a chunk like that came with the snapshot.
  bool Has(const snapshot::v1::Chunk& chunk) const;

  // Fills in what the sender left to the service: digests of chunks that were sent, the time. The
  // manifest then lists only chunks with a digest. INVALID_ARGUMENT names the chunk's position.
  absl::Status Complete(int64_t now_ms, snapshot::v1::Manifest* manifest) const;

 private:
  using Place = std::tuple<int32_t, int32_t, uint64_t, uint64_t>;
  static Place PlaceOf(const snapshot::v1::Chunk& chunk);

  std::map<Place, snapshot::v1::Chunk> by_place_;
};

// Returns the payload bytes of all chunks that a manifest lists, each once.
int64_t PayloadBytes(const snapshot::v1::Manifest& manifest);

}  // namespace mneme::memory
