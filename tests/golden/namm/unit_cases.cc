// The units of NAMM against the reference: network, features, statistics, selection.
#include <ATen/Functions.h>
#include <ATen/TensorIndexing.h>
#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/memory/namm_layer.h"
#include "common/memory/namm_network.h"
#include "common/memory/namm_selection.h"
#include "common/memory/namm_spectrogram.h"
#include "common/memory/namm_statistics.h"
#include "tests/golden/namm/namm_cases.h"

namespace mneme::testing {
namespace {

using at::indexing::Slice;

absl::Span<const float> Span(const at::Tensor& tensor) {
  return absl::MakeConstSpan(tensor.const_data_ptr<float>(), tensor.numel());
}

at::Tensor ToTensor(const std::vector<std::vector<int64_t>>& rows) {
  std::vector<at::Tensor> tensors;
  for (const std::vector<int64_t>& row : rows) tensors.push_back(at::tensor(row, at::kLong));
  return at::stack(tensors);
}

at::Tensor ToTensor(const std::vector<double>& values) { return at::tensor(values, at::kDouble); }

// Padding flags [K] of a mask [B, 1, K], row b.
at::Tensor Flags(const at::Tensor& mask, int64_t b) {
  return mask[b].flatten().to(at::kByte).contiguous();
}

}  // namespace

void CheckBam(const GoldenFile& golden) {
  const nlohmann::json& config = golden.config();
  memory::BamOptions options;
  options.input_size = golden.Integer("input_dim");
  options.hidden_size = golden.Integer("hidden_dim");
  options.num_heads = golden.Integer("num_heads");
  options.attention_bias = config["attn_bias"];
  options.scorer_bias = config["mlp_bias"];
  options.is_residual = config["residual"];
  options.is_multiplicative = config["mult"];
  options.use_rotary = config["use_rope"];
  options.rope_theta = golden.Number("rope_theta");
  const std::string masking = config["masking"].is_null() ? "none" : config["masking"];
  options.mask = masking == "backward"  ? memory::BamMask::kBackward
                 : masking == "forward" ? memory::BamMask::kForward
                                        : memory::BamMask::kNone;
  EXPECT_EQ(memory::BamNetwork::NumParameters(options), golden.Integer("param_size"));
  const auto network = memory::BamNetwork::Create(options, golden.Floats("params"));
  ASSERT_TRUE(network.ok()) << network.status();

  const at::Tensor valid = Flags(golden["attn_mask"], 0);
  const bool is_padded = (valid == 0).any().item<bool>();
  at::Tensor block;
  const at::Tensor scores = network->Score(golden["features"][0], golden["position_ids"][0],
                                           is_padded ? valid : at::Tensor(), &block);
  golden.ExpectNear("attn_block_out", block);
  golden.ExpectNear("scores", scores);
  // The path for padding gives the same where there is none.
  golden.ExpectNear("scores",
                    network->Score(golden["features"][0], golden["position_ids"][0], valid));
}

void CheckSpectrogram(const GoldenFile& golden) {
  memory::SpectrogramOptions options;
  options.n_fft = golden.Integer("n_fft");
  options.hop = golden.Integer("hop");
  options.ema_coefficient = golden.Number("ema_coeff");
  const auto spectrogram = memory::Spectrogram::Create(options);
  ASSERT_TRUE(spectrogram.ok()) << spectrogram.status();
  const int64_t frequencies = spectrogram->num_frequencies();
  const int64_t batch = golden.Integer("batch");
  const int64_t heads = golden.Integer("kv_heads");

  std::vector<memory::NammLayer> streaming;
  for (int64_t b = 0; b < batch; ++b) streaming.emplace_back(&*spectrogram, heads);
  at::Tensor tail = at::zeros({batch, heads, 0, spectrogram->carry()});
  at::Tensor average = at::zeros({batch, heads, 0, frequencies});
  for (int64_t u = 0; u < golden.Integer("num_updates"); ++u) {
    const std::string prefix = absl::StrCat("u", u, ".");
    const at::Tensor attention = golden[prefix + "attn"];  // [B, H, Q, K]
    const int64_t queries = attention.size(2);
    const int64_t tokens = attention.size(3);
    const int64_t num_new = tokens - average.size(2);

    // Buffered: all queries of the update at once.
    average = at::constant_pad_nd(average, {0, 0, 0, num_new}).contiguous();
    const at::Tensor past = at::constant_pad_nd(tail, {0, 0, 0, num_new}).contiguous();
    const at::Tensor signals = attention.transpose(2, 3).contiguous();  // [B, H, K, Q]
    at::Tensor frames = at::empty({batch, heads, tokens, queries / options.hop, frequencies});
    for (int64_t row = 0; row < batch * heads * tokens; ++row) {
      spectrogram->Reduce(Span(past.view({-1, spectrogram->carry()})[row]),
                          Span(signals.view({-1, queries})[row]),
                          average.data_ptr<float>() + row * frequencies,
                          frames.data_ptr<float>() + row * queries / options.hop * frequencies);
    }
    golden.ExpectNear(prefix + "stft_mag", frames.transpose(2, 3));
    golden.ExpectNear(prefix + "ema", average);

    // Streaming, cut into calls that have nothing to do with the hop.
    std::vector<at::Tensor> streamed;
    for (int64_t b = 0; b < batch; ++b) {
      for (int64_t begin = 0; begin < queries; begin += 5) {
        streaming[b].Observe(attention[b].index({Slice(), Slice(begin, begin + 5)}).contiguous());
      }
      EXPECT_EQ(streaming[b].pending(), 0);
      streamed.push_back(streaming[b].ema());
    }
    golden.ExpectNear(prefix + "ema", at::stack(streamed));
    EXPECT_LE((at::stack(streamed) - average).abs().max().item<float>(), 1e-6f);

    const at::Tensor kept = golden[prefix + "retained_idx"];  // [B, H, K']
    const auto gather = [&](const at::Tensor& rows) {
      return rows.gather(2, kept.unsqueeze(-1).expand({-1, -1, -1, rows.size(3)}));
    };
    average = gather(average).contiguous();
    const at::Tensor kept_signals = gather(signals);
    golden.ExpectNear(prefix + "ema_state_after", average);
    golden.ExpectNear(prefix + "prev_attn_state_after", kept_signals);
    // Of the signals only the last samples matter, all of them where there are so many.
    tail = at::cat({gather(past), kept_signals}, 3)
               .narrow(3, queries, spectrogram->carry())
               .contiguous();
    std::vector<at::Tensor> kept_average, kept_tails;
    for (int64_t b = 0; b < batch; ++b) {
      std::vector<std::vector<int64_t>> indices;
      for (int64_t h = 0; h < heads; ++h) {
        const at::Tensor row = kept[b][h].contiguous();
        indices.emplace_back(row.const_data_ptr<int64_t>(),
                             row.const_data_ptr<int64_t>() + row.numel());
      }
      streaming[b].Keep(indices);
      kept_average.push_back(streaming[b].ema());
      kept_tails.push_back(streaming[b].samples());
    }
    golden.ExpectNear(prefix + "ema_state_after", at::stack(kept_average));
    EXPECT_TRUE(at::equal(at::stack(kept_tails), tail));
  }
}

void CheckStatistics(const GoldenFile& golden) {
  memory::FrequencyStatistics running;
  for (int64_t b = 0; b < golden.Integer("batches"); ++b) {
    const std::string prefix = absl::StrCat("b", b, ".");
    const at::Tensor values = golden[prefix + "values"];  // [B, H, K, F]
    const at::Tensor counted = golden[prefix + "mask"]
                                   .expand({values.size(0), values.size(1), values.size(2), 1})
                                   .to(at::kByte)
                                   .contiguous();
    const auto measured = memory::FrequencyStatistics::Measure(
        Span(values), values.size(3),
        absl::MakeConstSpan(counted.const_data_ptr<uint8_t>(), counted.numel()));
    golden.ExpectNear(prefix + "mean", ToTensor(measured.mean));
    golden.ExpectNear(prefix + "var", ToTensor(measured.variance));
    golden.ExpectEqual(prefix + "num", at::tensor(measured.count, at::kLong));
    running.Merge(measured);
    golden.ExpectNear(prefix + "running_mean", ToTensor(running.mean));
    golden.ExpectNear(prefix + "running_var", ToTensor(running.variance));
    golden.ExpectEqual(prefix + "running_num", at::tensor(running.count, at::kLong));
  }
  const at::Tensor x = golden["x"];
  at::Tensor normalised = at::empty_like(x);
  running.Normalise(Span(x), normalised.data_ptr<float>());
  golden.ExpectNear("x_normalised", normalised);
}

void CheckRecency(const GoldenFile& golden) {
  const auto embedding =
      memory::RecencyEmbedding::Create(golden.Integer("embed_dim"), golden.Number("max_freq"));
  ASSERT_TRUE(embedding.ok()) << embedding.status();
  const at::Tensor positions = golden["position_ids"][0];  // [H, K]
  const std::string prefix = "recency_start";
  for (const std::string& name : golden.Names(prefix)) {
    const int64_t start = std::stoll(name.substr(prefix.size()));
    const at::Tensor recency = positions.narrow(1, positions.size(1) - 1, 1) - positions + start;
    golden.ExpectEqual(name, recency);
    at::Tensor embedded =
        at::empty({positions.size(0), positions.size(1), embedding->dim()}, at::kFloat);
    const at::Tensor flat = recency.flatten();
    for (int64_t i = 0; i < flat.numel(); ++i) {
      embedding->Embed(flat[i].item<int64_t>(), embedded.data_ptr<float>() + i * embedding->dim());
    }
    golden.ExpectNear(absl::StrCat("embedding_start", start), embedded);
  }
}

void CheckSelection(const GoldenFile& golden) {
  for (const nlohmann::json& config : golden.config()["cases"]) {
    const std::string name = config["case"];
    const std::string selection = config["selection"];
    SCOPED_TRACE(name);
    if (selection == "recency") {
      const at::Tensor keys = golden[name + ".key_cache"];
      const int64_t tokens = keys.size(2);
      const int64_t size =
          config["cache_size"].is_null() ? tokens : config["cache_size"].get<int64_t>();
      golden.ExpectNear(name + ".key_cache_after",
                        keys.index_select(2, at::tensor(memory::SelectRecent(tokens, size))));
      continue;
    }
    const at::Tensor scores = golden[name + ".scores"];  // [B, H, K]
    std::vector<at::Tensor> valid;
    for (int64_t b = 0; b < scores.size(0); ++b) {
      valid.push_back(Flags(golden[name + ".attn_mask"], b));
    }
    std::vector<memory::HeadScores> heads;
    for (int64_t b = 0; b < scores.size(0); ++b) {
      for (int64_t h = 0; h < scores.size(1); ++h) {
        heads.push_back(
            {.scores = Span(scores[b][h]),
             .valid = absl::MakeConstSpan(valid[b].const_data_ptr<uint8_t>(), valid[b].numel())});
      }
    }
    memory::Selection selected;
    if (selection == "topk") {
      selected = memory::SelectTopK(heads, config["cache_size"]);
    } else {
      memory::ThresholdSelection options;
      if (config.contains("cache_size") && !config["cache_size"].is_null()) {
        options.cache_size = config["cache_size"].get<int64_t>();
      }
      options.threshold =
          selection == "dynamic" ? config["dynamic_thresh"] : config["threshold_shift"];
      selected = memory::SelectByThreshold(heads, options);
      golden.ExpectEqual(name + ".retained_idx",
                         ToTensor(selected.kept).view({scores.size(0), scores.size(1), -1}));
      const at::Tensor above = golden[name + ".above_thresh_mask_sorted"].sum(-1).flatten();
      EXPECT_TRUE(at::equal(above, at::tensor(selected.above_threshold, at::kLong)));
      continue;
    }
    golden.ExpectEqual(name + ".retained_idx",
                       ToTensor(selected.kept).view({scores.size(0), scores.size(1), -1}));
  }
}

}  // namespace mneme::testing
