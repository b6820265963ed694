#include "common/stored/chunk_layout.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status/status_macros.h"
#include "common/stored/encoding.h"

namespace mneme::stored {
namespace {

// Far beyond any model, and small enough that a manifest cannot ask for all memory.
constexpr int64_t kMaxHeads = int64_t{1} << 20;
constexpr int64_t kMaxHeadSize = int64_t{1} << 16;

}  // namespace

absl::Status CheckShape(const v1::Shape& shape) {
  if (shape.num_layers() >= 1 && shape.num_kv_heads() >= 1 && shape.head_size() >= 1 &&
      int64_t{shape.num_layers()} * shape.num_kv_heads() <= kMaxHeads &&
      shape.head_size() <= kMaxHeadSize) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("a memory has a shape that cannot be: ", shape.num_layers(), " layers, ",
                   shape.num_kv_heads(), " heads of ", shape.head_size()));
}

absl::StatusOr<HeadRuns> RunsOf(const v1::Chunk& chunk, int64_t num_kv_heads) {
  const int64_t first = static_cast<int64_t>(chunk.first_serial());
  const int64_t end = first + static_cast<int64_t>(chunk.num_serials());
  if (chunk.heads().empty()) {
    return HeadRuns(chunk.num_layers() * num_kv_heads, EntryRuns{{first, end}});
  }
  HeadRuns heads;
  heads.reserve(chunk.heads_size());
  for (const v1::Runs& runs : chunk.heads()) {
    ASSIGN_OR_RETURN(EntryRuns entries, FromWire(runs, first, end));
    heads.push_back(std::move(entries));
  }
  return heads;
}

int64_t PayloadBytes(const HeadRuns& heads, v1::Encoding encoding, int64_t head_size) {
  int64_t bytes = 0;
  for (const EntryRuns& runs : heads) bytes += HeadBytes(encoding, NumEntries(runs), head_size);
  return bytes;
}

absl::Status CheckChunk(const v1::Chunk& chunk, const v1::Shape& shape) {
  constexpr uint64_t kMaxSerial = uint64_t{1} << 30;
  if (!IsKnown(chunk.encoding())) {
    return absl::InvalidArgumentError(
        absl::StrCat("this version does not know a chunk's encoding: ", chunk.encoding()));
  }
  if (chunk.first_layer() < 0 || chunk.num_layers() < 1 ||
      chunk.first_layer() > shape.num_layers() - chunk.num_layers()) {
    return absl::InvalidArgumentError(absl::StrCat("a chunk is of layers that are not there: ",
                                                   chunk.first_layer(), " + ", chunk.num_layers()));
  }
  if (chunk.num_serials() < 1 || chunk.num_serials() > kMaxSerial ||
      chunk.first_serial() > kMaxSerial) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a chunk's serials are out of range: ", chunk.first_serial(), " + ", chunk.num_serials()));
  }
  if (!chunk.heads().empty() && chunk.heads_size() != chunk.num_layers() * shape.num_kv_heads()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a chunk has not one set of entries per layer and head: ", chunk.heads_size()));
  }
  ASSIGN_OR_RETURN(const HeadRuns heads, RunsOf(chunk, shape.num_kv_heads()));
  const int64_t bytes = PayloadBytes(heads, chunk.encoding(), shape.head_size());
  if (bytes < 1 || bytes > kMaxChunkBytes || bytes != chunk.num_bytes()) {
    return absl::InvalidArgumentError(
        absl::StrCat("a chunk's size is not that of its entries: ", chunk.num_bytes(),
                     " bytes, entries need ", bytes));
  }
  return absl::OkStatus();
}

}  // namespace mneme::stored
