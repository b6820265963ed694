// Attention of one layer of SmolLM2-135M: 9 query heads, 3 kv heads, head size 64.
#include <benchmark/benchmark.h>

#include <numeric>

#include "kernels/paged_attention.h"
#include "kernels/test_support.h"

namespace mneme::kernels {
namespace {

constexpr int64_t kHeads = 3;
constexpr int64_t kGroup = 3;
constexpr int64_t kHeadSize = 64;

// Arguments: sequences, new tokens of each, entries before, bfloat16 pages, threads.
void BM_PagedAttention(benchmark::State& state) {
  const int64_t sequences = state.range(0);
  const int64_t tokens = state.range(1);
  const int64_t entries = state.range(2);
  SetNumThreads(static_cast<int>(state.range(4)));
  std::mt19937 random(1);
  const int64_t max_pages = (entries + tokens + kPageEntries - 1) / kPageEntries;
  const int64_t pages = sequences * kHeads * max_pages;
  const at::Tensor pool = testing::RandomFloats(random, {pages, PageElements(kHeadSize)})
                              .to(state.range(3) != 0 ? at::kBFloat16 : at::kFloat);
  AttentionBatch batch;
  batch.seq_slot = at::arange(sequences, at::kInt);
  batch.query_start = at::arange(sequences + 1, at::kInt).mul_(tokens);
  batch.page_table = at::arange(pages, at::kInt).view({sequences, kHeads, max_pages});
  batch.lengths = at::full({sequences, kHeads}, entries, at::kInt);
  const at::Tensor q =
      testing::RandomFloats(random, {sequences * tokens, kHeads * kGroup, kHeadSize});
  const at::Tensor out = at::empty_like(q);
  for (auto _ : state) PagedAttentionOut(q, pool, batch, 0.125, out);
  const auto runs = static_cast<double>(state.iterations());
  state.counters["tokens/s"] = benchmark::Counter(runs * static_cast<double>(sequences * tokens),
                                                  benchmark::Counter::kIsRate);
  state.counters["kv_bytes/s"] =
      benchmark::Counter(runs * static_cast<double>(pool.nbytes()), benchmark::Counter::kIsRate);
  const double seen = static_cast<double>(entries) + static_cast<double>(tokens + 1) / 2;
  state.counters["mac/s"] = benchmark::Counter(
      runs * 2 * static_cast<double>(sequences * tokens * kHeads * kGroup * kHeadSize) * seen,
      benchmark::Counter::kIsRate);
}

void Sizes(benchmark::internal::Benchmark* bench) {
  for (const int64_t threads : {1, 2}) {
    for (const int64_t half : {0, 1}) {
      for (const int64_t entries : {128, 512, 4096, 16384}) {
        bench->Args({1, 1, entries, half, threads});
      }
      bench->Args({64, 1, 512, half, threads});
      bench->Args({1, 512, 0, half, threads});
      bench->Args({1, 512, 4096, half, threads});
    }
  }
}
BENCHMARK(BM_PagedAttention)->Apply(Sizes)->UseRealTime()->MinTime(0.05);

}  // namespace
}  // namespace mneme::kernels
