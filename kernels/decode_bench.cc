// All operators of one decode step and of one prefill chunk of SmolLM2-135M, in order, on weights
// of its sizes and types (Q4_1 layers, Q8_0 head): the ceiling for the tokens per second of an
// engine.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <vector>

#include "kernels/linear.h"
#include "kernels/paged_attention.h"
#include "kernels/rms_norm.h"
#include "kernels/rotary.h"
#include "kernels/test_support.h"

namespace mneme::kernels {
namespace {

constexpr int64_t kLayers = 30;
constexpr int64_t kHidden = 576;
constexpr int64_t kFfn = 1536;
constexpr int64_t kHeads = 9;
constexpr int64_t kKvHeads = 3;
constexpr int64_t kHeadSize = 64;
constexpr int64_t kVocabulary = 49152;

struct Layer {
  PackedLinear qkv, output, gate_up, down;
};

PackedLinear RandomMatrix(WeightType type, int64_t segments, int64_t n, int64_t k) {
  std::mt19937 random(1);
  // Few random rows, repeated: only their number matters here.
  const at::Tensor some = testing::RandomWeight(random, type, 16, k);
  std::vector<WeightRows> rows;
  for (int64_t s = 0; s < segments; ++s) rows.push_back({type, n, some.repeat({n / 16}), {}});
  return PackedLinear::Create(rows, k);
}

struct Model {
  Model() {
    for (int64_t i = 0; i < kLayers; ++i) {
      const int64_t qkv = kHidden + 2 * kKvHeads * kHeadSize;
      layers.push_back({RandomMatrix(WeightType::kQ4_1, 1, qkv, kHidden),
                        RandomMatrix(WeightType::kQ4_1, 1, kHidden, kHidden),
                        RandomMatrix(WeightType::kQ4_1, 2, kFfn, kHidden),
                        RandomMatrix(WeightType::kQ4_1, 1, kHidden, kFfn)});
    }
    head = RandomMatrix(WeightType::kQ8_0, 1, kVocabulary, kHidden);
  }

  std::vector<Layer> layers;
  PackedLinear head;
};

const Model& GetModel() {
  static const Model model;
  return model;
}

// Arguments: tokens in the step (of one sequence), entries before it, threads.
void BM_Step(benchmark::State& state) {
  const int64_t tokens = state.range(0);
  const int64_t entries = state.range(1);
  SetNumThreads(static_cast<int>(state.range(2)));
  const Model& model = GetModel();
  std::mt19937 random(2);
  const int64_t max_pages = (entries + tokens + kPageEntries - 1) / kPageEntries;
  const int64_t pages = kLayers * kKvHeads * max_pages;
  const at::Tensor pool =
      testing::RandomFloats(random, {64, PageElements(kHeadSize)}).repeat({pages / 64 + 1, 1});
  const at::Tensor table = at::arange(pages, at::kInt).view({1, kLayers, kKvHeads, max_pages});
  AttentionBatch batch;
  batch.seq_slot = at::zeros({1}, at::kInt);
  batch.query_start = at::arange(2, at::kInt).mul_(tokens);
  batch.lengths = at::full({1, kKvHeads}, entries, at::kInt);
  const at::Tensor norm = at::ones({kHidden});
  const at::Tensor hidden = testing::RandomFloats(random, {tokens, kHidden});
  const at::Tensor normed = at::empty_like(hidden);
  const at::Tensor qkv = at::empty({tokens, kHeads + 2 * kKvHeads, kHeadSize});
  const at::Tensor qkv_rows = qkv.view({tokens, -1});
  const at::Tensor attended = at::empty({tokens, kHeads, kHeadSize});
  const at::Tensor gated = at::empty({tokens, kFfn});
  const at::Tensor logits = at::empty({1, kVocabulary});
  const at::Tensor cos = at::ones({tokens, kHeadSize / 2});
  const at::Tensor sin = at::zeros({tokens, kHeadSize / 2});
  const at::Tensor q = qkv.narrow(1, 0, kHeads);
  const at::Tensor qk = qkv.narrow(1, 0, kHeads + kKvHeads);
  const at::Tensor k = qkv.narrow(1, kHeads, kKvHeads);
  const at::Tensor v = qkv.narrow(1, kHeads + kKvHeads, kKvHeads);
  const at::Tensor attended_rows = attended.view({tokens, kHidden});
  const at::Tensor last = normed.narrow(0, tokens - 1, 1);
  for (auto _ : state) {
    hidden.fill_(0.5);
    for (int64_t i = 0; i < kLayers; ++i) {
      const Layer& layer = model.layers[static_cast<size_t>(i)];
      batch.page_table = table.select(1, i);
      RmsNormOut(hidden, norm, 1e-5, normed);
      LinearOut(normed, layer.qkv, Precision::kFast, qkv_rows);
      RotaryOut(qk, cos, sin, qk);
      KvWrite(k, v, batch, pool);
      PagedAttentionOut(q, pool, batch, 0.125, attended);
      LinearOut(attended_rows, layer.output, Precision::kFast, hidden, std::nullopt, true);
      RmsNormOut(hidden, norm, 1e-5, normed);
      LinearSiluMulOut(normed, layer.gate_up, Precision::kFast, gated);
      LinearOut(gated, layer.down, Precision::kFast, hidden, std::nullopt, true);
    }
    RmsNormOut(hidden, norm, 1e-5, normed);
    LinearOut(last, model.head, Precision::kFast, logits);
  }
  state.counters["tokens/s"] = benchmark::Counter(static_cast<double>(state.iterations() * tokens),
                                                  benchmark::Counter::kIsRate);
}

// Repeated, because the machine may be shared: the largest tokens/s is the machine's own.
double Largest(const std::vector<double>& values) {
  return *std::max_element(values.begin(), values.end());
}
double Smallest(const std::vector<double>& values) {
  return *std::min_element(values.begin(), values.end());
}
BENCHMARK(BM_Step)
    ->Args({1, 128, 1})
    ->Args({1, 128, 2})
    ->Args({1, 4096, 2})
    ->Args({512, 0, 1})
    ->Args({512, 0, 2})
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond)
    ->MinTime(0.05)
    ->Repetitions(9)
    ->ReportAggregatesOnly()
    ->ComputeStatistics("max", Largest)
    ->ComputeStatistics("min", Smallest);

}  // namespace
}  // namespace mneme::kernels
