// Tokens per second of the engine called in process, on the default model: decoding with 1, 4 and
// 16 streams, and reading prompts. Argument "compute": 0 float32, 1 bfloat16.
#include <ATen/Functions.h>
#include <benchmark/benchmark.h>

#include "services/executor/engine.h"
#include "services/executor/loaded_model.h"
#include "services/executor/test_requests.h"

namespace mneme::executor {
namespace {

struct Bench {
  explicit Bench(bool fast) {
    v1::ExecutorConfig config = DefaultModelConfig(fast ? "bfloat16" : "float32");
    auto model = LoadedModel::Load(config);
    if (!model.ok()) return;
    EngineOptions options;
    options.scheduler.kv_budget_bytes = int64_t{1} << 30;
    engine = *Engine::Create(*std::move(model), options, &metrics);
  }
  metrics::Registry registry;
  ExecutorMetrics metrics{registry};
  std::unique_ptr<Engine> engine;
};

Engine* EngineFor(benchmark::State& state, bool fast) {
  static Bench* benches[2] = {};
  if (benches[fast] == nullptr) benches[fast] = new Bench(fast);
  if (benches[fast]->engine == nullptr) state.SkipWithError("the default model is missing");
  return benches[fast]->engine.get();
}

WorkSpec Spec(int64_t prompt_size, int64_t num_tokens, int salt) {
  WorkSpec spec;
  for (int64_t i = 0; i < prompt_size; ++i) {
    spec.prompt.push_back(static_cast<int32_t>(100 + (i * 131 + salt * 17) % 20000));
  }
  SamplingParams sampling{.temperature = 0, .max_tokens = num_tokens};
  spec.sampling = std::make_shared<SamplingParams>(sampling);
  spec.policy = memory::FullPolicy();
  return spec;
}

int64_t CountTokens(TokenStream& stream) {
  int64_t count = 0;
  for (StreamEvent event; stream.Next(&event);) {
    count += static_cast<int64_t>(event.token_ids.size());
  }
  return count;
}

void BM_Decode(benchmark::State& state) {
  Engine* const engine = EngineFor(state, state.range(0) == 1);
  if (engine == nullptr) return;
  int64_t tokens = 0;
  for (auto _ : state) {
    std::vector<std::shared_ptr<TokenStream>> streams;
    for (int i = 0; i < state.range(1); ++i) streams.push_back(*engine->Submit(Spec(128, 64, i)));
    // Reading the prompts is not what is measured.
    state.PauseTiming();
    StreamEvent event;
    for (const auto& stream : streams) {
      stream->Next(&event);
      tokens -= static_cast<int64_t>(event.token_ids.size());
    }
    tokens += static_cast<int64_t>(streams.size());
    state.ResumeTiming();
    for (const auto& stream : streams) tokens += CountTokens(*stream);
  }
  state.SetItemsProcessed(tokens);
}

void BM_Prefill(benchmark::State& state) {
  Engine* const engine = EngineFor(state, state.range(0) == 1);
  if (engine == nullptr) return;
  for (auto _ : state) CountTokens(**engine->Submit(Spec(512, 1, 1)));
  state.SetItemsProcessed(state.iterations() * 512);
}

// A model of the default one's shape that computes nothing: what is left is the engine.
class IdleModel final : public StepModel {
 public:
  IdleModel() {
    limits_ = {.vocab_size = 49152, .context_length = 8192};
    shape_ = {.num_layers = 30, .num_kv_heads = 3, .head_size = 64};
    logits_ = at::zeros({64, 49152}, at::kFloat);
    logits_.select(1, 7).fill_(3);
  }
  const ModelLimits& limits() const override { return limits_; }
  const memory::KvShape& kv_shape() const override { return shape_; }
  memory::KvPoolOptions PoolOptions(int64_t budget_bytes) const override {
    return {.head_size = 64, .budget_bytes = budget_bytes};
  }
  absl::StatusOr<at::Tensor> Forward(absl::Span<const model::SequenceStep> steps) override {
    int64_t rows = 0;
    for (const model::SequenceStep& step : steps) {
      step.sequence->Advance(static_cast<int64_t>(step.tokens.size()));
      rows += step.num_logits;
    }
    return logits_.narrow(0, 0, rows);
  }

 private:
  ModelLimits limits_;
  memory::KvShape shape_;
  at::Tensor logits_;
};

// Items are steps: the engine's own time per step with so many streams.
void BM_StepOverhead(benchmark::State& state) {
  metrics::Registry registry;
  ExecutorMetrics metrics(registry);
  EngineOptions options;
  options.scheduler.kv_budget_bytes = int64_t{2} << 30;
  const auto engine = *Engine::Create(std::make_unique<IdleModel>(), options, &metrics);
  for (auto _ : state) {
    std::vector<std::shared_ptr<TokenStream>> streams;
    for (int i = 0; i < state.range(0); ++i) streams.push_back(*engine->Submit(Spec(4, 200, i)));
    for (const auto& stream : streams) CountTokens(*stream);
  }
  state.SetItemsProcessed(static_cast<int64_t>(metrics.steps.Value()));
}

BENCHMARK(BM_StepOverhead)->Arg(1)->Arg(16)->Arg(64)->UseRealTime();
BENCHMARK(BM_Prefill)->ArgNames({"compute"})->Arg(0)->Arg(1)->UseRealTime()->MinTime(3);
BENCHMARK(BM_Decode)
    ->ArgNames({"compute", "streams"})
    ->ArgsProduct({{0, 1}, {1, 4, 16}})
    ->UseRealTime()
    ->MinTime(3);

}  // namespace
}  // namespace mneme::executor
