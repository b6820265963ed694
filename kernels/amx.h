// The few AMX instructions that the kernels use, as functions. GCC 12's own intrinsics do not tell
// the compiler that they read and write memory. Include only in files compiled for AVX-512.
//
// Tile registers are numbers 0..7 fixed at compile time. Whoever loads a configuration releases it
// before it returns: live tiles make every context switch save 8 KiB more.
#pragma once

#include <cstdint>

namespace mneme::kernels {
namespace {

// Rows and bytes per row of the eight tile registers (Intel SDM, "LDTILECFG", palette 1).
struct alignas(64) AmxConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  constexpr void Set(int tile, int num_rows, int num_row_bytes) {
    rows[tile] = static_cast<uint8_t>(num_rows);
    row_bytes[tile] = static_cast<uint16_t>(num_row_bytes);
  }
};
static_assert(sizeof(AmxConfig) == 64);

inline void AmxConfigure(const AmxConfig& config) {
  asm volatile("ldtilecfg %0" : : "m"(config) : "memory");
}

inline void AmxRelease() { asm volatile("tilerelease" : : : "memory"); }

template <int kTile>
inline void AmxZero() {
  asm volatile("tilezero %%tmm%c0" : : "i"(kTile));
}

template <int kTile>
inline void AmxLoad(const void* base, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(base), "r"(stride), "i"(kTile) : "memory");
}

template <int kTile>
inline void AmxStore(void* base, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(base), "r"(stride), "i"(kTile) : "memory");
}

// sum[m][n] += the products of four signed bytes a[m][4i..] and four bytes b[i][4n..], over i;
// those of b are signed or not.
template <int kSum, int kA, int kB, bool kSignedB>
inline void AmxDot() {
  if constexpr (kSignedB) {
    asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSum), "i"(kA), "i"(kB));
  } else {
    asm volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSum), "i"(kA), "i"(kB));
  }
}

}  // namespace
}  // namespace mneme::kernels
