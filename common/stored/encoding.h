// How the numbers of a chunk are stored (docs/snapshots.md): exact copies, or 8 bits with a scale
// per entry, of its key and of its value apart.
#pragma once

#include <cstdint>

#include "absl/types/span.h"
#include "mneme/snapshot/v1/snapshot.pb.h"

namespace mneme::stored {

namespace v1 = ::mneme::snapshot::v1;

bool IsKnown(v1::Encoding encoding);
// Entries have scales: int8 and fp8.
bool IsScaled(v1::Encoding encoding);
// Bytes of one number, scales aside. `encoding` must be a known one.
int64_t NumberBytes(v1::Encoding encoding);
// Bytes of `num_entries` entries of one head, keys and values, scales included.
int64_t HeadBytes(v1::Encoding encoding, int64_t num_entries, int64_t head_size);

// The 8-bit float of 4 exponent and 3 mantissa bits without infinities (largest: 448), rounded to
// nearest, ties to even; beyond the range the largest. NaN stays NaN.
uint8_t ToFp8(float value);
float FromFp8(uint8_t value);

// The scale of numbers: their largest magnitude becomes the largest that `encoding` has. Numbers
// that are not finite do not count.
float ScaleOf(absl::Span<const float> numbers, v1::Encoding encoding);
// number ~ scale * stored. Of int8 the error is at most scale / 2; of fp8 the larger of 2^-4 of the
// number and scale * 2^-10. NaN is stored as 0, infinity as the largest number.
uint8_t Quantise(float number, float scale, v1::Encoding encoding);
float Dequantise(uint8_t stored, float scale, v1::Encoding encoding);

}  // namespace mneme::stored
