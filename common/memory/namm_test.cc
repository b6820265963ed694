// NAMM's units where no golden file looks: limits, artifacts, state, independence of cuts and
// threads.
#include <ATen/Functions.h>
#include <ATen/TensorIndexing.h>
#include <ATen/TensorOperators.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "common/memory/namm_layer.h"
#include "common/memory/namm_model.h"
#include "common/memory/namm_network.h"
#include "common/memory/namm_policy.h"
#include "common/memory/namm_selection.h"
#include "common/memory/open_namm.h"
#include "common/status/annotate.h"
#include "kernels/parallel.h"
#include "tests/support/temp_folder.h"

namespace mneme::memory {
namespace {

using at::indexing::Slice;
using ::testing::ElementsAre;

std::vector<float> RandomFloats(size_t count, uint32_t seed, float scale = 0.2f) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, scale);
  std::vector<float> values(count);
  for (float& value : values) value = normal(random);
  return values;
}

NammModel RandomModel(NammConfig config, FrequencyStatistics statistics = {}) {
  BamOptions network = config.network;
  network.input_size = config.recency_dim + config.spectrogram.n_fft / 2 + 1;
  auto model =
      NammModel::Create(config, RandomFloats(BamNetwork::NumParameters(network), 7), statistics);
  EXPECT_TRUE(model.ok()) << model.status();
  return *std::move(model);
}

// Attention of `queries` new tokens after `past` ones: rows of a softmax.
at::Tensor RandomAttention(int64_t heads, int64_t past, int64_t queries, uint32_t seed) {
  at::Tensor scores = at::tensor(RandomFloats(heads * queries * (past + queries), seed, 2.0f))
                          .view({heads, queries, past + queries});
  const at::Tensor hidden = at::triu(at::ones({queries, past + queries}, at::kBool), past + 1);
  return at::softmax(scores.masked_fill(hidden, -INFINITY), -1);
}

std::string Field(const absl::Status& status) {
  return status::PayloadOf(status, status::kFieldPayload);
}

TEST(NammTest, StreamingDoesNotDependOnCutsOrThreads) {
  const Spectrogram spectrogram = *Spectrogram::Create({});
  const at::Tensor attention = RandomAttention(3, 0, 150, 1);
  NammLayer together(&spectrogram, 3);
  together.Observe(attention);
  EXPECT_EQ(together.pending(), 150 % 16);
  for (const int threads : {1, 3}) {
    const int before = kernels::NumThreads();
    kernels::SetNumThreads(threads);
    NammLayer apart(&spectrogram, 3);
    for (int64_t q = 0; q < 150;) {
      const int64_t count = std::min<int64_t>(1 + q % 37, 150 - q);
      apart.Observe(
          attention.index({Slice(), Slice(q, q + count), Slice(0, q + count)}).contiguous());
      q += count;
    }
    kernels::SetNumThreads(before);
    EXPECT_TRUE(at::equal(apart.ema(), together.ema()));
    EXPECT_TRUE(at::equal(apart.samples(), together.samples()));
  }
}

TEST(NammTest, StateSurvivesStorageAtAnyQuery) {
  const auto model = std::make_shared<const NammModel>(RandomModel(NammConfig{.delay = 32}));
  const KvShape shape{.num_layers = 2, .num_kv_heads = 2, .head_size = 8};
  NammState state(model, shape);
  const at::Tensor attention = RandomAttention(2, 0, 40, 2);
  for (int64_t q = 0; q < 40; ++q) {
    for (int64_t layer = 0; layer < 2; ++layer) {
      state.Observe(layer, q,
                    attention.index({Slice(), Slice(q, q + 1), Slice(0, q + 1)}).contiguous());
    }
    if (q == 31) {
      state.running().fresh = FrequencyStatistics::Measure(RandomFloats(17 * 5, 3), 17);
      state.Keep({{0, 0, {1, 5, 30}}, {0, 1, {0, 2, 31}}});
    }
    const std::string bytes = state.Serialise();
    const auto restored = NammState::Restore(model, shape, bytes);
    ASSERT_TRUE(restored.ok()) << restored.status();
    EXPECT_EQ((*restored)->Serialise(), bytes);
    EXPECT_TRUE(at::equal((*restored)->layer(0).ema(), state.layer(0).ema()));
    EXPECT_EQ(NammState::Restore(model, shape, bytes + "x").status().code(),
              absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(NammState::Restore(model, shape, bytes.substr(0, bytes.size() - 1)).status().code(),
              absl::StatusCode::kInvalidArgument);
    if (q == 31) break;
  }
}

TEST(NammTest, HostileStateIsRefused) {
  const auto model = std::make_shared<const NammModel>(RandomModel(NammConfig{.delay = 32}));
  const KvShape shape{.num_layers = 1, .num_kv_heads = 2, .head_size = 8};
  NammState state(model, shape);
  state.Observe(0, 0, RandomAttention(2, 0, 20, 2));
  const std::string bytes = state.Serialise();
  std::mt19937 random(5);
  for (int i = 0; i < 300; ++i) {
    std::string broken = bytes;
    for (int k = 0; k < 8; ++k) broken[random() % 40] = static_cast<char>(random());
    const auto restored = NammState::Restore(model, shape, broken);
    if (restored.ok()) {
      EXPECT_EQ((*restored)->Serialise().size(), bytes.size());
    }
  }
}

TEST(NammTest, TheZeroNetworkKeepsEverything) {
  NammConfig config;
  config.network.input_size = 25;
  const auto model = NammModel::Create(
      config, std::vector<float>(BamNetwork::NumParameters(config.network), 0.0f), {});
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ(model->network().parameters().size(), 4172u);
  NammLayer layer(&model->spectrogram(), 2);
  layer.Observe(RandomAttention(2, 0, 48, 3));
  RunningStatistics running;
  const auto evaluation =
      layer.Evaluate(*model, at::arange(48, at::kLong).expand({2, 48}).contiguous(), &running);
  EXPECT_EQ(evaluation.selection.kept[0].size(), 48u);
  EXPECT_FALSE(running.fresh.empty());  // no frozen statistics: measured
}

TEST(NammTest, SelectionIsDeterministicAndSafe) {
  const std::vector<float> ties = {1, 1, -2, 1, NAN, -1};
  EXPECT_THAT(LargestIndices(ties, 0), ElementsAre());
  const HeadScores head{.scores = ties};
  EXPECT_THAT(SelectByThreshold({head}, {}).kept[0], ElementsAre(0, 1, 3, 5));
  // Of equal scores the newer; the newest always.
  EXPECT_THAT(SelectByThreshold({head}, {.cache_size = 2}).kept[0], ElementsAre(3, 5));
  EXPECT_THAT(SelectTopK({head}, 2).kept[0], ElementsAre(1, 3));
  EXPECT_THAT(SelectRecent(5, 2), ElementsAre(3, 4));
  EXPECT_THAT(SelectRecent(2, 5), ElementsAre(0, 1));
  // The other head fills up with its best ones below the threshold.
  const std::vector<float> low = {-5, -1, -3, -2, -4, -9};
  const Selection both = SelectByThreshold({head, {.scores = low}}, {});
  EXPECT_THAT(both.kept[1], ElementsAre(1, 2, 3, 5));
  EXPECT_THAT(both.above_threshold, ElementsAre(4, 1));
}

TEST(NammTest, ScoresDoNotDependOnThreads) {
  const NammModel model = RandomModel(NammConfig());
  const at::Tensor features = at::tensor(RandomFloats(2 * 333 * 25, 4, 1.0f)).view({2, 333, 25});
  const int before = kernels::NumThreads();
  kernels::SetNumThreads(1);
  const at::Tensor one = model.network().Score(features);
  kernels::SetNumThreads(4);
  EXPECT_TRUE(at::equal(model.network().Score(features), one));
  kernels::SetNumThreads(before);
  // The plain path says the same.
  const at::Tensor valid = at::ones({333}, at::kByte);
  EXPECT_LE((model.network().Score(features, {}, valid) - one).abs().max().item<float>(), 1e-4f);
}

TEST(NammTest, ArtifactsComeBackAsTheyWere) {
  const testing::TempFolder folder;
  const std::string path = folder.File("mine.safetensors");
  NammConfig config{.delay = 256};
  config.spectrogram = {.n_fft = 16, .hop = 8, .ema_coefficient = 0.9};
  config.recency_dim = 4;
  config.network.hidden_size = 12;
  config.network.num_heads = 3;
  config.network.mask = BamMask::kNone;
  config.selection = {.threshold = 0.25f, .cache_size = 99};
  FrequencyStatistics statistics;
  for (int f = 0; f < 9; ++f) {
    statistics.mean.push_back(0.5 + f);
    statistics.variance.push_back(0.25 * f);
    statistics.count.push_back(1000 + f);
  }
  for (const FrequencyStatistics& frozen : {statistics, FrequencyStatistics()}) {
    const NammModel model = RandomModel(config, frozen);
    ASSERT_TRUE(model.Save(path).ok());
    const auto loaded = NammModel::Load(path);
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    EXPECT_EQ(loaded->digest(), model.digest());
    EXPECT_EQ(loaded->config().delay, 256);
    EXPECT_EQ(loaded->config().selection.cache_size, 99);
    EXPECT_EQ(loaded->statistics().mean, frozen.mean);
  }
  EXPECT_EQ(NammModel::Load(folder.File("other.safetensors")).status().code(),
            absl::StatusCode::kNotFound);
}

TEST(NammTest, ConfigurationsThatCannotWorkAreRefusedByName) {
  const std::vector<float> parameters(4172, 0.0f);
  const auto field = [&](const NammConfig& config) {
    return Field(NammModel::Create(config, parameters, {}).status());
  };
  EXPECT_TRUE(NammModel::Create({}, parameters, {}).ok());
  EXPECT_EQ(field({.delay = 24}), "delay");
  EXPECT_EQ(field({.recency_dim = 7}), "recency_embed_dim");
  EXPECT_EQ(field({.spectrogram = {.n_fft = 1}}), "n_fft");
  EXPECT_EQ(field({.spectrogram = {.hop = 33}}), "hop");
  EXPECT_EQ(field({.spectrogram = {.ema_coefficient = 1.0}}), "ema_coeff");
  EXPECT_EQ(field({.network = {.num_heads = 5}}), "num_heads");
  EXPECT_EQ(NammModel::Create({}, std::vector<float>(100), {}).status().code(),
            absl::StatusCode::kInvalidArgument);
  std::vector<float> broken = parameters;
  broken[17] = NAN;
  EXPECT_FALSE(NammModel::Create({}, broken, {}).ok());
  EXPECT_FALSE(ParseNammConfig("[]").ok());
  EXPECT_EQ(Field(ParseNammConfig(R"({"delay": "512"})").status()), "delay");
  EXPECT_EQ(Field(ParseNammConfig(R"({"masking": "sideways"})").status()), "masking");
}

TEST(OpenNammTest, CountsCallsGathersThePastAndSaysHowManyStayed) {
  open_namm::NAMMConfig config{
      .update_interval = 2, .stride_size = 4, .window_size = 16, .n_head = 2, .d_model = 8};
  const auto make = [&](open_namm::Ema ema) {
    auto namm = open_namm::create_namm(config, {.ema = ema, .num_queries = 32}, 11);
    EXPECT_TRUE(namm.ok()) << namm.status();
    return *std::move(namm);
  };
  open_namm::NAMM gathered = make(open_namm::Ema::kGathered);
  open_namm::NAMM compat = make(open_namm::Ema::kAdditiveCompat);
  const at::Tensor key = at::tensor(RandomFloats(2 * 12 * 8, 1, 1.0f)).view({2, 12, 8});
  const at::Tensor attention = RandomAttention(2, 0, 32, 5).narrow(2, 0, 12).transpose(1, 2);
  const open_namm::NAMM::Cache cache{.key = key, .value = -key};
  EXPECT_FALSE(gathered.Forward(cache, attention)->scores.defined());
  ASSERT_TRUE(compat.Forward(cache, attention).ok());
  const auto result = gathered.Forward(cache, attention);
  ASSERT_TRUE(result.ok()) << result.status();
  ASSERT_TRUE(compat.Forward(cache, attention).ok());
  EXPECT_EQ(gathered.num_calls(), 2);
  const at::Tensor counts = (result->scores > 0).sum(1);
  EXPECT_TRUE(at::equal(result->counts, counts));
  EXPECT_EQ(result->cache.key.size(1), counts.max().item<int64_t>());
  EXPECT_EQ(gathered.past().size(1), result->cache.key.size(1));
  EXPECT_EQ(compat.past().size(1), 12);
  for (int64_t b = 0; b < 2; ++b) {
    const int64_t count = counts[b].item<int64_t>();
    const at::Tensor kept = key[b].index_select(0, at::nonzero(result->scores[b] > 0).squeeze(1));
    EXPECT_TRUE(at::equal(result->cache.key[b].narrow(0, 0, count), kept));
    EXPECT_TRUE(at::equal(result->cache.value[b].narrow(0, 0, count), -kept));
  }
  // Another number of queries than was declared.
  ASSERT_TRUE(gathered.Forward(cache, attention).ok());
  EXPECT_EQ(gathered.Forward(cache, attention.narrow(2, 0, 20)).status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace mneme::memory
