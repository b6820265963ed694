// The small transformer of the package open_namm, pre-norm, with learned positions; for its
// configurations and weights. In evaluation the package never applies NAMM inside it (and in
// training it fails at the first update), so NAMM is applied by the caller, to a cache
// (open_namm.h).
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/memory/open_namm.h"

namespace mneme::memory::open_namm {

struct TransformerConfig {
  int64_t vocab_size = 50257;
  int64_t max_seq_length = 2048;
  int64_t d_model = 768;
  int64_t n_heads = 12;
  int64_t n_layers = 12;
  int64_t d_ff = 3072;
  double dropout = 0.1;
  std::string activation = "gelu";  // exact; everything else is ReLU
  bool use_namm = true;
  std::optional<NAMMConfig> namm_config;  // none: the defaults with this d_model and n_heads
};

// Returns namm_config, or what stands for it.
NAMMConfig NammConfigOf(const TransformerConfig& config);

class MultiHeadAttention {
 public:
  // Weights "{q, k, v, o}_proj.{weight, bias}" after `prefix`.
  static absl::StatusOr<MultiHeadAttention> Create(const TransformerConfig& config,
                                                   const Weights& weights,
                                                   const std::string& prefix);
  struct Result {
    at::Tensor output;     // [B, S, d]
    at::Tensor key;        // [B, H, S, D]
    at::Tensor value;      // [B, H, S, D]
    at::Tensor attention;  // [B, S, S]: keys first, queries second, mean over the heads: for NAMM
  };
  // mask, where defined, takes the place of the causal one: 0 is hidden; broadcast to [B, H, S, S].
  Result Forward(const at::Tensor& x, const at::Tensor& mask) const;

 private:
  MultiHeadAttention() = default;

  int64_t num_heads_ = 1;
  at::Tensor weights_[4];  // q, k, v, o
  at::Tensor biases_[4];
};

class TransformerBlock {
 public:
  // Weights "attention.…", "norm1.…", "norm2.…", "ff.0.…", "ff.3.…" after `prefix`.
  static absl::StatusOr<TransformerBlock> Create(const TransformerConfig& config,
                                                 const Weights& weights, const std::string& prefix);
  // As MultiHeadAttention::Forward; `output` is the block's.
  MultiHeadAttention::Result Forward(const at::Tensor& x, const at::Tensor& mask) const;

 private:
  explicit TransformerBlock(MultiHeadAttention attention) : attention_(std::move(attention)) {}

  MultiHeadAttention attention_;
  bool is_gelu_ = true;
  at::Tensor norm1_weight_, norm1_bias_, norm2_weight_, norm2_bias_;
  at::Tensor up_weight_, up_bias_, down_weight_, down_bias_;
};

// Immutable, thread-safe.
class NAMMTransformer {
 public:
  // INVALID_ARGUMENT: sizes that don't fit, or a weight missing or of a wrong shape.
  static absl::StatusOr<NAMMTransformer> Create(const TransformerConfig& config,
                                                const Weights& weights);

  struct Result {
    at::Tensor logits;                               // [B, S, V]
    std::vector<MultiHeadAttention::Result> layers;  // what a NAMM per layer takes
  };
  // ids int64 [B, S], each in [0, V). INVALID_ARGUMENT: longer than max_seq_length, or ids out of
  // range.
  absl::StatusOr<Result> Forward(const at::Tensor& ids, const at::Tensor& mask = {}) const;

 private:
  NAMMTransformer() = default;

  TransformerConfig config_;
  at::Tensor embedding_;  // [V, d]
  at::Tensor positions_;  // [1, P, d]
  std::vector<TransformerBlock> blocks_;
  at::Tensor norm_weight_, norm_bias_;
  at::Tensor output_weight_, output_bias_;
};

}  // namespace mneme::memory::open_namm
