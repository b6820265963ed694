// The inner loops of paged_attention.h for one instruction set, as a table: paged_attention_cpu.cc
// picks a table and divides the work into tiles.
#pragma once

#include <cstdint>

#include "kernels/paged_attention_layout.h"

namespace mneme::kernels {

inline constexpr int kMaxTileQueries = 24;
inline constexpr int kMaxHeadSize = 256;

// Some queries of one (sequence, kv head) and what they need to see its entries.
struct AttentionTile {
  const void* pool = nullptr;
  const int32_t* pages = nullptr;  // of this (sequence, kv head)
  int64_t head_size = 0;
  float scale = 1;
  int64_t window = 0;  // 0 = all
  int64_t sinks = 0;
  int num_queries = 0;
  const float* query[kMaxTileQueries];       // [D] each
  const float* sink_query[kMaxTileQueries];  // for entries < sinks; may equal query
  int64_t own[kMaxTileQueries];              // entry index of the query itself
  // Masks of their own: entry hidden_from + c is hidden where hidden[query][c] is not 0; null: none
  const uint8_t* hidden[kMaxTileQueries];
  int64_t hidden_from = 0;
  int64_t hidden_size = 0;  // C; 0: no query has a mask
};

// A softmax over some of the entries: sum of e^(score - max) V, not yet divided by total.
// total == 0: no entry was visible.
struct AttentionPart {
  float* sums;    // [queries, D]
  float* maxima;  // [queries]
  float* totals;  // [queries]
};

struct AttentionKernels {
  int lanes;  // the head size must be a multiple
  // Fills `part` with the entries [split * kSplitEntries, ... + kSplitEntries), as far as visible.
  // Index: 0 float32 pages, 1 bfloat16.
  void (*attend[2])(const AttentionTile& tile, int64_t split, const AttentionPart& part);
  // Adds `part` to `state`. Not associative in the last bits: always called in the order of splits.
  void (*merge)(int64_t num_queries, int64_t head_size, const AttentionPart& part,
                const AttentionPart& state);
};

const AttentionKernels& PortableAttentionKernels();
const AttentionKernels& Avx2AttentionKernels();
const AttentionKernels& Avx512AttentionKernels();

}  // namespace mneme::kernels
