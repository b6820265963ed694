// Turns stored weights into float32, one element at a time and exactly as the formats define them.
// This is the slow, plain reference: kernels are tested against it.
//
// The block layouts (little-endian; `half` is IEEE binary16). Element j of a block:
//   Q8_0  32  half d, int8 q[32]                        d * q[j]
//   Q4_0  32  half d, u8 q[16]                          d * (nibble - 8)
//   Q4_1  32  half d, half m, u8 q[16]                  d * nibble + m
//   Q5_0  32  half d, u8 h[4], u8 q[16]                 d * ((nibble | bit << 4) - 16)
//   Q5_1  32  half d, half m, u8 h[4], u8 q[16]         d * (nibble | bit << 4) + m
//     nibble: low half of q[j] for j < 16, high half of q[j - 16] otherwise;
//     bit: bit j of h read as a 32-bit little-endian number.
//   Q4_K 256  half d, half dmin, u8 s[12], u8 q[128]    (d * scale) * nibble - dmin * min
//   Q5_K 256  half d, half dmin, u8 s[12], u8 h[32], u8 q[128]
//                                                       (d * scale) * (nibble | bit << 4) - dmin *
//                                                       min
//     eight sub-blocks of 32 share the pairs (scale, min) of 6 bits each. Sub-block b < 4: scale is
//     the low 6 bits of s[b], min those of s[b + 4]; b >= 4: scale is the low nibble of s[b + 4]
//     with the top two bits of s[b - 4] above it, min the high nibble of s[b + 4] with the top two
//     bits of s[b] above it. Sub-blocks 2g and 2g+1 take the low and high nibbles of
//     q[32g .. 32g+31]; bit: bit b of h[j % 32].
//   Q6_K 256  u8 l[128], u8 h[64], int8 s[16], half d   (d * s[j / 16]) * (v - 32)
//     two halves of 128; within a half, quarter r = (j % 128) / 32 and i = j % 32: the low four
//     bits of v are the low (r < 2) or high (r >= 2) nibble of l[64 * half + 32 * (r % 2) + i], the
//     upper two are bits 2r, 2r+1 of h[32 * half + i].
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "common/weights/tensor_view.h"

namespace mneme::weights {

// IEEE binary16 to float32: exact, subnormals, infinities and NaNs included.
float HalfToFloat(uint16_t bits);
// Rounds to nearest even; overflow becomes infinity.
uint16_t FloatToHalf(float value);
// bfloat16 is the upper half of a float32.
float BFloat16ToFloat(uint16_t bits);
// Rounds to nearest even; NaN stays NaN.
uint16_t FloatToBFloat16(float value);
// The 8-bit floats of safetensors: e4m3 has no infinity (0x7F and 0xFF are NaN), e5m2 has.
float Float8E4M3ToFloat(uint8_t bits);
float Float8E5M2ToFloat(uint8_t bits);

// Decodes `out.size()` elements, which must be a whole number of blocks, from the start of `data`.
// INVALID_ARGUMENT: not whole blocks, or fewer bytes than they need.
absl::Status Dequantize(TensorType type, absl::Span<const uint8_t> data, absl::Span<float> out);

// Decodes a whole tensor. INVALID_ARGUMENT: `out` is not of its size.
absl::Status Dequantize(const TensorView& tensor, absl::Span<float> out);

// Decodes innermost rows [first_row, first_row + num_rows) of the tensor taken as a matrix.
absl::Status DequantizeRows(const TensorView& tensor, int64_t first_row, int64_t num_rows,
                            absl::Span<float> out);

}  // namespace mneme::weights
