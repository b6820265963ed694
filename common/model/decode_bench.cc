// Milliseconds that one more token takes behind a history of so many tokens: `full` beside `window`
// and `beacon` with an eighth of it, all on the default model (or $MNEME_MODEL) and step by step in
// turn, so that a busy machine slows all of them. The table stands in docs/memory-policies.md.
//
//   model_bench --benchmark_filter=Decode
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/memory/beacon_policy.h"
#include "common/memory/kv_sequence.h"
#include "common/model/bench_engine.h"
#include "tests/support/median.h"

namespace mneme::model {
namespace {

using ::mneme::testing::Median;
using Policy = std::shared_ptr<const memory::MemoryPolicy>;

constexpr int64_t kStep = 512;
constexpr int kTokens = 24;
constexpr int64_t kShare = 8;

// Reads tokens until the sequence has `num_tokens`; false: an error.
bool Read(BenchEngine& engine, memory::KvSequence& sequence, int64_t num_tokens) {
  while (sequence.num_tokens() < num_tokens) {
    const int64_t waiting = num_tokens - sequence.num_tokens();
    const memory::ChunkLayout layout = sequence.policy().LayOut(sequence, waiting, kStep);
    std::vector<int32_t> tokens;
    for (int64_t i = 0; i < layout.num_tokens; ++i) {
      tokens.push_back(static_cast<int32_t>(((sequence.num_tokens() + i) * 7919 + 17) % 30000));
    }
    const absl::Status reserved =
        layout.pass == nullptr
            ? sequence.Reserve(layout.num_tokens)
            : sequence.Reserve(layout.pass->room(), layout.pass->first_rewritten);
    const bool is_done = reserved.ok() &&
                         engine.model
                             ->Forward({{.sequence = &sequence,
                                         .tokens = tokens,
                                         .num_logits = waiting == layout.num_tokens ? 1 : 0,
                                         .pass = layout.pass.get()}})
                             .ok() &&
                         sequence.Forget().ok();
    if (!is_done) return false;
  }
  return true;
}

Policy Beacon(const Model& model, int64_t history) {
  memory::BeaconSettings settings = model.beacon_settings();
  settings.config.window = settings.config.stride = std::min<int64_t>(1024, history / 2);
  settings.config.ratios = {kShare};
  settings.config.parallel_windows = 1;
  auto policy = memory::BeaconPolicy(std::move(settings));
  return policy.ok() ? *std::move(policy) : nullptr;
}

// Argument: tokens of history.
void Decode(benchmark::State& state) {
  BenchEngine* const engine = SharedBenchEngine();
  if (engine == nullptr) return state.SkipWithError("the default model is missing");
  const int64_t history = state.range(0);
  const std::vector<std::pair<std::string, Policy>> policies = {
      {"full", memory::FullPolicy()},
      {"window", *memory::WindowPolicy(4, history / kShare - 4)},
      {"beacon", Beacon(*engine->model, history)}};
  std::vector<std::vector<double>> times(policies.size());
  for (auto _ : state) {
    std::vector<std::unique_ptr<memory::KvSequence>> sequences;
    for (const auto& [name, policy] : policies) {
      if (policy == nullptr) return state.SkipWithError(("no policy " + name).c_str());
      sequences.push_back(std::make_unique<memory::KvSequence>(engine->pool.get(),
                                                               engine->model->kv_shape(), policy));
      if (!sequences.back()->Attach(*engine->tables).ok() ||
          !Read(*engine, *sequences.back(), history)) {
        return state.SkipWithError(("a step failed under " + name).c_str());
      }
    }
    for (int i = 0; i < kTokens; ++i) {
      for (size_t k = 0; k < sequences.size(); ++k) {
        const auto begin = std::chrono::steady_clock::now();
        if (!Read(*engine, *sequences[k], sequences[k]->num_tokens() + 1)) {
          return state.SkipWithError("a step failed");
        }
        times[k].push_back(
            std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin)
                .count());
      }
    }
    state.SetIterationTime(Median(times[0]) / 1000);
  }
  const double full = Median(times[0]);
  for (size_t k = 0; k < policies.size(); ++k) {
    const double median = Median(times[k]);
    state.counters[policies[k].first + "_ms"] = median;
    if (k > 0) state.counters[absl::StrCat("full_over_", policies[k].first)] = full / median;
  }
}

BENCHMARK(Decode)
    ->Arg(1024)
    ->Arg(2048)
    ->Arg(4096)
    ->Arg(8192)
    ->Arg(16384)
    ->Unit(benchmark::kMillisecond)
    ->UseManualTime()
    ->Iterations(1);

}  // namespace
}  // namespace mneme::model
