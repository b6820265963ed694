// Chunks: runs of entries of some layers as bytes, out of a sequence and back into one. The layout
// is described in docs/snapshots.md; a full tile of an aligned page is one copy. Start here, then
// manifest.h.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/memory/kv_sequence.h"
#include "common/memory/kv_shape.h"
#include "common/stored/chunk_layout.h"
#include "mneme/snapshot/v1/snapshot.pb.h"

namespace mneme::snapshot {

using stored::EncodedChunk;
using stored::kMaxChunkBytes;

// Which entries go into one chunk.
struct ChunkRange {
  int64_t first_layer = 0;
  int64_t num_layers = 0;
  int64_t first_serial = 0;
  int64_t num_serials = 0;

  int64_t end_serial() const { return first_serial + num_serials; }
};

// How a model's memory is cut into chunks of at most kMaxChunkBytes: of all layers where a page of
// each fits, else of groups of layers.
class ChunkPlan {
 public:
  ChunkPlan(const memory::KvShape& shape, v1::Encoding encoding);

  // Where the chunks that begin at `first_serial` end when they are full: at the end of a page.
  int64_t FullEnd(int64_t first_serial) const;
  // The chunks of serials [first, end), `end` being at most FullEnd(first): one per group of
  // layers.
  std::vector<ChunkRange> Ranges(int64_t first, int64_t end) const;

 private:
  int64_t num_layers_;
  int64_t group_layers_;
  int64_t max_serials_;
};

// Returns the entries of a range that the sequence holds; nothing if it holds none of them.
// INVALID_ARGUMENT: no such entries, or more than kMaxChunkBytes. FAILED_PRECONDITION: entries have
// been moved by another than the sequence's policy, so that their serials are not known.
absl::StatusOr<std::optional<EncodedChunk>> ExportChunk(const memory::KvSequence& sequence,
                                                        const ChunkRange& range,
                                                        v1::Encoding encoding);

// Checks what a chunk says of itself, without its payload. INVALID_ARGUMENT names what is wrong.
absl::Status CheckChunk(const v1::Chunk& chunk, const memory::KvShape& shape);

// Writes a chunk's entries into the pages that the sequence has for them; entries without a page
// are left out. The chunk must have passed CheckChunk. DATA_LOSS: the payload is not the one
// described. INVALID_ARGUMENT: the chunk ends beyond the sequence.
absl::Status ImportChunk(const v1::Chunk& chunk, absl::string_view payload,
                         memory::KvSequence* sequence);

}  // namespace mneme::snapshot
