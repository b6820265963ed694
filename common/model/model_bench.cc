// Tokens per second of the default model, or of the one that $MNEME_MODEL names: a prompt of 512
// tokens in one step, and decoding one token at a time after 128. Threads: $MNEME_THREADS, else as
// many as processors.
#include <benchmark/benchmark.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "common/memory/kv_sequence.h"
#include "common/memory/memory_policy.h"
#include "common/model/bench_engine.h"

namespace mneme::model {
namespace {

std::vector<int32_t> Tokens(size_t count) {
  std::vector<int32_t> tokens(count);
  for (size_t i = 0; i < count; ++i) tokens[i] = static_cast<int32_t>((i * 7919 + 17) % 30000);
  return tokens;
}

// Feeds tokens to every sequence in one step, with logits of the last one each.
bool Step(benchmark::State& state, BenchEngine& engine,
          std::vector<std::unique_ptr<memory::KvSequence>>& sequences,
          const std::vector<int32_t>& tokens) {
  std::vector<SequenceStep> steps;
  for (const auto& sequence : sequences) {
    const absl::Status room = sequence->Reserve(static_cast<int64_t>(tokens.size()));
    if (!room.ok()) {
      state.SkipWithError(std::string(room.message()).c_str());
      return false;
    }
    steps.push_back({.sequence = sequence.get(), .tokens = tokens});
  }
  const auto logits = engine.model->Forward(steps);
  if (!logits.ok()) state.SkipWithError(logits.status().ToString().c_str());
  return logits.ok();
}

std::vector<std::unique_ptr<memory::KvSequence>> NewSequences(BenchEngine& engine, int64_t count) {
  std::vector<std::unique_ptr<memory::KvSequence>> sequences;
  for (int64_t i = 0; i < count; ++i) {
    sequences.push_back(std::make_unique<memory::KvSequence>(
        engine.pool.get(), engine.model->kv_shape(), memory::FullPolicy()));
    if (!sequences.back()->Attach(*engine.tables).ok()) std::abort();
  }
  return sequences;
}

void Prefill(benchmark::State& state, ComputeType compute) {
  auto engine = OpenBenchEngine(compute);
  if (!engine.ok()) return state.SkipWithError(engine.status().ToString().c_str());
  const std::vector<int32_t> tokens = Tokens(static_cast<size_t>(state.range(0)));
  for (auto _ : state) {
    auto sequences = NewSequences(*engine, 1);
    if (!Step(state, *engine, sequences, tokens)) return;
  }
  state.counters["tokens/s"] = benchmark::Counter(
      static_cast<double>(state.iterations() * state.range(0)), benchmark::Counter::kIsRate);
}

void Decode(benchmark::State& state, ComputeType compute) {
  auto engine = OpenBenchEngine(compute);
  if (!engine.ok()) return state.SkipWithError(engine.status().ToString().c_str());
  auto sequences = NewSequences(*engine, state.range(0));
  if (!Step(state, *engine, sequences, Tokens(128))) return;
  for (auto _ : state) {
    if (!Step(state, *engine, sequences, {42})) return;
    if (sequences[0]->num_tokens() < 256) continue;
    state.PauseTiming();
    for (const auto& sequence : sequences) (void)sequence->Truncate(128);
    state.ResumeTiming();
  }
  state.counters["tokens/s"] = benchmark::Counter(
      static_cast<double>(state.iterations() * state.range(0)), benchmark::Counter::kIsRate);
}

// Arguments: tokens of the prompt; sequences that decode together.
BENCHMARK_CAPTURE(Prefill, float32, ComputeType::kFloat32)
    ->Arg(512)
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();
BENCHMARK_CAPTURE(Prefill, bfloat16, ComputeType::kBFloat16)
    ->Arg(512)
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();
BENCHMARK_CAPTURE(Decode, float32, ComputeType::kFloat32)
    ->Arg(1)
    ->Arg(16)
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();
BENCHMARK_CAPTURE(Decode, bfloat16, ComputeType::kBFloat16)
    ->Arg(1)
    ->Arg(16)
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();

}  // namespace
}  // namespace mneme::model
