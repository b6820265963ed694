#include "common/memory/open_namm.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Functions.h>
#include <ATen/TensorIndexing.h>
#include <ATen/TensorOperators.h>

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/memory/open_namm_weights.h"
#include "common/model/torch_status.h"
#include "common/status/annotate.h"
#include "common/status/status_macros.h"

namespace mneme::memory::open_namm {
namespace {

constexpr int64_t kMaxPositions = 1024;

int64_t FramesOf(const NAMMConfig& config, int64_t num_queries) {
  return 1 + num_queries / config.stride_size;
}

absl::Status CheckConfig(const NAMMConfig& config, int64_t num_queries) {
  if (config.update_interval < 1) {
    return status::InvalidField("update_interval",
                                absl::StrCat("must be at least 1: ", config.update_interval));
  }
  if (config.window_size < 2 || config.stride_size < 1) {
    return status::InvalidField("window_size", "needs at least 2 samples, and a stride of 1");
  }
  if (config.n_head < 1 || config.d_model < 1 || config.d_model % config.n_head != 0) {
    return status::InvalidField(
        "n_head",
        absl::StrCat("d_model must be a multiple of it: ", config.d_model, " of ", config.n_head));
  }
  if (num_queries <= config.window_size / 2) {
    return status::InvalidField(
        "num_queries", absl::StrCat("must be above half of window_size, to reflect the signal at "
                                    "its ends: ",
                                    num_queries));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<BackwardAttentionMemory> BackwardAttentionMemory::Create(const NAMMConfig& config,
                                                                        Mask mask,
                                                                        const Weights& weights,
                                                                        const std::string& prefix) {
  const int64_t d = config.d_model;
  BackwardAttentionMemory memory;
  memory.num_heads_ = config.n_head;
  memory.mask_ = mask;
  ASSIGN_OR_RETURN(memory.positions_, FindWeight(weights, prefix + "pos_embedding", {1, -1, d}));
  const std::string attention = prefix + "self_attention.";
  ASSIGN_OR_RETURN(memory.in_weight_,
                   FindWeight(weights, attention + "in_proj_weight", {3 * d, d}));
  ASSIGN_OR_RETURN(memory.in_bias_, FindWeight(weights, attention + "in_proj_bias", {3 * d}));
  ASSIGN_OR_RETURN(memory.out_weight_, FindWeight(weights, attention + "out_proj.weight", {d, d}));
  ASSIGN_OR_RETURN(memory.out_bias_, FindWeight(weights, attention + "out_proj.bias", {d}));
  ASSIGN_OR_RETURN(memory.score_weight_, FindWeight(weights, prefix + "score_proj.weight", {1, d}));
  ASSIGN_OR_RETURN(memory.score_bias_, FindWeight(weights, prefix + "score_proj.bias", {1}));
  return memory;
}

absl::StatusOr<at::Tensor> BackwardAttentionMemory::Score(const at::Tensor& features) const {
  const int64_t batch = features.size(0);
  const int64_t tokens = features.size(1);
  const int64_t width = features.size(2);
  if (tokens > positions_.size(1)) {
    return absl::InvalidArgumentError(absl::StrCat("there are positions for ", positions_.size(1),
                                                   " tokens, the cache has ", tokens));
  }
  return CatchTorch("scoring the cache", [&] {
    const at::Tensor x = features + positions_.narrow(1, 0, tokens);
    const at::Tensor qkv = at::linear(x, in_weight_, in_bias_)
                               .view({batch, tokens, 3, num_heads_, width / num_heads_})
                               .permute({2, 0, 3, 1, 4});  // [3, B, H, S, D]
    const double scale = 1 / std::sqrt(static_cast<double>(width / num_heads_));
    const at::Tensor scores = at::matmul(qkv[0] * scale, qkv[1].transpose(-2, -1));
    const at::Tensor ones = at::ones({tokens, tokens}, at::kBool);
    const at::Tensor hidden = mask_ == Mask::kBackward ? at::tril(ones, -1) : at::triu(ones, 1);
    const at::Tensor weights =
        at::softmax(scores.masked_fill(hidden, -std::numeric_limits<float>::infinity()), -1);
    const at::Tensor attended =
        at::matmul(weights, qkv[2]).transpose(1, 2).reshape({batch, tokens, width});
    return at::linear(at::linear(attended, out_weight_, out_bias_), score_weight_, score_bias_)
        .squeeze(-1);
  });
}

absl::StatusOr<NAMM> NAMM::Create(const NAMMConfig& config, const NAMMOptions& options,
                                  const Weights& weights) {
  RETURN_IF_ERROR(CheckConfig(config, options.num_queries));
  ASSIGN_OR_RETURN(BackwardAttentionMemory memory,
                   BackwardAttentionMemory::Create(config, options.mask, weights, "bam."));
  NAMM namm(config, options, std::move(memory));
  const int64_t inputs = (config.window_size / 2 + 1) * FramesOf(config, options.num_queries);
  ASSIGN_OR_RETURN(namm.projection_,
                   FindWeight(weights, "feature_proj.weight", {config.d_model, inputs}));
  ASSIGN_OR_RETURN(namm.projection_bias_,
                   FindWeight(weights, "feature_proj.bias", {config.d_model}));
  namm.window_ = at::hann_window(config.window_size, /*periodic=*/true, at::kFloat);
  return namm;
}

at::Tensor NAMM::PastFor(int64_t num_tokens) const {
  if (!past_.defined() || past_.size(1) == num_tokens) return past_;
  if (options_.ema == Ema::kGathered) {
    // Tokens that came since the last update have no past.
    const int64_t common = std::min(past_.size(1), num_tokens);
    return at::constant_pad_nd(past_.narrow(1, 0, common), {0, 0, 0, num_tokens - common});
  }
  return at::upsample_linear1d(past_.transpose(1, 2), {num_tokens}, /*align_corners=*/false)
      .transpose(1, 2);
}

absl::StatusOr<NAMM::Result> NAMM::Forward(const Cache& cache, const at::Tensor& attention) {
  ++num_calls_;
  Result result{.cache = cache};
  if (num_calls_ % config_.update_interval != 0) return result;
  const at::Tensor& key = cache.key;
  if (key.dim() != 3 || cache.value.sizes() != key.sizes() || attention.dim() != 3 ||
      attention.size(0) != key.size(0) || attention.size(1) != key.size(1) || key.size(1) == 0) {
    return absl::InvalidArgumentError(
        "needs keys and values [B, S, d] with S > 0 and attention [B, S, Q]");
  }
  if (attention.size(2) != options_.num_queries) {
    return absl::InvalidArgumentError(absl::StrCat("the projection was made for ",
                                                   options_.num_queries,
                                                   " queries, given: ", attention.size(2)));
  }
  const int64_t batch = key.size(0);
  const int64_t tokens = key.size(1);
  if (past_.defined() && past_.size(0) != batch) {
    return absl::InvalidArgumentError(
        absl::StrCat("the batch had ", past_.size(0), " rows before, given: ", batch));
  }
  RETURN_IF_ERROR(CatchTorch("features of the cache", [&] {
    result.magnitudes = at::abs(at::stft(
        attention.reshape({batch * tokens, options_.num_queries}).to(at::kFloat),
        config_.window_size, config_.stride_size, config_.window_size, window_, /*center=*/true,
        "reflect", /*normalized=*/false, /*onesided=*/true, /*return_complex=*/true));
    result.features =
        at::linear(result.magnitudes.reshape({batch, tokens, -1}), projection_, projection_bias_);
    const at::Tensor past = PastFor(tokens);
    result.reduced =
        past.defined() ? result.features + config_.gamma * past : result.features.clone();
  }));
  ASSIGN_OR_RETURN(result.scores, memory_.Score(result.reduced));
  RETURN_IF_ERROR(CatchTorch("dropping tokens", [&] {
    const at::Tensor keep = result.scores > 0;
    result.counts = keep.sum(1);
    const int64_t most = result.counts.max().item<int64_t>();
    const auto gather = [&](const at::Tensor& rows) {
      at::Tensor kept = at::zeros({batch, most, rows.size(2)}, rows.options());
      for (int64_t b = 0; b < batch; ++b) {
        const at::Tensor indices = at::nonzero(keep[b]).squeeze(1);
        kept[b].narrow(0, 0, indices.size(0)).copy_(rows[b].index_select(0, indices));
      }
      return kept;
    };
    result.cache = {.key = gather(cache.key), .value = gather(cache.value)};
    past_ = options_.ema == Ema::kGathered ? gather(result.reduced) : result.reduced;
  }));
  return result;
}

absl::StatusOr<std::optional<NAMM::Retention>> NAMM::EvaluateRetention(
    const Cache& cache, const at::Tensor& attention) {
  ASSIGN_OR_RETURN(const Result result, Forward(cache, attention));
  if (!result.scores.defined()) return std::nullopt;
  const at::Tensor& scores = result.scores;
  return Retention{.retention_rate = (scores > 0).to(at::kFloat).mean().item<double>(),
                   .mean_score = scores.mean().item<double>(),
                   .score_std = scores.std().item<double>(),
                   .min_score = scores.min().item<double>(),
                   .max_score = scores.max().item<double>()};
}

Weights InitialWeights(const NAMMConfig& config, int64_t num_queries, uint64_t seed) {
  const int64_t d = config.d_model;
  const int64_t inputs = (config.window_size / 2 + 1) * FramesOf(config, num_queries);
  at::Generator random = at::make_generator<at::CPUGeneratorImpl>(seed);
  const auto uniform = [&](at::IntArrayRef shape, double bound) {
    return at::empty(shape, at::kFloat).uniform_(-bound, bound, random);
  };
  // Linear layers: uniform within 1 / sqrt(inputs); the packed projection: Glorot and Bengio 2010.
  const double bound = 1 / std::sqrt(static_cast<double>(d));
  const double feature_bound = 1 / std::sqrt(static_cast<double>(inputs));
  Weights weights;
  weights["bam.pos_embedding"] = at::empty({1, kMaxPositions, d}, at::kFloat).normal_(0, 1, random);
  weights["bam.self_attention.in_proj_weight"] =
      uniform({3 * d, d}, std::sqrt(6.0 / static_cast<double>(4 * d)));
  weights["bam.self_attention.in_proj_bias"] = at::zeros({3 * d}, at::kFloat);
  weights["bam.self_attention.out_proj.weight"] = uniform({d, d}, bound);
  weights["bam.self_attention.out_proj.bias"] = at::zeros({d}, at::kFloat);
  weights["bam.score_proj.weight"] = uniform({1, d}, bound);
  weights["bam.score_proj.bias"] = uniform({1}, bound);
  weights["feature_proj.weight"] = uniform({d, inputs}, feature_bound);
  weights["feature_proj.bias"] = uniform({d}, feature_bound);
  return weights;
}

absl::StatusOr<NAMM> create_namm(const NAMMConfig& config, const NAMMOptions& options,
                                 uint64_t seed) {
  RETURN_IF_ERROR(CheckConfig(config, options.num_queries));
  return NAMM::Create(config, options, InitialWeights(config, options.num_queries, seed));
}

}  // namespace mneme::memory::open_namm
