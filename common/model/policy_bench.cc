// What memory policies cost: a prompt of the default model (or of $MNEME_MODEL) under one policy
// and under `full`, turn by turn in the same run, so that a busy machine slows both. Counter
// "over_full" is the ratio of their times. Budgets are far above the prompt ("observe": statistics
// alone) or a quarter of it ("drop": dropping, too, and less to attend to).
#include <benchmark/benchmark.h>

#include <chrono>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "common/memory/eviction_policy.h"
#include "common/memory/kv_sequence.h"
#include "common/memory/namm_policy.h"
#include "common/model/bench_engine.h"

namespace mneme::model {
namespace {

using Policy = std::shared_ptr<const memory::MemoryPolicy>;

constexpr int64_t kStep = 512;

// Seconds of reading `num_tokens` tokens; below 0: an error.
double Read(BenchEngine& engine, const Policy& policy, int64_t num_tokens) {
  std::vector<int32_t> tokens;
  for (int64_t i = 0; i < num_tokens; ++i) {
    tokens.push_back(static_cast<int32_t>((i * 7919 + 17) % 30000));
  }
  memory::KvSequence sequence(engine.pool.get(), engine.model->kv_shape(), policy);
  if (!sequence.Attach(*engine.tables).ok()) return -1;
  const auto begin = std::chrono::steady_clock::now();
  while (sequence.num_tokens() < num_tokens) {
    const int64_t done = sequence.num_tokens();
    const int64_t size = policy->LayOut(sequence, num_tokens - done, kStep).num_tokens;
    const bool is_done = sequence.Reserve(size).ok() &&
                         engine.model
                             ->Forward({{.sequence = &sequence,
                                         .tokens = absl::MakeConstSpan(tokens).subspan(done, size),
                                         .num_logits = 0}})
                             .ok() &&
                         sequence.Forget().ok();
    if (!is_done) return -1;
  }
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

void Compare(benchmark::State& state, const Policy& policy) {
  BenchEngine* const engine = SharedBenchEngine();
  if (engine == nullptr) return state.SkipWithError("the default model is missing");
  double with_policy = 0;
  double full = 0;
  for (auto _ : state) {
    const double seconds = Read(*engine, policy, state.range(0));
    const double other = Read(*engine, memory::FullPolicy(), state.range(0));
    if (seconds < 0 || other < 0) return state.SkipWithError("a step failed");
    state.SetIterationTime(seconds);
    with_policy += seconds;
    full += other;
  }
  state.counters["over_full"] = with_policy / full;
}

Policy Namm() {
  memory::NammConfig config;
  config.network.input_size = 25;
  // Keeps everything: the cost of features and scores at full length.
  const std::vector<float> parameters(memory::BamNetwork::NumParameters(config.network), 0.0f);
  return *memory::NammPolicy(std::make_shared<const memory::NammModel>(
      *memory::NammModel::Create(config, parameters, {})));
}

void Register(const std::string& name, Policy policy) {
  benchmark::RegisterBenchmark(
      name.c_str(),
      [policy = std::move(policy)](benchmark::State& state) { Compare(state, policy); })
      ->Arg(2048)
      ->Unit(benchmark::kMillisecond)
      ->UseManualTime()
      ->Iterations(2);
}

[[maybe_unused]] const bool kRegistered = [] {
  const memory::EvictionBudget all{.tokens = 1 << 20};
  const memory::EvictionBudget quarter{.tokens = 512};
  Register("Prefill/full", memory::FullPolicy());
  Register("Prefill/window", *memory::WindowPolicy(4, 508));
  Register("Prefill/h2o/observe", *memory::H2oPolicy({.budget = all, .interval = kStep}));
  Register("Prefill/snapkv/observe", *memory::SnapKvPolicy({.budget = all, .interval = kStep}));
  Register("Prefill/namm/observe", Namm());
  Register("Prefill/h2o/drop", *memory::H2oPolicy({.budget = quarter}));
  Register("Prefill/snapkv/drop", *memory::SnapKvPolicy({.budget = quarter}));
  Register("Prefill/l2norm/drop", *memory::L2NormPolicy({.budget = quarter}));
  return true;
}();

}  // namespace
}  // namespace mneme::model
