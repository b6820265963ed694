// The inner loops of paged_attention.h, written once over an instruction set S (simd_*.h). For one
// query the arithmetic is the same whatever else is in the tile: scores are summed along D, weights
// by lane and page, values along the entries, and an invisible entry is left out, not multiplied by
// zero (its page may hold anything).
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/paged_attention_kernels.h"
#include "kernels/simd_math.h"
#include "kernels/unroll.h"

namespace mneme::kernels {
namespace {

inline constexpr int kSplitPages = static_cast<int>(kSplitEntries / kPageEntries);
inline constexpr uint32_t kAllVisible = (1u << kPageEntries) - 1;

// A page of the pool: float32 or (kHalf) bfloat16.
template <typename S, bool kHalf>
struct Page {
  static typename S::F Load(const uint8_t* p) {
    if constexpr (kHalf) {
      return S::LoadBFloat16(p);
    } else {
      return S::Load(reinterpret_cast<const float*>(p));
    }
  }
  static constexpr int64_t kSize = kHalf ? 2 : 4;
};

inline int64_t Clamp16(int64_t n) { return n < 0 ? 0 : n > kPageEntries ? kPageEntries : n; }

// Bit e: entry base + e is visible to a query at `own`.
inline uint32_t VisibleMask(const AttentionTile& tile, int64_t own, int64_t base) {
  uint32_t mask = (1u << Clamp16(own + 1 - base)) - 1;
  if (tile.window > 0) {
    const uint32_t too_old = (1u << Clamp16(own - tile.window + 1 - base)) - 1;
    const uint32_t sinks = (1u << Clamp16(tile.sinks - base)) - 1;
    mask &= ~too_old | sinks;
  }
  return mask;
}

// Bit e: entry base + e is hidden from query r by its own mask.
inline uint32_t HiddenMask(const AttentionTile& tile, int r, int64_t base) {
  uint32_t mask = 0;
  for (int64_t e = 0; e < kPageEntries; ++e) {
    const int64_t column = base + e - tile.hidden_from;
    if (column < 0 || column >= tile.hidden_size) continue;
    mask |= static_cast<uint32_t>(tile.hidden[r][column] != 0) << e;
  }
  return mask;
}

// scores[r][0..16) = query r times the keys of a page.
template <typename S, bool kHalf, int kRows>
void ScorePage(const uint8_t* keys, int64_t head_size, const float* const* queries, float scale,
               float* scores) {
  using F = typename S::F;
  constexpr int kParts = static_cast<int>(kPageEntries) / S::kLanes;
  F sum[kRows][kParts];
  Unroll<0, kRows * kParts>([&]<int i>() { sum[i / kParts][i % kParts] = S::Set(0.0f); });
  for (int64_t d = 0; d < head_size; ++d) {
    F key[kParts];
    Unroll<0, kParts>([&]<int p>() {
      key[p] =
          Page<S, kHalf>::Load(keys + (d * kPageEntries + p * S::kLanes) * Page<S, kHalf>::kSize);
    });
    Unroll<0, kRows>([&]<int r>() {
      const F q = S::Set(queries[r][d]);
      Unroll<0, kParts>([&]<int p>() { sum[r][p] = S::Fma(q, key[p], sum[r][p]); });
    });
  }
  Unroll<0, kRows * kParts>([&]<int i>() {
    S::Store(scores + i / kParts * kSplitEntries + i % kParts * S::kLanes,
             S::Mul(sum[i / kParts][i % kParts], S::Set(scale)));
  });
}

template <typename S, bool kHalf>
void ScoreRows(const uint8_t* keys, int64_t head_size, const float* const* queries, int rows,
               float scale, float* scores) {
  // As many sums as it takes to keep the multipliers busy, and registers to hold them.
  constexpr int kMost = S::kLanes == 16 ? 8 : 4;
  int r = 0;
  for (; r + kMost <= rows; r += kMost) {
    ScorePage<S, kHalf, kMost>(keys, head_size, queries + r, scale, scores + r * kSplitEntries);
  }
  for (; r + 4 <= rows; r += 4) {
    ScorePage<S, kHalf, 4>(keys, head_size, queries + r, scale, scores + r * kSplitEntries);
  }
  if (rows - r == 3) {
    ScorePage<S, kHalf, 3>(keys, head_size, queries + r, scale, scores + r * kSplitEntries);
  } else if (rows - r == 2) {
    ScorePage<S, kHalf, 2>(keys, head_size, queries + r, scale, scores + r * kSplitEntries);
  } else if (rows - r == 1) {
    ScorePage<S, kHalf, 1>(keys, head_size, queries + r, scale, scores + r * kSplitEntries);
  }
}

// sums[r][0..kVectors * lanes) = the weights of row r times the values of a split.
template <typename S, bool kHalf, int kRows, int kVectors>
void WeighValues(const uint8_t* const* pages, const uint32_t (*masks)[kSplitPages],
                 int64_t head_size, int64_t column, const float* weights, float* sums) {
  using F = typename S::F;
  F sum[kRows][kVectors];
  Unroll<0, kRows * kVectors>([&]<int i>() { sum[i / kVectors][i % kVectors] = S::Set(0.0f); });
  for (int page = 0; page < kSplitPages; ++page) {
    uint32_t all = kAllVisible;
    uint32_t any = 0;
    Unroll<0, kRows>([&]<int r>() {
      all &= masks[r][page];
      any |= masks[r][page];
    });
    if (any == 0) continue;
    const uint8_t* values =
        pages[page] + (kPageEntries * head_size + column) * Page<S, kHalf>::kSize;
    const float* weight = weights + page * kPageEntries;
    for (int64_t e = 0; e < kPageEntries; ++e, values += head_size * Page<S, kHalf>::kSize) {
      if ((any >> e & 1) == 0) continue;
      F value[kVectors];
      Unroll<0, kVectors>([&]<int v>() {
        value[v] = Page<S, kHalf>::Load(values + v * S::kLanes * Page<S, kHalf>::kSize);
      });
      if ((all >> e & 1) != 0) {
        Unroll<0, kRows>([&]<int r>() {
          const F w = S::Set(weight[r * kSplitEntries + e]);
          Unroll<0, kVectors>([&]<int v>() { sum[r][v] = S::Fma(w, value[v], sum[r][v]); });
        });
      } else {
        Unroll<0, kRows>([&]<int r>() {
          if ((masks[r][page] >> e & 1) == 0) return;
          const F w = S::Set(weight[r * kSplitEntries + e]);
          Unroll<0, kVectors>([&]<int v>() { sum[r][v] = S::Fma(w, value[v], sum[r][v]); });
        });
      }
    }
  }
  Unroll<0, kRows * kVectors>([&]<int i>() {
    S::Store(sums + i / kVectors * head_size + column + i % kVectors * S::kLanes,
             sum[i / kVectors][i % kVectors]);
  });
}

template <typename S, bool kHalf, int kRows>
void WeighRows(const uint8_t* const* pages, const uint32_t (*masks)[kSplitPages], int64_t head_size,
               const float* weights, float* sums) {
  constexpr int kVectors = 32 / S::kLanes;
  int64_t column = 0;
  if constexpr (S::kLanes == 16) {
    for (; column + 64 <= head_size; column += 64) {
      WeighValues<S, kHalf, kRows, 4>(pages, masks, head_size, column, weights, sums);
    }
  }
  for (; column + 32 <= head_size; column += 32) {
    WeighValues<S, kHalf, kRows, kVectors>(pages, masks, head_size, column, weights, sums);
  }
  for (; column < head_size; column += S::kLanes) {
    WeighValues<S, kHalf, kRows, 1>(pages, masks, head_size, column, weights, sums);
  }
}

// Turns the scores of one query into weights; returns their sum and largest score.
template <typename S>
float Softmax(const uint32_t* masks, float* scores, float* largest) {
  using F = typename S::F;
  constexpr float kLowest = -3.4e38f;
  F max = S::Set(kLowest);
  for (int page = 0; page < kSplitPages; ++page) {
    if (masks[page] == 0) continue;
    float* s = scores + page * kPageEntries;
    if (masks[page] != kAllVisible) {
      for (int e = 0; e < kPageEntries; ++e) {
        if ((masks[page] >> e & 1) == 0) s[e] = kLowest;
      }
    }
    for (int e = 0; e < kPageEntries; e += S::kLanes) max = S::Max(max, S::Load(s + e));
  }
  *largest = S::MaxLane(max);
  const F shift = S::Set(*largest);
  F total = S::Set(0.0f);
  for (int page = 0; page < kSplitPages; ++page) {
    if (masks[page] == 0) continue;
    float* s = scores + page * kPageEntries;
    for (int e = 0; e < kPageEntries; e += S::kLanes) {
      S::Store(s + e, Exp<S>(S::Sub(S::Load(s + e), shift)));
    }
    if (masks[page] != kAllVisible) {
      for (int e = 0; e < kPageEntries; ++e) {
        if ((masks[page] >> e & 1) == 0) s[e] = 0.0f;
      }
    }
    for (int e = 0; e < kPageEntries; e += S::kLanes) total = S::Add(total, S::Load(s + e));
  }
  return S::Sum(total);
}

template <typename S, bool kHalf>
void Attend(const AttentionTile& tile, int64_t split, const AttentionPart& part) {
  const int rows = tile.num_queries;
  const int64_t head_size = tile.head_size;
  const int64_t page_bytes = PageElements(head_size) * Page<S, kHalf>::kSize;
  uint32_t masks[kMaxTileQueries][kSplitPages];
  const uint8_t* pages[kSplitPages];
  alignas(64) float scores[kMaxTileQueries * kSplitEntries];
  for (int p = 0; p < kSplitPages; ++p) {
    const int64_t base = split * kSplitEntries + p * kPageEntries;
    uint32_t any = 0;
    for (int r = 0; r < rows; ++r) {
      masks[r][p] = VisibleMask(tile, tile.own[r], base);
      if (tile.hidden_size > 0) masks[r][p] &= ~HiddenMask(tile, r, base);
      any |= masks[r][p];
    }
    // Past the last visible page the table may end.
    const int32_t number = any == 0 ? -1 : tile.pages[base / kPageEntries];
    pages[p] = static_cast<const uint8_t*>(tile.pool) + (number < 0 ? 0 : number) * page_bytes;
    if (number < 0) {
      for (int r = 0; r < rows; ++r) masks[r][p] = 0;
      continue;
    }
    float* page_scores = scores + p * kPageEntries;
    const bool sink_page = base < tile.sinks && tile.sink_query[0] != tile.query[0];
    ScoreRows<S, kHalf>(pages[p], head_size, tile.query, rows, tile.scale, page_scores);
    if (sink_page) {
      alignas(64) float sink_scores[kMaxTileQueries * kSplitEntries];
      ScoreRows<S, kHalf>(pages[p], head_size, tile.sink_query, rows, tile.scale, sink_scores);
      const auto count = static_cast<size_t>(Clamp16(tile.sinks - base));
      for (int r = 0; r < rows; ++r) {
        std::memcpy(page_scores + r * kSplitEntries, sink_scores + r * kSplitEntries,
                    count * sizeof(float));
      }
    }
  }
  for (int r = 0; r < rows; ++r) {
    uint32_t any = 0;
    for (int p = 0; p < kSplitPages; ++p) any |= masks[r][p];
    part.totals[r] = 0;
    part.maxima[r] = 0;
    if (any == 0) continue;
    part.totals[r] = Softmax<S>(masks[r], scores + r * kSplitEntries, &part.maxima[r]);
  }
  int r = 0;
  if constexpr (S::kLanes == 16) {
    for (; r + 6 <= rows; r += 6) {
      WeighRows<S, kHalf, 6>(pages, masks + r, head_size, scores + r * kSplitEntries,
                             part.sums + r * head_size);
    }
  }
  for (; r + 3 <= rows; r += 3) {
    WeighRows<S, kHalf, 3>(pages, masks + r, head_size, scores + r * kSplitEntries,
                           part.sums + r * head_size);
  }
  if (rows - r == 2) {
    WeighRows<S, kHalf, 2>(pages, masks + r, head_size, scores + r * kSplitEntries,
                           part.sums + r * head_size);
  } else if (rows - r == 1) {
    WeighRows<S, kHalf, 1>(pages, masks + r, head_size, scores + r * kSplitEntries,
                           part.sums + r * head_size);
  }
}

template <typename S>
void Merge(int64_t num_queries, int64_t head_size, const AttentionPart& part,
           const AttentionPart& state) {
  using F = typename S::F;
  for (int64_t r = 0; r < num_queries; ++r) {
    if (part.totals[r] == 0) continue;
    float* sums = state.sums + r * head_size;
    const float* added = part.sums + r * head_size;
    if (state.totals[r] == 0) {
      std::memcpy(sums, added, static_cast<size_t>(head_size) * sizeof(float));
      state.maxima[r] = part.maxima[r];
      state.totals[r] = part.totals[r];
      continue;
    }
    const float max = part.maxima[r] > state.maxima[r] ? part.maxima[r] : state.maxima[r];
    const F old_factor = Exp<S>(S::Set(state.maxima[r] - max));
    const F new_factor = Exp<S>(S::Set(part.maxima[r] - max));
    for (int64_t d = 0; d < head_size; d += S::kLanes) {
      const F old_sum = S::Mul(S::Load(sums + d), old_factor);
      S::Store(sums + d, S::Fma(S::Load(added + d), new_factor, old_sum));
    }
    const F old_total = S::Mul(S::Set(state.totals[r]), old_factor);
    state.totals[r] = S::MaxLane(S::Fma(S::Set(part.totals[r]), new_factor, old_total));
    state.maxima[r] = max;
  }
}

template <typename S>
AttentionKernels MakeAttentionKernels() {
  return {S::kLanes, {Attend<S, false>, Attend<S, true>}, Merge<S>};
}

}  // namespace
}  // namespace mneme::kernels
