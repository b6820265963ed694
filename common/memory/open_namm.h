// NAMM in the form of the package open_namm (MIT): the same idea with other features and another
// life cycle, for users of that interface. Names, fields and defaults are the package's. Inference
// only: dropout is kept in the configuration and never applied.
//
// Where the package's behaviour differs from what it documents, an option chooses; the other
// differences are that the projection exists from the start (the package makes it at the first
// update) and that the number of kept tokens is returned with the padded cache.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace mneme::memory::open_namm {

// Tensors under the package's names, "bam.score_proj.weight".
using Weights = absl::flat_hash_map<std::string, at::Tensor>;

struct NAMMConfig {
  int64_t update_interval = 512;  // calls between two updates
  int64_t stride_size = 32;       // hop of the transform
  int64_t window_size = 128;      // its size
  int64_t n_head = 4;
  int64_t d_model = 256;
  double gamma = 0.95;
  double dropout = 0.1;
};

enum class Mask {
  kBackward,      // a token sees itself and younger ones: what the package documents
  kCausalCompat,  // itself and older ones: what it does
};

enum class Ema {
  kGathered,        // a token's average goes with it when others are dropped
  kAdditiveCompat,  // averages stay where they are and are stretched to the new number of tokens
};

struct NAMMOptions {
  Mask mask = Mask::kBackward;
  Ema ema = Ema::kGathered;
  int64_t num_queries = 512;  // Q of every attention matrix: the projection's width follows
};

// The network that scores: learned positions, attention, a linear layer.
class BackwardAttentionMemory {
 public:
  // Weights "pos_embedding" [1, P, d], "self_attention.{in_proj_weight, in_proj_bias,
  // out_proj.weight, out_proj.bias}", "score_proj.{weight, bias}", each after `prefix`.
  // INVALID_ARGUMENT: one is missing or of a wrong shape, or d_model is no multiple of n_head.
  static absl::StatusOr<BackwardAttentionMemory> Create(const NAMMConfig& config, Mask mask,
                                                        const Weights& weights,
                                                        const std::string& prefix);
  // features [B, S, d] to scores [B, S]. INVALID_ARGUMENT: more tokens than positions.
  absl::StatusOr<at::Tensor> Score(const at::Tensor& features) const;

 private:
  BackwardAttentionMemory() = default;

  int64_t num_heads_ = 1;
  Mask mask_ = Mask::kBackward;
  at::Tensor positions_;  // [1, P, d]
  at::Tensor in_weight_;  // [3d, d]
  at::Tensor in_bias_;
  at::Tensor out_weight_;  // [d, d]
  at::Tensor out_bias_;
  at::Tensor score_weight_;  // [1, d]
  at::Tensor score_bias_;
};

// One cache and what NAMM remembers of it. Not thread-safe.
class NAMM {
 public:
  // `weights`: those of BackwardAttentionMemory after "bam.", and "feature_proj.{weight, bias}".
  // INVALID_ARGUMENT: a value out of range, a weight missing or of a wrong shape.
  static absl::StatusOr<NAMM> Create(const NAMMConfig& config, const NAMMOptions& options,
                                     const Weights& weights);

  struct Cache {
    at::Tensor key;    // [B, S, d]
    at::Tensor value;  // [B, S, d]
  };
  struct Result {
    Cache cache;        // kept rows first, zeros behind, to the longest row
    at::Tensor counts;  // int64 [B]: kept tokens of each row; undefined without an update
    at::Tensor scores;  // [B, S]; undefined without an update
    // The steps of an update, undefined without one.
    at::Tensor magnitudes;  // [B * S, F, T]
    at::Tensor features;    // [B, S, d], projected
    at::Tensor reduced;     // [B, S, d], with the past
  };
  // Counts the call; at every update_interval-th one drops the tokens whose score is not above 0.
  // attention [B, S, Q]: tokens first. INVALID_ARGUMENT: shapes that don't fit, or an empty cache
  // at an update. On an error the call counts, nothing else has changed.
  absl::StatusOr<Result> Forward(const Cache& cache, const at::Tensor& attention);

  struct Retention {
    double retention_rate = 0;  // mean of score > 0
    double mean_score = 0;
    double score_std = 0;  // unbiased
    double min_score = 0;
    double max_score = 0;
  };
  // The statistics of a Forward call, which this is; none where that made no update.
  absl::StatusOr<std::optional<Retention>> EvaluateRetention(const Cache& cache,
                                                             const at::Tensor& attention);

  int64_t num_calls() const { return num_calls_; }
  const at::Tensor& past() const { return past_; }  // [B, S, d]; undefined before an update

 private:
  NAMM(const NAMMConfig& config, const NAMMOptions& options, BackwardAttentionMemory memory)
      : config_(config), options_(options), memory_(std::move(memory)) {}

  // `past_` for `num_tokens` tokens.
  at::Tensor PastFor(int64_t num_tokens) const;

  NAMMConfig config_;
  NAMMOptions options_;
  BackwardAttentionMemory memory_;
  at::Tensor projection_;  // [d, F * T]
  at::Tensor projection_bias_;
  at::Tensor window_;
  int64_t num_calls_ = 0;
  at::Tensor past_;
};

// Random weights as the package initialises them, for a NAMM of this configuration.
Weights InitialWeights(const NAMMConfig& config, int64_t num_queries, uint64_t seed);

// The package's factories: the default configuration with some fields overwritten.
absl::StatusOr<NAMM> create_namm(const NAMMConfig& config, const NAMMOptions& options,
                                 uint64_t seed);

}  // namespace mneme::memory::open_namm
