// What a policy decides after a step: which entries stay.
#pragma once

#include <cstdint>
#include <vector>

namespace mneme::memory {

// Entries [begin, end) of all heads of a layer that no later query sees. Pages wholly inside are
// given back; the other entries keep their indices.
struct ForgottenRange {
  int64_t layer = 0;
  int64_t begin = 0;
  int64_t end = 0;
};

// The entries of one (layer, kv head) that stay, by ascending index; they move together to
// 0, 1, 2, … and the rest is forgotten.
struct KeptEntries {
  int64_t layer = 0;
  int64_t head = 0;
  std::vector<int64_t> indices;
};

// Nothing is mentioned: everything stays.
struct Retention {
  std::vector<ForgottenRange> forgotten;
  std::vector<KeptEntries> kept;
};

}  // namespace mneme::memory
