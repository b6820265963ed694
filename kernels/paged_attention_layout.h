// The layout of a key/value page; see paged_attention.h.
#pragma once

#include <cstdint>

namespace mneme::kernels {

inline constexpr int64_t kPageEntries = 16;

// Entries that are reduced together, before splits are combined in order: a multiple of
// kPageEntries.
inline constexpr int64_t kSplitEntries = 128;

// Returns the elements of a page: 2 * kPageEntries * head_size.
inline constexpr int64_t PageElements(int64_t head_size) { return 2 * kPageEntries * head_size; }

}  // namespace mneme::kernels
