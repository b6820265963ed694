// The network that scores cached tokens: a backward attention memory (BAM), in which a token looks
// at itself and at younger ones, and a linear layer (NAMM specification, section 4). A few thousand
// parameters serve all layers and heads of any model.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace mneme::memory {

enum class BamMask {
  kBackward,  // a token sees itself and younger ones
  kForward,   // itself and older ones
  kNone,
};

struct BamOptions {
  int64_t input_size = 25;   // I
  int64_t hidden_size = 32;  // h, of the attention
  int64_t num_heads = 1;     // of the attention; h is cut into equal slices
  BamMask mask = BamMask::kBackward;
  bool attention_bias = true;
  bool scorer_bias = true;
  // How the attention's output y joins x: x (1 + mu) + rho with both, x + y or x (1 + y) with one.
  bool is_residual = true;
  bool is_multiplicative = true;
  // Rotates queries and keys to the tokens' absolute positions.
  bool use_rotary = false;
  double rope_theta = 50000;

  // O: numbers that the attention block gives per token.
  int64_t output_size() const {
    return is_residual && is_multiplicative ? 2 * input_size : input_size;
  }
};

// Immutable, thread-safe. A token's score does not depend, to the last bit, on the number of
// threads.
class BamNetwork {
 public:
  // `parameters` in the order W1 [I, 3h], b1 [3h], W2 [h, O], b2 [O], w3 [I], b3 [1], row-major; an
  // absent bias takes no room. INVALID_ARGUMENT: sizes below 1, h no multiple of the heads (of
  // twice the heads with rotary), neither residual nor multiplicative, or another number of
  // parameters.
  static absl::StatusOr<BamNetwork> Create(const BamOptions& options,
                                           absl::Span<const float> parameters);
  // How many parameters such a network has.
  static int64_t NumParameters(const BamOptions& options);

  const BamOptions& options() const { return options_; }
  absl::Span<const float> parameters() const { return parameters_; }

  // Returns scores, float32 [H, K], of the tokens of H heads, oldest first, each head for itself.
  //   features   float32 [H, K, I], contiguous
  //   positions  int64 [H, K], absolute; read with rotary only
  //   valid      uint8 [K] or undefined: 0 is padding, which nobody looks at
  //   block_output  unless null takes y, float32 [H, K, O]
  at::Tensor Score(const at::Tensor& features, const at::Tensor& positions = {},
                   const at::Tensor& valid = {}, at::Tensor* block_output = nullptr) const;

 private:
  BamNetwork(const BamOptions& options, absl::Span<const float> parameters);

  // y [rows, out] = x [rows, in] weight [in, out] + bias [out] (none: null).
  static at::Tensor Linear(const at::Tensor& x, const float* weight, const float* bias,
                           int64_t out_size);
  // Both return [H, K, h] of q, k, v float32 [H, K, heads, h / heads].
  at::Tensor AttendCausally(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) const;
  at::Tensor AttendMasked(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                          const at::Tensor& valid) const;

  BamOptions options_;
  std::vector<float> parameters_;
  int64_t qkv_bias_ = 0;  // offsets into parameters_
  int64_t output_weight_ = 0;
  int64_t output_bias_ = 0;
  int64_t scorer_weight_ = 0;
};

// The age of a token as numbers: sines, then cosines, of it at dim / 2 frequencies, max_frequency ^
// -(k / (dim / 2)).
class RecencyEmbedding {
 public:
  // INVALID_ARGUMENT: dim not even or below 2, max_frequency not above 0.
  static absl::StatusOr<RecencyEmbedding> Create(int64_t dim, double max_frequency);

  int64_t dim() const { return 2 * static_cast<int64_t>(frequencies_.size()); }
  // `recency`: positions between the newest token and this one, plus where counting starts.
  void Embed(int64_t recency, float* embedding) const;

 private:
  std::vector<double> frequencies_;
};

}  // namespace mneme::memory
