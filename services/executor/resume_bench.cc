// Time to the first token of a session of 8k tokens on the default model, through the real stubs:
// from text, from hot pages, and from a snapshot that comes over the network; and what storing a
// turn adds after its last token. The memory service is the tests' one: what is measured is the
// executor and the wire, not Redis. Argument "compute": 0 float32, 1 bfloat16.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <numeric>

#include "absl/time/clock.h"
#include "common/rpc/client.h"
#include "common/rpc/server.h"
#include "services/executor/executor_service.h"
#include "services/executor/fake_memory_service.h"
#include "services/executor/loaded_model.h"
#include "services/executor/test_requests.h"
#include "tests/support/median.h"

namespace mneme::executor {
namespace {

using ::mneme::testing::Median;

constexpr int64_t kSessionTokens = 8000;

struct System {
  explicit System(bool fast) {
    memory_server = *rpc::Server::Start({.listen = "127.0.0.1:0"}, {&memory});
    v1::ExecutorConfig config = DefaultModelConfig(fast ? "bfloat16" : "float32");
    auto model = LoadedModel::Load(config);
    if (!model.ok()) return;
    EngineOptions options;
    options.scheduler.kv_budget_bytes = int64_t{1} << 30;
    options.sessions.model_fingerprint = "bench";
    // So that every restore comes over the network.
    options.sessions.link.host_cache_bytes = 0;
    options.sessions.close_timeout = std::chrono::seconds(30);
    options.memory_service =
        memory::v1::MemoryService::NewStub(rpc::ConnectTo(memory_server->address()));
    v1::GetModelResponse description = (*model)->Describe();
    engine = *Engine::Create(*std::move(model), options, &metrics);
    service.SetEngine(engine.get(), description);
    server = *rpc::Server::Start({.listen = "127.0.0.1:0"}, {&service});
    stub = v1::ExecutorService::NewStub(rpc::ConnectTo(server->address()));
  }

  struct Result {
    double first_token_seconds = 0;
    double end_seconds = 0;  // after the last token
    v1::GenerateResponse last;
    std::vector<int32_t> ids;
  };

  Result Generate(const v1::GenerateRequest& request) {
    Result result;
    grpc::ClientContext context;
    const absl::Time begin = absl::Now();
    absl::Time token = begin;
    const auto reader = stub->Generate(&context, request);
    v1::GenerateResponse response;
    while (reader->Read(&response)) {
      if (response.token_ids_size() > 0) {
        token = absl::Now();
        if (result.ids.empty()) result.first_token_seconds = absl::ToDoubleSeconds(token - begin);
      }
      result.ids.insert(result.ids.end(), response.token_ids().begin(), response.token_ids().end());
      result.last = response;
    }
    result.end_seconds = absl::ToDoubleSeconds(absl::Now() - token);
    if (!reader->Finish().ok()) result.ids.clear();
    return result;
  }

  void Forget() {
    v1::ForgetMemoryRequest request;
    request.set_tenant("t");
    grpc::ClientContext context;
    v1::ForgetMemoryResponse response;
    stub->ForgetMemory(&context, request, &response);
  }

  FakeMemoryService memory;
  std::unique_ptr<rpc::Server> memory_server;
  metrics::Registry registry;
  ExecutorMetrics metrics{registry};
  std::unique_ptr<Engine> engine;
  ExecutorServiceImpl service;
  std::unique_ptr<rpc::Server> server;
  std::unique_ptr<v1::ExecutorService::Stub> stub;
};

System* SystemFor(benchmark::State& state) {
  static System* systems[2] = {};
  System*& system = systems[state.range(0)];
  if (system == nullptr) system = new System(state.range(0) == 1);
  if (system->engine == nullptr) state.SkipWithError("the default model is missing");
  return system->engine == nullptr ? nullptr : system;
}

v1::GenerateRequest Request(int64_t num_tokens, int max_tokens, uint64_t version) {
  v1::GenerateRequest request;
  for (int64_t i = 0; i < num_tokens; ++i) {
    request.add_prompt_ids(static_cast<int32_t>(100 + i * 131 % 20000));
  }
  request.mutable_sampling()->set_max_tokens(max_tokens);
  request.mutable_sampling()->set_temperature(0);
  request.mutable_sampling()->set_ignore_eos(true);
  request.set_tenant("t");
  request.set_session_id("s");
  request.set_lease_token(1);
  request.set_parent_version(version);
  request.set_snapshot_version(version);
  return request;
}

// One iteration: the session's first turn from text, the next one from hot pages, and the same from
// the snapshot.
void BM_Resume(benchmark::State& state) {
  System* const system = SystemFor(state);
  if (system == nullptr) return;
  std::vector<double> text, hot, restored, end;
  for (auto _ : state) {
    system->Forget();
    const System::Result first = system->Generate(Request(kSessionTokens, 2, 0));
    text.push_back(first.first_token_seconds);
    if (!system->memory.Commit("t", "s", 1, first.last.snapshot_id())) {
      state.SkipWithError(("not stored: " + first.last.receipt().not_persisted_reason()).c_str());
      return;
    }
    for (int i = 0; i < 5; ++i) {
      v1::GenerateRequest next = Request(kSessionTokens, 16, 1);
      next.mutable_prompt_ids()->Add(first.ids.begin(), first.ids.end());
      for (int j = 0; j < 20; ++j) next.add_prompt_ids(50 + i + j);
      system->Forget();
      const System::Result cold = system->Generate(next);
      restored.push_back(cold.first_token_seconds);
      end.push_back(cold.end_seconds);
      if (cold.last.receipt().restored_tokens() != kSessionTokens + 1) {
        state.SkipWithError("not restored");
        return;
      }
      const System::Result warm = system->Generate(next);
      hot.push_back(warm.first_token_seconds);
      state.counters["fetched_MB"] = static_cast<double>(cold.last.receipt().bytes_moved()) / 1e6;
      state.counters["restore_ms"] = cold.last.receipt().ms().at("restore");
    }
  }
  state.counters["text_s"] = Median(text);
  state.counters["restored_s"] = Median(restored);
  state.counters["hot_s"] = Median(hot);
  state.counters["times_faster"] = Median(text) / Median(restored);
  state.counters["after_last_token_ms"] = 1000 * Median(end);
}

// What a turn of a short session waits for its snapshot after its last token.
void BM_TurnEnd(benchmark::State& state) {
  System* const system = SystemFor(state);
  if (system == nullptr) return;
  system->Forget();
  std::vector<double> ends;
  v1::GenerateRequest request = Request(100, 20, 0);
  request.set_session_id("short");
  uint64_t version = 0;
  for (auto _ : state) {
    const System::Result result = system->Generate(request);
    ends.push_back(1000 * result.end_seconds);
    if (!system->memory.Commit("t", "short", ++version, result.last.snapshot_id())) {
      state.SkipWithError("not stored");
      return;
    }
    request.mutable_prompt_ids()->Add(result.ids.begin(), result.ids.end());
    for (int i = 0; i < 10; ++i) request.add_prompt_ids(200 + i);
    request.set_parent_version(version);
    request.set_snapshot_version(version);
  }
  state.counters["p50_ms"] = Median(ends);
  state.counters["max_ms"] = *std::max_element(ends.begin(), ends.end());
}

BENCHMARK(BM_TurnEnd)->ArgNames({"compute"})->Arg(0)->Arg(1)->UseRealTime()->Iterations(25);
BENCHMARK(BM_Resume)->ArgNames({"compute"})->Arg(1)->Arg(0)->UseRealTime()->Iterations(1);

}  // namespace
}  // namespace mneme::executor
