#include "common/snapshot/chunk.h"

#include <c10/util/BFloat16.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/crypto/crc32c.h"
#include "common/snapshot/encoding.h"
#include "common/snapshot/host_pages.h"
#include "common/snapshot/runs.h"
#include "common/status/status_macros.h"
#include "kernels/paged_attention_layout.h"

namespace mneme::snapshot {
namespace {

using kernels::kPageEntries;
using stored::HeadRuns;
using stored::PayloadBytes;
using stored::RunsOf;

int64_t RoundDown(int64_t entries) { return entries / kPageEntries * kPageEntries; }

// Entries that lie side by side both in a tile and in a page.
struct Piece {
  int64_t tile_begin;  // the tile's first entry, as a count of the payload's entries of the head
  int64_t tile_width;
  int64_t tile_offset;
  int64_t page;
  int64_t page_offset;
  int64_t count;
};

// Where a head has the entries of some serials, side by side.
struct Place {
  int64_t index;  // of the first one
  int64_t count;  // how many serials from there on this is true of
};

// Finds serials in one head of a sequence. For a serial that the head does not hold index is -1.
class Places {
 public:
  Places(const memory::KvSequence& sequence, int64_t layer, int64_t head)
      : sequence_(sequence), layer_(layer), head_(head) {}

  Place Find(int64_t serial, int64_t most) const {
    if (!sequence_.policy().moves_entries()) return {serial, most};
    const int64_t index = sequence_.IndexOf(layer_, head_, serial);
    const int64_t length = sequence_.length(layer_, head_);
    if (index >= length || sequence_.position(layer_, head_, index) != serial) return {-1, 1};
    int64_t count = 1;
    while (count < most && index + count < length &&
           sequence_.position(layer_, head_, index + count) == serial + count) {
      ++count;
    }
    return {index, count};
  }

 private:
  const memory::KvSequence& sequence_;
  const int64_t layer_;
  const int64_t head_;
};

// Cuts the entries of one head into pieces; those that the head does not hold are passed over.
// `first_serial` is the chunk's.
template <typename Body>
void ForEachPiece(const EntryRuns& runs, int64_t first_serial, const Places& places, Body&& body) {
  const int64_t total = NumEntries(runs);
  int64_t tile_begin = 0;
  int64_t tile_end = std::min(total, kPageEntries - first_serial % kPageEntries);
  int64_t done = 0;
  for (const memory::EntryRun& run : runs) {
    for (int64_t serial = run.begin; serial < run.end;) {
      if (done == tile_end) {
        tile_begin = tile_end;
        tile_end = std::min(total, tile_begin + kPageEntries);
      }
      const Place place = places.Find(serial, std::min(run.end - serial, tile_end - done));
      const int64_t offset = place.index % kPageEntries;
      const int64_t count =
          place.index < 0 ? place.count : std::min(place.count, kPageEntries - offset);
      if (place.index >= 0) {
        body(Piece{tile_begin, tile_end - tile_begin, done - tile_begin, place.index / kPageEntries,
                   offset, count});
      }
      serial += count;
      done += count;
    }
  }
}

// The numbers of a piece between a page and a tile of the same type, one way or the other.
// `tile` is where the tile begins.
template <bool kToTile>
void CopyPiece(const Piece& piece, int64_t head_size, int64_t number_bytes, char* page,
               char* tile) {
  const auto copy = [](char* in_page, char* in_tile, int64_t bytes) {
    if constexpr (kToTile) {
      std::memcpy(in_tile, in_page, bytes);
    } else {
      std::memcpy(in_page, in_tile, bytes);
    }
  };
  if (piece.count == kPageEntries) {  // of both: they are the same
    copy(page, tile, 2 * kPageEntries * head_size * number_bytes);
    return;
  }
  for (int64_t d = 0; d < head_size; ++d) {
    copy(page + (d * kPageEntries + piece.page_offset) * number_bytes,
         tile + (d * piece.tile_width + piece.tile_offset) * number_bytes,
         piece.count * number_bytes);
  }
  copy(page + (head_size * kPageEntries + piece.page_offset * head_size) * number_bytes,
       tile + (head_size * piece.tile_width + piece.tile_offset * head_size) * number_bytes,
       piece.count * head_size * number_bytes);
}

float LoadNumber(const char* at, bool is_float32) {
  if (is_float32) {
    float number;
    std::memcpy(&number, at, sizeof(number));
    return number;
  }
  c10::BFloat16 number;
  std::memcpy(&number, at, sizeof(number));
  return static_cast<float>(number);
}

void StoreNumber(float number, bool is_float32, char* at) {
  if (is_float32) {
    std::memcpy(at, &number, sizeof(number));
    return;
  }
  const c10::BFloat16 rounded(number);
  std::memcpy(at, &rounded, sizeof(rounded));
}

// One head's part of a payload where the chunk's type is not the pool's: number by number.
class HeadConverter {
 public:
  HeadConverter(v1::Encoding encoding, bool pool_is_float32, int64_t num_entries, int64_t head_size,
                char* payload)
      : encoding_(encoding),
        pool_is_float32_(pool_is_float32),
        page_number_bytes_(pool_is_float32 ? 4 : 2),
        head_size_(head_size),
        scales_(payload),
        value_scales_(payload + (IsScaled(encoding) ? num_entries * 4 : 0)),
        tiles_(payload + (IsScaled(encoding) ? num_entries * 8 : 0)) {}

  void Encode(const Piece& piece, const char* page) {
    std::vector<float> numbers(head_size_);
    for (int64_t i = 0; i < piece.count; ++i) {
      for (const bool is_value : {false, true}) {
        for (int64_t d = 0; d < head_size_; ++d) {
          numbers[d] = LoadNumber(page + PageOffset(piece, i, d, is_value), pool_is_float32_);
        }
        float scale = 1;
        if (IsScaled(encoding_)) {
          scale = ScaleOf(numbers, encoding_);
          std::memcpy(ScaleAt(piece, i, is_value), &scale, sizeof(scale));
        }
        for (int64_t d = 0; d < head_size_; ++d) {
          char* const at = TileAt(piece, i, d, is_value);
          if (IsScaled(encoding_)) {
            *at = static_cast<char>(Quantise(numbers[d], scale, encoding_));
          } else {
            StoreNumber(numbers[d], encoding_ == v1::ENCODING_FLOAT32, at);
          }
        }
      }
    }
  }

  // False: a scale is not a number.
  bool Decode(const Piece& piece, char* page) {
    for (int64_t i = 0; i < piece.count; ++i) {
      for (const bool is_value : {false, true}) {
        float scale = 1;
        if (IsScaled(encoding_)) {
          std::memcpy(&scale, ScaleAt(piece, i, is_value), sizeof(scale));
          if (!std::isfinite(scale) || scale < 0) return false;
        }
        for (int64_t d = 0; d < head_size_; ++d) {
          const char* const at = TileAt(piece, i, d, is_value);
          const float number = IsScaled(encoding_)
                                   ? Dequantise(static_cast<uint8_t>(*at), scale, encoding_)
                                   : LoadNumber(at, encoding_ == v1::ENCODING_FLOAT32);
          StoreNumber(number, pool_is_float32_, page + PageOffset(piece, i, d, is_value));
        }
      }
    }
    return true;
  }

 private:
  int64_t PageOffset(const Piece& piece, int64_t i, int64_t d, bool is_value) const {
    const int64_t entry = piece.page_offset + i;
    return page_number_bytes_ *
           (is_value ? (kPageEntries + entry) * head_size_ + d : d * kPageEntries + entry);
  }
  char* TileAt(const Piece& piece, int64_t i, int64_t d, bool is_value) const {
    const int64_t entry = piece.tile_offset + i;
    const int64_t number =
        2 * piece.tile_begin * head_size_ +
        (is_value ? (piece.tile_width + entry) * head_size_ + d : d * piece.tile_width + entry);
    return tiles_ + number * NumberBytes(encoding_);
  }
  char* ScaleAt(const Piece& piece, int64_t i, bool is_value) const {
    return (is_value ? value_scales_ : scales_) + 4 * (piece.tile_begin + piece.tile_offset + i);
  }

  const v1::Encoding encoding_;
  const bool pool_is_float32_;
  const int64_t page_number_bytes_;
  const int64_t head_size_;
  char* const scales_;
  char* const value_scales_;
  char* const tiles_;
};

ChunkRange RangeOf(const v1::Chunk& chunk) {
  return {.first_layer = chunk.first_layer(),
          .num_layers = chunk.num_layers(),
          .first_serial = static_cast<int64_t>(chunk.first_serial()),
          .num_serials = static_cast<int64_t>(chunk.num_serials())};
}

}  // namespace

ChunkPlan::ChunkPlan(const memory::KvShape& shape, v1::Encoding encoding)
    : num_layers_(shape.num_layers) {
  const int64_t layer_bytes = shape.num_kv_heads * HeadBytes(encoding, 1, shape.head_size);
  const int64_t page_layers = kMaxChunkBytes / (layer_bytes * kPageEntries);
  group_layers_ = std::clamp<int64_t>(page_layers, 1, num_layers_);
  // Groups of nearly the same size.
  const int64_t num_groups = (num_layers_ + group_layers_ - 1) / group_layers_;
  group_layers_ = (num_layers_ + num_groups - 1) / num_groups;
  max_serials_ = std::max<int64_t>(kMaxChunkBytes / (layer_bytes * group_layers_), 1);
}

int64_t ChunkPlan::FullEnd(int64_t first_serial) const {
  const int64_t end = RoundDown(first_serial + max_serials_);
  return end > first_serial ? end : first_serial + max_serials_;
}

std::vector<ChunkRange> ChunkPlan::Ranges(int64_t first, int64_t end) const {
  std::vector<ChunkRange> ranges;
  if (first >= end) return ranges;
  for (int64_t layer = 0; layer < num_layers_; layer += group_layers_) {
    ranges.push_back({.first_layer = layer,
                      .num_layers = std::min(group_layers_, num_layers_ - layer),
                      .first_serial = first,
                      .num_serials = end - first});
  }
  return ranges;
}

absl::StatusOr<std::optional<EncodedChunk>> ExportChunk(const memory::KvSequence& sequence,
                                                        const ChunkRange& range,
                                                        v1::Encoding encoding) {
  const memory::KvShape& shape = sequence.shape();
  const int64_t num_entries = sequence.extent().num_entries;
  if (range.first_layer < 0 || range.num_layers < 1 ||
      range.first_layer + range.num_layers > shape.num_layers || range.first_serial < 0 ||
      range.num_serials < 1 || range.end_serial() > num_entries) {
    return absl::InvalidArgumentError(absl::StrCat(
        "no such entries to store: layers ", range.first_layer, " + ", range.num_layers,
        ", serials ", range.first_serial, " + ", range.num_serials, " of ", num_entries));
  }
  HeadRuns heads;
  heads.reserve(range.num_layers * shape.num_kv_heads);
  bool is_whole = true;
  for (int64_t i = 0; i < range.num_layers; ++i) {
    const int64_t layer = range.first_layer + i;
    for (int64_t head = 0; head < shape.num_kv_heads; ++head) {
      if (!sequence.policy().moves_entries() && sequence.length(layer, head) != num_entries) {
        return absl::FailedPreconditionError(
            absl::StrCat("entries that were moved by hand can't be stored by position: layer ",
                         layer, ", head ", head));
      }
      heads.push_back(HeldRuns(sequence, layer, head, range.first_serial, range.end_serial()));
      is_whole &= NumEntries(heads.back()) == range.num_serials;
    }
  }
  const int64_t bytes = PayloadBytes(heads, encoding, shape.head_size);
  if (bytes == 0) return std::nullopt;
  if (bytes > kMaxChunkBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("a chunk of so many entries is too large: ", bytes, " bytes"));
  }

  EncodedChunk result;
  result.payload.resize(bytes);
  ASSIGN_OR_RETURN(const HostPages pages, HostPages::Load(sequence, range));
  const bool is_float32 = sequence.pool().dtype() == at::kFloat;
  const bool is_exact = encoding == ExactEncoding(sequence.pool().dtype());
  char* payload = result.payload.data();
  for (size_t h = 0; h < heads.size(); ++h) {
    const int64_t layer = range.first_layer + static_cast<int64_t>(h) / shape.num_kv_heads;
    const int64_t head = static_cast<int64_t>(h) % shape.num_kv_heads;
    const int64_t num_entries = NumEntries(heads[h]);
    HeadConverter converter(encoding, is_float32, num_entries, shape.head_size, payload);
    ForEachPiece(
        heads[h], range.first_serial, Places(sequence, layer, head), [&](const Piece& piece) {
          char* const page = pages.page(layer, head, piece.page);
          if (is_exact) {
            CopyPiece<true>(piece, shape.head_size, NumberBytes(encoding), page,
                            payload + HeadBytes(encoding, piece.tile_begin, shape.head_size));
          } else {
            converter.Encode(piece, page);
          }
        });
    payload += HeadBytes(encoding, num_entries, shape.head_size);
  }

  v1::Chunk& chunk = result.chunk;
  chunk.set_num_bytes(static_cast<uint32_t>(bytes));
  chunk.set_encoding(encoding);
  chunk.set_first_layer(static_cast<int32_t>(range.first_layer));
  chunk.set_num_layers(static_cast<int32_t>(range.num_layers));
  chunk.set_first_serial(static_cast<uint64_t>(range.first_serial));
  chunk.set_num_serials(static_cast<uint64_t>(range.num_serials));
  if (!is_whole) {
    for (const EntryRuns& runs : heads) ToWire(runs, range.first_serial, chunk.add_heads());
  }
  chunk.set_crc32c(crypto::Crc32c(result.payload));
  return result;
}

absl::Status CheckChunk(const v1::Chunk& chunk, const memory::KvShape& shape) {
  v1::Shape wire;
  wire.set_num_layers(static_cast<int32_t>(shape.num_layers));
  wire.set_num_kv_heads(static_cast<int32_t>(shape.num_kv_heads));
  wire.set_head_size(static_cast<int32_t>(shape.head_size));
  return stored::CheckChunk(chunk, wire);
}

absl::Status ImportChunk(const v1::Chunk& chunk, absl::string_view payload,
                         memory::KvSequence* sequence) {
  const memory::KvShape& shape = sequence->shape();
  const ChunkRange range = RangeOf(chunk);
  // Policies have more entries than tokens or fewer; serials are below the larger.
  const int64_t end = std::max<int64_t>(sequence->num_tokens(), sequence->length(0, 0));
  if (range.end_serial() > end) {
    return absl::InvalidArgumentError(
        absl::StrCat("a chunk ends beyond the memory: ", range.end_serial(), " of ", end));
  }
  if (payload.size() != chunk.num_bytes() || crypto::Crc32c(payload) != chunk.crc32c()) {
    return absl::DataLossError(absl::StrCat(
        "a chunk's bytes are not those that were stored: serials ", range.first_serial, " + ",
        range.num_serials, ", ", payload.size(), " of ", chunk.num_bytes(), " bytes"));
  }
  ASSIGN_OR_RETURN(const HeadRuns heads, RunsOf(chunk, shape.num_kv_heads));
  ASSIGN_OR_RETURN(const HostPages pages, HostPages::Load(*sequence, range));
  const bool is_float32 = sequence->pool().dtype() == at::kFloat;
  const bool is_exact = chunk.encoding() == ExactEncoding(sequence->pool().dtype());
  bool is_sound = true;
  // The converter also writes, elsewhere; this payload it only reads.
  char* at = const_cast<char*>(payload.data());
  for (size_t h = 0; h < heads.size(); ++h) {
    const int64_t layer = range.first_layer + static_cast<int64_t>(h) / shape.num_kv_heads;
    const int64_t head = static_cast<int64_t>(h) % shape.num_kv_heads;
    const int64_t num_entries = NumEntries(heads[h]);
    HeadConverter converter(chunk.encoding(), is_float32, num_entries, shape.head_size, at);
    ForEachPiece(
        heads[h], range.first_serial, Places(*sequence, layer, head), [&](const Piece& piece) {
          char* const page = pages.page(layer, head, piece.page);
          if (page == nullptr) return;
          if (is_exact) {
            CopyPiece<false>(piece, shape.head_size, NumberBytes(chunk.encoding()), page,
                             at + HeadBytes(chunk.encoding(), piece.tile_begin, shape.head_size));
          } else {
            is_sound &= converter.Decode(piece, page);
          }
        });
    at += HeadBytes(chunk.encoding(), num_entries, shape.head_size);
  }
  if (!is_sound) return absl::DataLossError("a chunk has scales that are no numbers");
  return pages.Store();
}

}  // namespace mneme::snapshot
