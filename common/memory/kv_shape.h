// What a model's key/value memory looks like, and which earlier entries a query sees.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace mneme::memory {

// The shape of one sequence's memory: an entry (K and V of one token) per layer and kv head.
struct KvShape {
  int64_t num_layers = 0;
  int64_t num_kv_heads = 0;
  int64_t head_size = 0;  // D
  // The model's own sliding window per layer (Mistral, Qwen2): how many latest entries a query
  // sees, itself included; 0: all. Empty: no layer has one.
  std::vector<int64_t> sliding_windows;

  int64_t num_heads() const { return num_layers * num_kv_heads; }  // of all layers together
  bool has_sliding_windows() const {
    return std::any_of(sliding_windows.begin(), sliding_windows.end(),
                       [](int64_t window) { return window > 0; });
  }
  int64_t sliding_window(int64_t layer) const {
    return sliding_windows.empty() ? 0 : sliding_windows[layer];
  }
};

// The entries that query i sees: j <= i with j < sinks or j > i - window.
struct AttentionMask {
  int64_t window = 0;  // 0: all
  int64_t sinks = 0;   // 0 where window is 0

  bool operator==(const AttentionMask&) const = default;
};

// Returns the mask of a layer whose model window is `sliding_window` (0: none): the narrower
// window; a policy's sinks stay visible beyond the model's window.
inline AttentionMask MaskOfLayer(const AttentionMask& policy, int64_t sliding_window) {
  if (sliding_window == 0) return policy;
  if (policy.window == 0) return {.window = sliding_window, .sinks = 0};
  return {.window = std::min(policy.window, sliding_window), .sinks = policy.sinks};
}

}  // namespace mneme::memory
