#include "common/memory/open_namm_transformer.h"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>

#include <cmath>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/memory/open_namm_weights.h"
#include "common/model/torch_status.h"
#include "common/status/annotate.h"
#include "common/status/status_macros.h"

namespace mneme::memory::open_namm {
namespace {

constexpr double kNormEpsilon = 1e-5;

at::Tensor Norm(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  return at::layer_norm(x, {x.size(-1)}, weight, bias, kNormEpsilon);
}

}  // namespace

NAMMConfig NammConfigOf(const TransformerConfig& config) {
  if (config.namm_config.has_value()) return *config.namm_config;
  NAMMConfig namm;
  namm.d_model = config.d_model;
  namm.n_head = config.n_heads;
  return namm;
}

absl::StatusOr<MultiHeadAttention> MultiHeadAttention::Create(const TransformerConfig& config,
                                                              const Weights& weights,
                                                              const std::string& prefix) {
  MultiHeadAttention attention;
  attention.num_heads_ = config.n_heads;
  const char* const names[] = {"q_proj", "k_proj", "v_proj", "o_proj"};
  for (int i = 0; i < 4; ++i) {
    const std::string name = prefix + names[i];
    ASSIGN_OR_RETURN(attention.weights_[i],
                     FindWeight(weights, name + ".weight", {config.d_model, config.d_model}));
    ASSIGN_OR_RETURN(attention.biases_[i], FindWeight(weights, name + ".bias", {config.d_model}));
  }
  return attention;
}

MultiHeadAttention::Result MultiHeadAttention::Forward(const at::Tensor& x,
                                                       const at::Tensor& mask) const {
  const int64_t batch = x.size(0);
  const int64_t tokens = x.size(1);
  const int64_t width = x.size(2);
  const auto heads = [&](int i) {
    return at::linear(x, weights_[i], biases_[i])
        .view({batch, tokens, num_heads_, width / num_heads_})
        .transpose(1, 2);
  };
  Result result;
  result.key = heads(1);
  result.value = heads(2);
  const double scale = 1 / std::sqrt(static_cast<double>(width / num_heads_));
  const at::Tensor hidden =
      mask.defined() ? mask == 0 : at::triu(at::ones({tokens, tokens}, at::kBool), 1);
  const at::Tensor scores = at::matmul(heads(0), result.key.transpose(-2, -1)) * scale;
  const at::Tensor weights =
      at::softmax(scores.masked_fill(hidden, -std::numeric_limits<float>::infinity()), -1);
  const at::Tensor attended =
      at::matmul(weights, result.value).transpose(1, 2).reshape({batch, tokens, width});
  result.output = at::linear(attended, weights_[3], biases_[3]);
  result.attention = weights.mean(1).transpose(1, 2);
  return result;
}

absl::StatusOr<TransformerBlock> TransformerBlock::Create(const TransformerConfig& config,
                                                          const Weights& weights,
                                                          const std::string& prefix) {
  const int64_t d = config.d_model;
  ASSIGN_OR_RETURN(MultiHeadAttention attention,
                   MultiHeadAttention::Create(config, weights, prefix + "attention."));
  TransformerBlock block(std::move(attention));
  block.is_gelu_ = config.activation == "gelu";
  ASSIGN_OR_RETURN(block.norm1_weight_, FindWeight(weights, prefix + "norm1.weight", {d}));
  ASSIGN_OR_RETURN(block.norm1_bias_, FindWeight(weights, prefix + "norm1.bias", {d}));
  ASSIGN_OR_RETURN(block.norm2_weight_, FindWeight(weights, prefix + "norm2.weight", {d}));
  ASSIGN_OR_RETURN(block.norm2_bias_, FindWeight(weights, prefix + "norm2.bias", {d}));
  ASSIGN_OR_RETURN(block.up_weight_, FindWeight(weights, prefix + "ff.0.weight", {config.d_ff, d}));
  ASSIGN_OR_RETURN(block.up_bias_, FindWeight(weights, prefix + "ff.0.bias", {config.d_ff}));
  ASSIGN_OR_RETURN(block.down_weight_,
                   FindWeight(weights, prefix + "ff.3.weight", {d, config.d_ff}));
  ASSIGN_OR_RETURN(block.down_bias_, FindWeight(weights, prefix + "ff.3.bias", {d}));
  return block;
}

MultiHeadAttention::Result TransformerBlock::Forward(const at::Tensor& x,
                                                     const at::Tensor& mask) const {
  MultiHeadAttention::Result result = attention_.Forward(Norm(x, norm1_weight_, norm1_bias_), mask);
  const at::Tensor attended = x + result.output;
  const at::Tensor up =
      at::linear(Norm(attended, norm2_weight_, norm2_bias_), up_weight_, up_bias_);
  result.output =
      attended + at::linear(is_gelu_ ? at::gelu(up) : at::relu(up), down_weight_, down_bias_);
  return result;
}

absl::StatusOr<NAMMTransformer> NAMMTransformer::Create(const TransformerConfig& config,
                                                        const Weights& weights) {
  if (config.n_heads < 1 || config.d_model < 1 || config.d_model % config.n_heads != 0) {
    return status::InvalidField(
        "n_heads",
        absl::StrCat("d_model must be a multiple of it: ", config.d_model, " of ", config.n_heads));
  }
  const int64_t d = config.d_model;
  NAMMTransformer model;
  model.config_ = config;
  ASSIGN_OR_RETURN(model.embedding_,
                   FindWeight(weights, "token_embedding.weight", {config.vocab_size, d}));
  ASSIGN_OR_RETURN(model.positions_,
                   FindWeight(weights, "pos_embedding", {1, config.max_seq_length, d}));
  for (int64_t layer = 0; layer < config.n_layers; ++layer) {
    ASSIGN_OR_RETURN(
        TransformerBlock block,
        TransformerBlock::Create(config, weights, absl::StrCat("blocks.", layer, ".")));
    model.blocks_.push_back(std::move(block));
  }
  ASSIGN_OR_RETURN(model.norm_weight_, FindWeight(weights, "norm.weight", {d}));
  ASSIGN_OR_RETURN(model.norm_bias_, FindWeight(weights, "norm.bias", {d}));
  ASSIGN_OR_RETURN(model.output_weight_,
                   FindWeight(weights, "output.weight", {config.vocab_size, d}));
  ASSIGN_OR_RETURN(model.output_bias_, FindWeight(weights, "output.bias", {config.vocab_size}));
  return model;
}

absl::StatusOr<NAMMTransformer::Result> NAMMTransformer::Forward(const at::Tensor& ids,
                                                                 const at::Tensor& mask) const {
  if (ids.dim() != 2 || ids.size(1) > config_.max_seq_length) {
    return absl::InvalidArgumentError(
        absl::StrCat("needs ids [B, S] of at most ", config_.max_seq_length, " tokens"));
  }
  return CatchTorch("open_namm transformer", [&] {
    Result result;
    at::Tensor x = at::embedding(embedding_, ids) + positions_.narrow(1, 0, ids.size(1));
    for (const TransformerBlock& block : blocks_) {
      result.layers.push_back(block.Forward(x, mask));
      x = result.layers.back().output;
    }
    result.logits = at::linear(Norm(x, norm_weight_, norm_bias_), output_weight_, output_bias_);
    return result;
  });
}

}  // namespace mneme::memory::open_namm
