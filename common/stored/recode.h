// Chunks written anew from their own bytes: in fewer bits, without the entries that have died.
#pragma once

#include <optional>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "common/stored/chunk_layout.h"
#include "common/stored/runs.h"
#include "mneme/snapshot/v1/snapshot.pb.h"

namespace mneme::stored {

namespace v1 = ::mneme::snapshot::v1;

// Returns `wanted` where its numbers have fewer bits than those of `have`, else `have`. Both must
// be known.
v1::Encoding Narrower(v1::Encoding have, v1::Encoding wanted);

// What a chunk's heads hold, heads within layers, of what the memory holds: `held` has one set per
// (layer, head) of the memory, or one for all.
absl::StatusOr<HeadRuns> HeldRunsOf(const v1::Chunk& chunk, const v1::Shape& shape,
                                    absl::Span<const EntryRuns> held);

// Returns the entries of a chunk that are in `kept`, in the narrower of its encoding and `wanted`;
// nothing if none of them is. Numbers that need not be rounded are copied as they are; those that
// are become what the encoding of a sequence would have made of them. The chunk must have passed
// CheckChunk, and have all of `kept` (HeldRunsOf). DATA_LOSS: the payload is not the one described.
absl::StatusOr<std::optional<EncodedChunk>> Recode(const v1::Chunk& chunk,
                                                   absl::string_view payload,
                                                   const v1::Shape& shape, const HeadRuns& kept,
                                                   v1::Encoding wanted);

}  // namespace mneme::stored
