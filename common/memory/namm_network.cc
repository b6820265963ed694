#include "common/memory/namm_network.h"

#include <ATen/Functions.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status/annotate.h"
#include "kernels/paged_attention.h"
#include "kernels/parallel.h"

namespace mneme::memory {
namespace {

constexpr int64_t kRowsPerTask = 64;

// Rotates x [H, K, heads, d] to the positions, half-split (Su et al. 2021).
void Rotate(const at::Tensor& positions, double theta, at::Tensor& x) {
  const int64_t half = x.size(3) / 2;
  std::vector<double> frequencies;
  for (int64_t i = 0; i < half; ++i) {
    frequencies.push_back(std::pow(theta, -static_cast<double>(i) / static_cast<double>(half)));
  }
  float* row = x.data_ptr<float>();
  const int64_t* position = positions.const_data_ptr<int64_t>();
  for (int64_t token = 0; token < x.size(0) * x.size(1); ++token) {
    for (int64_t head = 0; head < x.size(2); ++head, row += 2 * half) {
      for (int64_t i = 0; i < half; ++i) {
        const double angle = static_cast<double>(position[token]) * frequencies[i];
        const auto cosine = static_cast<float>(std::cos(angle));
        const auto sine = static_cast<float>(std::sin(angle));
        const float a = row[i];
        const float b = row[i + half];
        row[i] = a * cosine - b * sine;
        row[i + half] = b * cosine + a * sine;
      }
    }
  }
}

}  // namespace

int64_t BamNetwork::NumParameters(const BamOptions& options) {
  const int64_t attention =
      options.input_size * 3 * options.hidden_size + options.hidden_size * options.output_size();
  const int64_t biases = 3 * options.hidden_size + options.output_size();
  return attention + (options.attention_bias ? biases : 0) + options.input_size +
         (options.scorer_bias ? 1 : 0);
}

absl::StatusOr<BamNetwork> BamNetwork::Create(const BamOptions& options,
                                              absl::Span<const float> parameters) {
  constexpr int64_t kMaxSize = 4096;
  if (options.input_size < 1 || options.input_size > kMaxSize || options.hidden_size < 1 ||
      options.hidden_size > kMaxSize) {
    return status::InvalidField(
        "attn_hidden", absl::StrCat("sizes must be from 1 to ", kMaxSize, ": ", options.input_size,
                                    ", ", options.hidden_size));
  }
  const int64_t unit = options.num_heads * (options.use_rotary ? 2 : 1);
  if (options.num_heads < 1 || options.hidden_size % unit != 0 ||
      options.hidden_size / options.num_heads > 256) {
    return status::InvalidField(
        "num_heads", absl::StrCat("the hidden size ", options.hidden_size,
                                  " cannot be cut into heads of at most 256: ", options.num_heads));
  }
  if (!options.is_residual && !options.is_multiplicative) {
    return status::InvalidField("residual", "the output must join residually, by product, or both");
  }
  const int64_t expected = NumParameters(options);
  if (static_cast<int64_t>(parameters.size()) != expected) {
    return absl::InvalidArgumentError(absl::StrCat("the scoring network has ", expected,
                                                   " parameters, given: ", parameters.size()));
  }
  for (const float value : parameters) {
    if (!std::isfinite(value)) {
      return absl::InvalidArgumentError("a parameter of the scoring network is not finite");
    }
  }
  return BamNetwork(options, parameters);
}

BamNetwork::BamNetwork(const BamOptions& options, absl::Span<const float> parameters)
    : options_(options), parameters_(parameters.begin(), parameters.end()) {
  qkv_bias_ = options.input_size * 3 * options.hidden_size;
  output_weight_ = qkv_bias_ + (options.attention_bias ? 3 * options.hidden_size : 0);
  output_bias_ = output_weight_ + options.hidden_size * options.output_size();
  scorer_weight_ = output_bias_ + (options.attention_bias ? options.output_size() : 0);
}

at::Tensor BamNetwork::Linear(const at::Tensor& x, const float* weight, const float* bias,
                              int64_t out_size) {
  const int64_t in_size = x.size(-1);
  const int64_t rows = x.numel() / in_size;
  std::vector<int64_t> shape(x.sizes().begin(), x.sizes().end());
  shape.back() = out_size;
  at::Tensor result = at::empty(shape, at::kFloat);
  const float* const input = x.const_data_ptr<float>();
  float* const output = result.data_ptr<float>();
  kernels::ParallelFor((rows + kRowsPerTask - 1) / kRowsPerTask, [&](int64_t task) {
    const int64_t end = std::min(rows, (task + 1) * kRowsPerTask);
    for (int64_t row = task * kRowsPerTask; row < end; ++row) {
      float* const y = output + row * out_size;
      for (int64_t o = 0; o < out_size; ++o) y[o] = bias == nullptr ? 0.0f : bias[o];
      for (int64_t i = 0; i < in_size; ++i) {
        const float value = input[row * in_size + i];
        const float* const w = weight + i * out_size;
        for (int64_t o = 0; o < out_size; ++o) y[o] += value * w[o];
      }
    }
  });
  return result;
}

// The kernel of the model's own attention is causal; with the tokens the other way round that is
// the backward mask.
at::Tensor BamNetwork::AttendCausally(const at::Tensor& q, const at::Tensor& k,
                                      const at::Tensor& v) const {
  const int64_t rows = q.size(0) * q.size(2);  // heads of the model times heads of the network
  const int64_t tokens = q.size(1);
  const int64_t width = q.size(3);
  const int64_t padded = (width + 7) / 8 * 8;
  const bool is_reversed = options_.mask == BamMask::kBackward;
  const auto arrange = [&](const at::Tensor& x) {
    const at::Tensor ordered = is_reversed ? x.flip(1) : x;
    return at::constant_pad_nd(ordered.permute({1, 0, 2, 3}).reshape({tokens, rows, width}),
                               {0, padded - width})
        .contiguous();
  };
  const int64_t pages = (tokens + kernels::kPageEntries - 1) / kernels::kPageEntries;
  const at::Tensor pool = at::empty({rows * pages, kernels::PageElements(padded)}, at::kFloat);
  const kernels::AttentionBatch batch{
      .seq_slot = at::zeros({1}, at::kInt),
      .query_start = at::tensor({int64_t{0}, tokens}, at::kInt),
      .page_table = at::arange(rows * pages, at::kInt).view({1, rows, pages}),
      .lengths = at::zeros({1, rows}, at::kInt)};
  kernels::KvWrite(arrange(k), arrange(v), batch, pool);
  const at::Tensor attended = at::empty({tokens, rows, padded}, at::kFloat);
  kernels::PagedAttentionOut(arrange(q), pool, batch, 1 / std::sqrt(static_cast<double>(width)),
                             attended);
  const at::Tensor back =
      attended.narrow(2, 0, width).reshape({tokens, q.size(0), q.size(2) * width}).transpose(0, 1);
  return (is_reversed ? back.flip(1) : back).contiguous();
}

at::Tensor BamNetwork::AttendMasked(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                    const at::Tensor& valid) const {
  const int64_t tokens = q.size(1);
  const int64_t heads = q.size(2);
  const int64_t width = q.size(3);
  const float scale = 1 / std::sqrt(static_cast<float>(width));
  const uint8_t* const is_valid = valid.defined() ? valid.const_data_ptr<uint8_t>() : nullptr;
  at::Tensor result = at::zeros({q.size(0), tokens, heads * width}, at::kFloat);
  float* const output = result.data_ptr<float>();
  const float* const queries = q.const_data_ptr<float>();
  const float* const keys = k.const_data_ptr<float>();
  const float* const values = v.const_data_ptr<float>();
  const int64_t stride = heads * width;
  const auto sees = [&](int64_t i, int64_t j) {
    if (is_valid != nullptr && is_valid[j] == 0) return false;
    return options_.mask == BamMask::kNone ||
           (options_.mask == BamMask::kBackward ? j >= i : j <= i);
  };
  kernels::ParallelFor(q.size(0) * tokens, [&](int64_t row) {
    const int64_t i = row % tokens;
    const int64_t first = (row - i) * stride;
    std::vector<float> weights(tokens);
    for (int64_t head = 0; head < heads; ++head) {
      const float* const query = queries + row * stride + head * width;
      float largest = -std::numeric_limits<float>::infinity();
      bool sees_any = false;
      for (int64_t j = 0; j < tokens; ++j) sees_any |= sees(i, j);
      for (int64_t j = 0; j < tokens; ++j) {
        // One that sees nothing (padding before the first token) looks at all alike.
        float score = sees_any ? -std::numeric_limits<float>::infinity() : 0.0f;
        if (sees(i, j)) {
          const float* const key = keys + first + j * stride + head * width;
          score = 0;
          for (int64_t d = 0; d < width; ++d) score += query[d] * key[d];
          score *= scale;
        }
        weights[j] = score;
        largest = std::max(largest, score);
      }
      float total = 0;
      for (float& weight : weights) {
        weight = std::exp(weight - largest);
        total += weight;
      }
      float* const y = output + row * stride + head * width;
      for (int64_t j = 0; j < tokens; ++j) {
        if (weights[j] == 0) continue;
        const float* const value = values + first + j * stride + head * width;
        for (int64_t d = 0; d < width; ++d) y[d] += weights[j] / total * value[d];
      }
    }
  });
  return result;
}

at::Tensor BamNetwork::Score(const at::Tensor& features, const at::Tensor& positions,
                             const at::Tensor& valid, at::Tensor* block_output) const {
  const int64_t heads = features.size(0);
  const int64_t tokens = features.size(1);
  const int64_t input_size = options_.input_size;
  const float* const parameters = parameters_.data();
  if (tokens == 0) return at::empty({heads, 0}, at::kFloat);

  const at::Tensor qkv =
      Linear(features, parameters, options_.attention_bias ? parameters + qkv_bias_ : nullptr,
             3 * options_.hidden_size);
  const auto part = [&](int64_t index) {
    return qkv.narrow(2, index * options_.hidden_size, options_.hidden_size)
        .contiguous()
        .view({heads, tokens, options_.num_heads, options_.hidden_size / options_.num_heads});
  };
  at::Tensor q = part(0);
  at::Tensor k = part(1);
  if (options_.use_rotary) {
    const at::Tensor absolute = positions.contiguous();
    Rotate(absolute, options_.rope_theta, q);
    Rotate(absolute, options_.rope_theta, k);
  }
  const bool is_causal = options_.mask != BamMask::kNone && !valid.defined();
  const at::Tensor attended =
      is_causal ? AttendCausally(q, k, part(2)) : AttendMasked(q, k, part(2), valid);
  const at::Tensor y =
      Linear(attended, parameters + output_weight_,
             options_.attention_bias ? parameters + output_bias_ : nullptr, options_.output_size());
  if (block_output != nullptr) *block_output = y;

  at::Tensor scores = at::empty({heads, tokens}, at::kFloat);
  float* const score = scores.data_ptr<float>();
  const float* const weight = parameters + scorer_weight_;
  const float* const x = features.const_data_ptr<float>();
  const float* const joined = y.const_data_ptr<float>();
  const int64_t output_size = options_.output_size();
  for (int64_t row = 0; row < heads * tokens; ++row) {
    float sum = options_.scorer_bias ? weight[input_size] : 0;
    for (int64_t i = 0; i < input_size; ++i) {
      const float* const out = joined + row * output_size;
      float value = x[row * input_size + i];
      if (options_.is_multiplicative) value *= 1 + out[options_.is_residual ? input_size + i : i];
      if (options_.is_residual) value += out[i];
      sum += value * weight[i];
    }
    score[row] = sum;
  }
  return scores;
}

absl::StatusOr<RecencyEmbedding> RecencyEmbedding::Create(int64_t dim, double max_frequency) {
  if (dim < 2 || dim % 2 != 0 || dim > 1024) {
    return status::InvalidField("recency_embed_dim",
                                absl::StrCat("must be even and from 2 to 1024: ", dim));
  }
  if (!(max_frequency > 0) || !std::isfinite(max_frequency)) {
    return status::InvalidField("recency_max_freq",
                                absl::StrCat("must be above 0: ", max_frequency));
  }
  RecencyEmbedding embedding;
  const int64_t half = dim / 2;
  for (int64_t k = 0; k < half; ++k) {
    embedding.frequencies_.push_back(
        std::pow(max_frequency, -static_cast<double>(k) / static_cast<double>(half)));
  }
  return embedding;
}

void RecencyEmbedding::Embed(int64_t recency, float* embedding) const {
  const size_t half = frequencies_.size();
  for (size_t k = 0; k < half; ++k) {
    const double angle = static_cast<double>(recency) * frequencies_[k];
    embedding[k] = static_cast<float>(std::sin(angle));
    embedding[half + k] = static_cast<float>(std::cos(angle));
  }
}

}  // namespace mneme::memory
