#include "common/stored/recode.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/crypto/crc32c.h"
#include "common/status/status_macros.h"
#include "common/stored/encoding.h"
#include "kernels/paged_attention_layout.h"

namespace mneme::stored {
namespace {

using kernels::kPageEntries;

// One head's part of a payload.
template <typename Byte>
class HeadPart {
 public:
  // The numbers of a key or of a value.
  struct Numbers {
    Byte* first;
    int64_t stride;  // bytes from one to the next
  };

  HeadPart(v1::Encoding encoding, int64_t first_serial, int64_t num_entries, int64_t head_size,
           Byte* payload)
      : number_bytes_(NumberBytes(encoding)),
        first_tile_(kPageEntries - first_serial % kPageEntries),
        num_entries_(num_entries),
        head_size_(head_size),
        scales_(payload),
        tiles_(payload + (IsScaled(encoding) ? num_entries * 8 : 0)) {}

  // Of the entry `index`, counted in the payload.
  Numbers At(int64_t index, bool is_value) const {
    const int64_t begin =
        index < first_tile_ ? 0 : first_tile_ + (index - first_tile_) / kPageEntries * kPageEntries;
    const int64_t width = std::min(num_entries_ - begin, begin == 0 ? first_tile_ : kPageEntries);
    const int64_t offset = index - begin;
    Byte* const tile = tiles_ + 2 * begin * head_size_ * number_bytes_;
    if (is_value) {
      return {tile + (width + offset) * head_size_ * number_bytes_, number_bytes_};
    }
    return {tile + offset * number_bytes_, width * number_bytes_};
  }
  Byte* ScaleAt(int64_t index, bool is_value) const {
    return scales_ + 4 * (index + (is_value ? num_entries_ : 0));
  }

 private:
  const int64_t number_bytes_;
  const int64_t first_tile_;  // entries that it has room for
  const int64_t num_entries_;
  const int64_t head_size_;
  Byte* const scales_;
  Byte* const tiles_;
};

using Source = HeadPart<const char>;
using Target = HeadPart<char>;

float LoadNumber(const char* at, v1::Encoding encoding) {
  if (encoding == v1::ENCODING_FLOAT32) {
    float number;
    std::memcpy(&number, at, sizeof(number));
    return number;
  }
  uint16_t high;
  std::memcpy(&high, at, sizeof(high));
  return std::bit_cast<float>(uint32_t{high} << 16);
}

// Writes one entry's key or value in fewer bits. `numbers` has room for it.
void Round(const Source& source, int64_t from, v1::Encoding have, const Target& target, int64_t to,
           v1::Encoding encoding, bool is_value, std::vector<float>& numbers) {
  const Source::Numbers read = source.At(from, is_value);
  for (size_t d = 0; d < numbers.size(); ++d) {
    numbers[d] = LoadNumber(read.first + static_cast<int64_t>(d) * read.stride, have);
  }
  const float scale = ScaleOf(numbers, encoding);
  std::memcpy(target.ScaleAt(to, is_value), &scale, sizeof(scale));
  const Target::Numbers write = target.At(to, is_value);
  for (size_t d = 0; d < numbers.size(); ++d) {
    write.first[static_cast<int64_t>(d) * write.stride] =
        static_cast<char>(Quantise(numbers[d], scale, encoding));
  }
}

void Copy(const Source& source, int64_t from, const Target& target, int64_t to,
          v1::Encoding encoding, bool is_value, int64_t head_size) {
  if (IsScaled(encoding)) {
    std::memcpy(target.ScaleAt(to, is_value), source.ScaleAt(from, is_value), sizeof(float));
  }
  const int64_t bytes = NumberBytes(encoding);
  const Source::Numbers read = source.At(from, is_value);
  const Target::Numbers write = target.At(to, is_value);
  for (int64_t d = 0; d < head_size; ++d) {
    std::memcpy(write.first + d * write.stride, read.first + d * read.stride, bytes);
  }
}

}  // namespace

v1::Encoding Narrower(v1::Encoding have, v1::Encoding wanted) {
  return NumberBytes(wanted) < NumberBytes(have) ? wanted : have;
}

absl::StatusOr<HeadRuns> HeldRunsOf(const v1::Chunk& chunk, const v1::Shape& shape,
                                    absl::Span<const EntryRuns> held) {
  ASSIGN_OR_RETURN(HeadRuns heads, RunsOf(chunk, shape.num_kv_heads()));
  const int64_t first_head = int64_t{chunk.first_layer()} * shape.num_kv_heads();
  for (size_t h = 0; h < heads.size(); ++h) {
    heads[h] = Intersect(heads[h], held[held.size() == 1 ? 0 : first_head + h]);
  }
  return heads;
}

absl::StatusOr<std::optional<EncodedChunk>> Recode(const v1::Chunk& chunk,
                                                   absl::string_view payload,
                                                   const v1::Shape& shape, const HeadRuns& kept,
                                                   v1::Encoding wanted) {
  if (payload.size() != chunk.num_bytes() || crypto::Crc32c(payload) != chunk.crc32c()) {
    return absl::DataLossError(absl::StrCat(
        "a chunk's bytes are not those that were stored: serials ", chunk.first_serial(), " + ",
        chunk.num_serials(), ", ", payload.size(), " of ", chunk.num_bytes(), " bytes"));
  }
  const v1::Encoding have = chunk.encoding();
  const v1::Encoding encoding = Narrower(have, wanted);
  const int64_t head_size = shape.head_size();
  const int64_t first_serial = static_cast<int64_t>(chunk.first_serial());
  ASSIGN_OR_RETURN(const HeadRuns heads, RunsOf(chunk, shape.num_kv_heads()));
  const int64_t bytes = PayloadBytes(kept, encoding, head_size);
  if (bytes == 0) return std::nullopt;

  EncodedChunk result;
  result.payload.resize(bytes);
  std::vector<float> numbers(head_size);
  const char* read = payload.data();
  char* write = result.payload.data();
  bool is_whole = true;
  for (size_t h = 0; h < heads.size(); ++h) {
    const int64_t had = NumEntries(heads[h]);
    const int64_t has = NumEntries(kept[h]);
    is_whole &= has == static_cast<int64_t>(chunk.num_serials());
    const Source source(have, first_serial, had, head_size, read);
    const Target target(encoding, first_serial, has, head_size, write);
    int64_t to = 0;
    int64_t passed = 0;  // entries of the payload before `run`
    auto run = heads[h].begin();
    for (const EntryRun& taken : kept[h]) {
      while (run->end <= taken.begin) {
        passed += run->end - run->begin;
        ++run;
      }
      for (int64_t serial = taken.begin; serial < taken.end; ++serial, ++to) {
        const int64_t from = passed + serial - run->begin;
        for (const bool is_value : {false, true}) {
          if (encoding == have) {
            Copy(source, from, target, to, encoding, is_value, head_size);
          } else {
            Round(source, from, have, target, to, encoding, is_value, numbers);
          }
        }
      }
    }
    read += HeadBytes(have, had, head_size);
    write += HeadBytes(encoding, has, head_size);
  }

  v1::Chunk& described = result.chunk;
  described = chunk;
  described.clear_digest();
  described.clear_heads();
  described.set_num_bytes(static_cast<uint32_t>(bytes));
  described.set_encoding(encoding);
  if (!is_whole) {
    for (const EntryRuns& runs : kept) ToWire(runs, first_serial, described.add_heads());
  }
  described.set_crc32c(crypto::Crc32c(result.payload));
  return result;
}

}  // namespace mneme::stored
