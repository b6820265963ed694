// Whole updates against the reference: several layers, chunks between updates, carried state; and
// what comes out of a trainer's checkpoint.
#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/memory/namm_layer.h"
#include "common/memory/namm_model.h"
#include "common/weights/dequantize.h"
#include "common/weights/torch_checkpoint.h"
#include "tests/golden/namm/namm_cases.h"

namespace mneme::testing {
namespace {

memory::NammConfig ConfigOf(const GoldenFile& golden) {
  auto config = memory::ParseNammConfig(golden.config().dump());
  EXPECT_TRUE(config.ok()) << config.status();
  config->delay = config->spectrogram.hop;  // the file says when updates happen
  return *config;
}

memory::FrequencyStatistics StatisticsOf(const GoldenFile& golden, const std::string& mean,
                                         const std::string& variance) {
  memory::FrequencyStatistics statistics;
  if (!golden.Has(mean)) return statistics;
  const std::vector<float> means = golden.Floats(mean);
  const std::vector<float> variances = golden.Floats(variance);
  statistics.mean.assign(means.begin(), means.end());
  statistics.variance.assign(variances.begin(), variances.end());
  statistics.count.assign(means.size(), 1);
  return statistics;
}

// [H * G, q, K] of the query heads to [H, q, K].
at::Tensor MeanOverGroup(const at::Tensor& attention, int64_t groups) {
  return attention.view({attention.size(0) / groups, groups, attention.size(1), attention.size(2)})
      .mean(1)
      .contiguous();
}

at::Tensor Kept(const memory::Selection& selection) {
  std::vector<at::Tensor> rows;
  for (const std::vector<int64_t>& kept : selection.kept) {
    rows.push_back(at::tensor(kept, at::kLong));
  }
  return at::stack(rows);  // [H, K']
}

at::Tensor Gather(const at::Tensor& rows, const at::Tensor& kept) {
  return rows.gather(1, kept.unsqueeze(-1).expand({-1, -1, rows.size(2)}));
}

// What a cache of one layer holds besides NAMM's own state.
struct Cache {
  at::Tensor keys;       // [H, K, D]
  at::Tensor values;     // [H, K, D]
  at::Tensor positions;  // [H, K]
};

at::Tensor ToTensor(const std::vector<double>& values) { return at::tensor(values, at::kDouble); }

}  // namespace

void CheckPolicy(const GoldenFile& golden) {
  const auto model = memory::NammModel::Create(ConfigOf(golden), golden.Floats("namm_params"),
                                               StatisticsOf(golden, "norm_mean", "norm_var"));
  ASSERT_TRUE(model.ok()) << model.status();
  const int64_t heads = golden.Integer("kv_heads");
  const int64_t num_layers = golden.Integer("layers");
  const int64_t groups = golden.Integer("groups");
  const int64_t left_pad = golden.Integer("left_pad");
  const int64_t recency_dim = golden.Integer("recency_embed_dim");
  std::vector<memory::NammLayer> layers;
  std::vector<Cache> caches(num_layers);
  for (int64_t l = 0; l < num_layers; ++l) layers.emplace_back(&model->spectrogram(), heads);
  memory::RunningStatistics running;
  int64_t seen = 0;
  const auto& chunks_per_update = golden.config()["chunks_per_update"];
  for (size_t u = 0; u < chunks_per_update.size(); ++u) {
    int64_t queries = 0;
    for (size_t c = 0; c < chunks_per_update[u].size(); ++c) {
      const int64_t size = chunks_per_update[u][c];
      const at::Tensor positions = at::arange(seen, seen + size, at::kLong).expand({heads, size});
      for (int64_t l = 0; l < num_layers; ++l) {
        const std::string prefix = absl::StrCat("u", u, ".c", c, ".l", l, ".");
        Cache& cache = caches[l];
        const at::Tensor key = golden[prefix + "new_key"][0];
        const at::Tensor value = golden[prefix + "new_value"][0];
        cache.keys = cache.keys.defined() ? at::cat({cache.keys, key}, 1) : key;
        cache.values = cache.values.defined() ? at::cat({cache.values, value}, 1) : value;
        cache.positions =
            cache.positions.defined() ? at::cat({cache.positions, positions}, 1) : positions;
        layers[l].Observe(MeanOverGroup(golden[prefix + "attn"][0], groups));
      }
      seen += size;
      queries += size;
    }
    for (int64_t l = 0; l < num_layers; ++l) {
      const std::string prefix = absl::StrCat("u", u, ".l", l, ".");
      SCOPED_TRACE(prefix);
      Cache& cache = caches[l];
      const int64_t tokens = layers[l].num_tokens();
      golden.ExpectEqual(prefix + "pos", cache.positions);
      at::Tensor valid;
      if (left_pad > 0) {
        // The mask of the whole sequence, cut to its last K columns.
        valid = (at::arange(seen - tokens, seen) >= left_pad).to(at::kByte);
      }
      const auto evaluation = layers[l].Evaluate(*model, cache.positions, &running, valid);
      golden.ExpectNear(prefix + "ema", evaluation.ema);
      golden.ExpectNear(prefix + "feat", evaluation.features);
      golden.ExpectNear(
          prefix + "norm",
          evaluation.features.narrow(2, recency_dim, evaluation.features.size(2) - recency_dim));
      golden.ExpectNear(prefix + "scores", evaluation.scores);
      const at::Tensor kept = Kept(evaluation.selection);
      golden.ExpectEqual(prefix + "retained", kept);
      golden.ExpectEqual(prefix + "pos_after", cache.positions.gather(1, kept));
      EXPECT_TRUE(at::equal(golden[prefix + "mask"][0].sum(-1),
                            at::tensor(evaluation.selection.above_threshold, at::kLong)));
      cache = {.keys = Gather(cache.keys, kept),
               .values = Gather(cache.values, kept),
               .positions = cache.positions.gather(1, kept)};
      golden.ExpectNear(prefix + "key_after", cache.keys);
      golden.ExpectNear(prefix + "value_after", cache.values);
      layers[l].Keep(evaluation.selection.kept);
      golden.ExpectNear(prefix + "ema_state_after", layers[l].ema());
      const at::Tensor carried = golden[prefix + "prev_attn_state_after"][0];
      const int64_t carry = model->spectrogram().carry();
      ASSERT_GE(queries, carry);
      EXPECT_LE((carried.narrow(2, queries - carry, carry) - layers[l].samples())
                    .abs()
                    .max()
                    .item<float>(),
                kUnitTolerance);
    }
    if (golden.config()["online_norm"]) {
      const std::string prefix = absl::StrCat("u", u, ".online_");
      golden.ExpectNear(prefix + "mean", ToTensor(running.fresh.mean));
      golden.ExpectNear(prefix + "var", ToTensor(running.fresh.variance));
      golden.ExpectEqual(prefix + "num", at::tensor(running.fresh.count, at::kLong));
    }
  }
  EXPECT_EQ(golden.Count("u"), static_cast<int64_t>(chunks_per_update.size()));
  if (!golden.Names("self_merge.").empty()) {
    running.Fold();
    const std::string prefix = "self_merge.token_embedding_0_";
    golden.ExpectNear(prefix + "output_mean", ToTensor(running.stored.mean));
    golden.ExpectNear(prefix + "output_var", ToTensor(running.stored.variance));
    golden.ExpectEqual(prefix + "output_num", at::tensor(running.stored.count, at::kLong));
    EXPECT_TRUE(running.fresh.empty());
    for (const char* const field : {"mean", "var", "num"}) {
      const at::Tensor fresh = golden[absl::StrCat(prefix, "online_new_output_", field)];
      EXPECT_FALSE(fresh.to(at::kBool).any().item<bool>());
    }
  }
}

void CheckCheckpoint(const GoldenFile& golden) {
  const std::string path = NammGoldenFolder() + "/" + golden.config()["file"].get<std::string>();
  const auto file = weights::TorchCheckpoint::Open(path);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ((*file)->numbers().at("iter_num"), golden.Number("iter_num"));
  EXPECT_EQ((*file)->numbers().at("best_val_loss"), golden.Number("best_val_loss"));
  size_t num_keys = 0;
  for (const std::string key : golden.config()["state_keys"]) {
    const weights::TensorView* const tensor = (*file)->FindTensor("evolution_state." + key);
    ASSERT_NE(tensor, nullptr) << key;
    ++num_keys;
    // What the file beside it has of the state, under the same or a shorter name.
    std::string stored = key;
    const std::string buffers = "stored_buffers_to_save.";
    if (key.starts_with(buffers)) stored = "stored." + key.substr(buffers.size());
    if (!golden.Has(stored)) continue;
    std::vector<float> values(static_cast<size_t>(tensor->num_elements()));
    ASSERT_TRUE(weights::Dequantize(*tensor, absl::MakeSpan(values)).ok());
    EXPECT_TRUE(at::equal(at::tensor(values).view(tensor->shape), golden[stored].to(at::kFloat)))
        << key;
  }
  EXPECT_EQ(num_keys, (*file)->tensors().size());

  const auto model = memory::NammModel::LoadCheckpoint(path, ConfigOf(golden));
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ(model->network().options().hidden_size, golden.Integer("attn_hidden"));
  const int64_t groups = golden.Integer("groups");
  const int64_t heads = golden.Integer("kv_heads");

  // The stored statistics, measured once more with the network that keeps everything.
  memory::NammLayer measured(&model->spectrogram(), heads);
  measured.Observe(MeanOverGroup(golden["stats_attn"][0], groups));
  const at::Tensor average = measured.ema().contiguous();
  const auto statistics = memory::FrequencyStatistics::Measure(
      absl::MakeConstSpan(average.const_data_ptr<float>(), average.numel()), average.size(2));
  golden.ExpectNear("stored.token_embedding_0_output_mean", ToTensor(statistics.mean));
  golden.ExpectNear("stored.token_embedding_0_output_var", ToTensor(statistics.variance));

  memory::NammLayer layer(&model->spectrogram(), heads);
  const at::Tensor attention = MeanOverGroup(golden["test_attn"][0], groups);
  layer.Observe(attention);
  const at::Tensor positions =
      at::arange(attention.size(2), at::kLong).expand({heads, attention.size(2)}).contiguous();
  memory::RunningStatistics unused;
  const auto evaluation = layer.Evaluate(*model, positions, &unused);
  golden.ExpectNear("feat", evaluation.features);
  golden.ExpectNear("scores", evaluation.scores);
  const at::Tensor kept = Kept(evaluation.selection);
  golden.ExpectEqual("retained", kept);
  golden.ExpectNear("key_after", Gather(golden["key"][0], kept));
}

}  // namespace mneme::testing
