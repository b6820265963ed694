// The open_namm form against the package.
#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>

#include <string>

#include "absl/strings/str_cat.h"
#include "common/memory/open_namm.h"
#include "common/memory/open_namm_transformer.h"
#include "tests/golden/namm/namm_cases.h"

namespace mneme::testing {
namespace {

namespace open = memory::open_namm;

open::Weights WeightsOf(const GoldenFile& golden) {
  open::Weights weights;
  for (const std::string& name : golden.Names("w.")) weights[name.substr(2)] = golden[name];
  return weights;
}

}  // namespace

void CheckOpenNamm(const GoldenFile& golden) {
  open::NAMMConfig config;
  config.update_interval = golden.Integer("update_interval");
  config.stride_size = golden.Integer("stride_size");
  config.window_size = golden.Integer("window_size");
  config.n_head = golden.Integer("n_head");
  config.d_model = golden.Integer("d_model");
  config.gamma = golden.Number("gamma");
  const open::Weights weights = WeightsOf(golden);
  open::NAMMOptions options{.mask = open::Mask::kCausalCompat,
                            .ema = open::Ema::kAdditiveCompat,
                            .num_queries = golden.Integer("n_queries")};
  auto namm = open::NAMM::Create(config, options, weights);
  ASSERT_TRUE(namm.ok()) << namm.status();
  auto statistics = open::NAMM::Create(config, options, weights);
  ASSERT_TRUE(statistics.ok()) << statistics.status();
  const auto backward =
      open::BackwardAttentionMemory::Create(config, open::Mask::kBackward, weights, "bam.");
  ASSERT_TRUE(backward.ok()) << backward.status();

  open::NAMM::Cache cache{.key = golden["kv0.key"], .value = golden["kv0.value"]};
  for (int64_t s = 0; s < golden.Integer("steps"); ++s) {
    const std::string prefix = absl::StrCat("s", s, ".");
    SCOPED_TRACE(prefix);
    const at::Tensor attention = golden[prefix + "attn"];
    const auto retention = statistics->EvaluateRetention(cache, attention);
    ASSERT_TRUE(retention.ok()) << retention.status();
    const auto result = namm->Forward(cache, attention);
    ASSERT_TRUE(result.ok()) << result.status();
    const bool is_update = golden.Has(prefix + "scores");
    EXPECT_EQ(result->scores.defined(), is_update);
    EXPECT_EQ(retention->has_value(), is_update);
    if (!is_update) {
      EXPECT_TRUE(at::equal(result->cache.key, cache.key));
      continue;
    }
    golden.ExpectNear(prefix + "stft_mag", result->magnitudes);
    golden.ExpectNear(prefix + "features", result->features);
    golden.ExpectNear(prefix + "reduced", result->reduced);
    golden.ExpectNear(prefix + "past_stft", namm->past());
    golden.ExpectNear(prefix + "scores", result->scores);
    golden.ExpectEqual(prefix + "keep_mask", result->scores > 0);
    golden.ExpectNear(prefix + "kv_after.key", result->cache.key);
    golden.ExpectNear(prefix + "kv_after.value", result->cache.value);
    EXPECT_TRUE(at::equal(result->counts, golden[prefix + "keep_mask"].sum(1)));
    const auto& values = **retention;
    golden.ExpectNear(prefix + "stats",
                      at::tensor({values.retention_rate, values.mean_score, values.score_std,
                                  values.min_score, values.max_score},
                                 at::kDouble));
    const auto scores = backward->Score(golden[prefix + "reduced"]);
    ASSERT_TRUE(scores.ok()) << scores.status();
    golden.ExpectNear(prefix + "derived_backward_scores", *scores);
    cache = result->cache;
  }
}

void CheckOpenNammTransformer(const GoldenFile& golden) {
  open::TransformerConfig config;
  config.vocab_size = golden.Integer("vocab");
  config.max_seq_length = golden.Integer("max_seq_length");
  config.d_model = golden.Integer("d_model");
  config.n_heads = golden.Integer("n_heads");
  config.n_layers = golden.Integer("layers");
  config.d_ff = golden.Integer("d_ff");
  config.activation = golden.config()["activation"];
  const auto model = open::NAMMTransformer::Create(config, WeightsOf(golden));
  ASSERT_TRUE(model.ok()) << model.status();
  const auto causal = model->Forward(golden["input_ids"]);
  ASSERT_TRUE(causal.ok()) << causal.status();
  golden.ExpectNear("logits", causal->logits);
  const auto masked = model->Forward(golden["input_ids"], golden["mask4d"]);
  ASSERT_TRUE(masked.ok()) << masked.status();
  golden.ExpectNear("logits_masked", masked->logits);
}

}  // namespace mneme::testing
