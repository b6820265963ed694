// Time to sample one token: rows (tokens) per second, by way of sampling and vocabulary size.
#include <benchmark/benchmark.h>

#include <random>

#include "services/executor/sampler.h"

namespace mneme::executor {
namespace {

void BM_Sample(benchmark::State& state, const SamplingParams& params) {
  const int64_t vocab_size = state.range(0);
  std::mt19937_64 random(1);
  std::normal_distribution<float> normal(0, 2.5);
  std::vector<float> logits(vocab_size);
  for (float& logit : logits) logit = normal(random);
  Sampler sampler(std::make_shared<SamplingParams>(params), 7);
  SamplerScratch scratch;
  int64_t position = 0;
  for (auto _ : state) {
    benchmark::DoNotOptimize(sampler.Sample(absl::MakeSpan(logits), position++, &scratch));
  }
  state.SetItemsProcessed(state.iterations());
}

void BM_Score(benchmark::State& state) {
  std::mt19937_64 random(1);
  std::normal_distribution<float> normal(0, 2.5);
  std::vector<float> logits(state.range(0));
  for (float& logit : logits) logit = normal(random);
  SamplerScratch scratch;
  for (auto _ : state) {
    benchmark::DoNotOptimize(ScoreToken(logits, 17, 5, &scratch));
  }
  state.SetItemsProcessed(state.iterations());
}

BENCHMARK_CAPTURE(BM_Sample, greedy, SamplingParams{.temperature = 0})->Arg(49152)->Arg(151936);
BENCHMARK_CAPTURE(BM_Sample, plain, SamplingParams{})->Arg(49152)->Arg(151936);
BENCHMARK_CAPTURE(BM_Sample, top_k, SamplingParams{.top_k = 40})->Arg(49152)->Arg(151936);
BENCHMARK_CAPTURE(BM_Sample, top_p, SamplingParams{.temperature = 0.7, .top_p = 0.9})
    ->Arg(49152)
    ->Arg(151936);
BENCHMARK_CAPTURE(BM_Sample, min_p, SamplingParams{.min_p = 0.05})->Arg(49152)->Arg(151936);
BENCHMARK(BM_Score)->Arg(49152)->Arg(151936);

}  // namespace
}  // namespace mneme::executor
