// What NAMM remembers of the tokens of one layer besides their entries: the moving average of each
// token's spectrogram and its latest samples. Streaming: no matrix of all queries and keys exists.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "common/memory/namm_model.h"
#include "common/memory/namm_selection.h"
#include "common/memory/namm_spectrogram.h"
#include "common/memory/namm_statistics.h"

namespace mneme::memory {

// Copyable; copies share nothing. Not thread-safe.
class NammLayer {
 public:
  // `num_heads`: kv heads. `spectrogram` must outlive the layer.
  NammLayer(const Spectrogram* spectrogram, int64_t num_heads)
      : spectrogram_(spectrogram), num_heads_(num_heads) {}
  NammLayer(const NammLayer& other);
  NammLayer& operator=(const NammLayer& other) = delete;
  NammLayer(NammLayer&&) = default;
  NammLayer& operator=(NammLayer&&) = default;

  // Tokens, the same number in every head.
  int64_t num_tokens() const { return num_tokens_; }
  // Queries observed since the last frame.
  int64_t pending() const { return pending_; }
  int64_t num_bytes() const;

  // Takes the attention that the tokens receive from further queries, averaged over the query heads
  // of a kv head: weights float32 [H, n, K], contiguous. K may be larger than before: new tokens
  // begin with zeros. The result does not depend on how queries are cut into calls.
  void Observe(const at::Tensor& weights);

  // What an update sees. The fields have one row per token, [H, K, …].
  struct Evaluation {
    at::Tensor ema;       // [H, K, F], before normalisation; a view, valid until the next Observe
    at::Tensor features;  // [H, K, E + F]
    at::Tensor scores;    // [H, K]
    Selection selection;
  };
  // Scores the tokens and selects. positions int64 [H, K]. `running` is normalised with, and
  // measures first where the model has no frozen statistics. valid uint8 [K] or undefined: 0 is
  // padding. The layer stays as it is.
  Evaluation Evaluate(const NammModel& model, const at::Tensor& positions,
                      RunningStatistics* running, const at::Tensor& valid = {}) const;

  // Keeps the tokens `kept` [H][K'] of each head, ascending.
  void Keep(absl::Span<const std::vector<int64_t>> kept);

  at::Tensor ema() const;  // [H, K, F], a view
  // The last carry() samples that were consumed, [H, K, N - hop], then the pending ones.
  at::Tensor samples() const;  // [H, K, N - hop + pending], a view

  // The state as bytes, exact; Restore takes it back into a fresh layer. INVALID_ARGUMENT: not such
  // bytes.
  void Serialise(std::string* bytes) const;
  absl::Status Restore(absl::string_view* bytes);

 private:
  void Grow(int64_t num_tokens);
  // Turns the pending samples of all tokens into a frame.
  void ConsumeFrame();

  const Spectrogram* spectrogram_;
  int64_t num_heads_;
  int64_t num_tokens_ = 0;
  int64_t pending_ = 0;
  at::Tensor ema_;      // [H, capacity, F]
  at::Tensor samples_;  // [H, capacity, N]: the last N - hop, then the pending ones
};

}  // namespace mneme::memory
