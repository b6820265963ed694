// The products of SmolLM2-135M by kernels/linear.h. Weights: enough copies that the caches of a
// core cannot hold them, as in a model of 30 layers.
#include <benchmark/benchmark.h>

#include "kernels/linear.h"
#include "kernels/test_support.h"

namespace mneme::kernels {
namespace {

constexpr int64_t kWeightBytes = int64_t{64} << 20;

void RunLinear(benchmark::State& state, WeightType type, Precision precision, int64_t n, int64_t k,
               int64_t m) {
  std::mt19937 random(1);
  const at::Tensor data = testing::RandomWeight(random, type, 16, k).repeat({n / 16});
  std::vector<PackedLinear> layers;
  for (int64_t bytes = 0; bytes < kWeightBytes; bytes += data.numel()) {
    layers.push_back(PackedLinear::Create({{type, n, data.clone(), {}}}, k));
  }
  const at::Tensor x = testing::RandomFloats(random, {m, k});
  const at::Tensor out = at::empty({m, n}, at::kFloat);
  size_t next = 0;
  for (auto _ : state) {
    LinearOut(x, layers[next], precision, out);
    next = (next + 1) % layers.size();
  }
  const auto runs = static_cast<double>(state.iterations());
  state.counters["weight_bytes/s"] = benchmark::Counter(
      runs * static_cast<double>(layers[0].num_bytes()), benchmark::Counter::kIsRate);
  state.counters["mac/s"] =
      benchmark::Counter(runs * static_cast<double>(m * n * k), benchmark::Counter::kIsRate);
}

// Arguments: weight type, exact (0) or fast (1), N, K, M, threads.
void BM_Linear(benchmark::State& state) {
  SetNumThreads(static_cast<int>(state.range(5)));
  RunLinear(state, static_cast<WeightType>(state.range(0)), static_cast<Precision>(state.range(1)),
            state.range(2), state.range(3), state.range(4));
}

void Sizes(benchmark::internal::Benchmark* bench) {
  const auto q4_1 = static_cast<int64_t>(WeightType::kQ4_1);
  const auto q8_0 = static_cast<int64_t>(WeightType::kQ8_0);
  for (const int64_t threads : {1, 2}) {
    for (const int64_t m : {1, 2, 4, 8, 16, 64, 512}) {
      bench->Args({q4_1, 1, 3072, 576, m, threads});
      bench->Args({q4_1, 1, 576, 1536, m, threads});
    }
    for (const int64_t m : {1, 16}) bench->Args({q8_0, 1, 49152, 576, m, threads});
    for (const int64_t m : {1, 64}) bench->Args({q4_1, 0, 3072, 576, m, threads});
    for (const WeightType type : {WeightType::kQ8_0, WeightType::kQ4_0, WeightType::kQ5_1,
                                  WeightType::kF16, WeightType::kBF16, WeightType::kF32}) {
      for (const int64_t m : {1, 64}) {
        bench->Args({static_cast<int64_t>(type), 1, 3072, 576, m, threads});
      }
    }
    for (const WeightType type : {WeightType::kQ4K, WeightType::kQ5K, WeightType::kQ6K}) {
      for (const int64_t m : {1, 64}) {
        bench->Args({static_cast<int64_t>(type), 1, 3072, 512, m, threads});
      }
    }
  }
}
BENCHMARK(BM_Linear)->Apply(Sizes)->UseRealTime()->MinTime(0.05);

// What an operator call costs beside its work.
void BM_SmallestLinear(benchmark::State& state) {
  SetNumThreads(1);
  RunLinear(state, WeightType::kQ4_1, Precision::kFast, 16, 32, 1);
}
BENCHMARK(BM_SmallestLinear);

// What handing work to the other threads costs.
void BM_ForkJoin(benchmark::State& state) {
  SetNumThreads(static_cast<int>(state.range(0)));
  for (auto _ : state) {
    ParallelFor(state.range(0), [](int64_t i) { benchmark::DoNotOptimize(i); });
  }
}
BENCHMARK(BM_ForkJoin)->Arg(1)->Arg(2)->UseRealTime();

}  // namespace
}  // namespace mneme::kernels
