// Latency of taking a lease and of committing a turn, on a real redis-server of this machine.
// Arguments: tokens in the turn; 1 if every write waits for the disk (appendfsync always).
#include <benchmark/benchmark.h>

#include "absl/strings/str_cat.h"
#include "services/memory/store_fixture.h"

namespace mneme::memory {
namespace {

// Redis and a store on it; ends the process where Redis cannot be started.
struct Bench {
  explicit Bench(bool sync)
      : server(*testing::RedisServer::Start({.append_fsync = sync ? "always" : "everysec"})),
        redis(server->address()) {}

  std::unique_ptr<testing::RedisServer> server;
  RedisUnderTest redis;
};

v1::CommitTurnRequest TurnOf(uint64_t token, uint64_t parent, int64_t num_tokens) {
  v1::CommitTurnRequest request =
      CommitOf("s", token, parent, std::string(num_tokens * 4, 'x'), absl::StrCat("r", parent));
  for (int64_t i = 2; i < num_tokens; ++i) {
    request.mutable_turn()->add_token_ids(static_cast<int32_t>(i * 31));
  }
  return request;
}

void BM_CommitTurn(benchmark::State& state) {
  Bench bench(state.range(1) == 1);
  SessionStore& store = bench.redis.store();
  v1::AcquireLeaseRequest acquire = AcquireOf("s");
  acquire.set_ttl_ms(600'000);
  const uint64_t token = store.AcquireLease(acquire, Soon())->lease_token();
  uint64_t parent = 0;
  int64_t bytes = 0;
  for (auto _ : state) {
    const v1::CommitTurnRequest request = TurnOf(token, parent, state.range(0));
    const auto response = store.CommitTurn(request, Soon());
    if (!response.ok()) {
      state.SkipWithError(response.status().ToString().c_str());
      break;
    }
    bytes += static_cast<int64_t>(request.ByteSizeLong());
    parent = response->version();
  }
  state.SetBytesProcessed(bytes);
  state.SetItemsProcessed(static_cast<int64_t>(parent));
}
BENCHMARK(BM_CommitTurn)->ArgsProduct({{16, 512, 8192}, {0, 1}})->UseRealTime();

// What every turn of a chat costs beside the model: lease with history, commit, release.
void BM_Turn(benchmark::State& state) {
  Bench bench(state.range(1) == 1);
  SessionStore& store = bench.redis.store();
  v1::AcquireLeaseRequest acquire = AcquireOf("s");
  acquire.set_with_history(true);
  // A session of 20 turns, made anew when it has grown, so that the history's size stays put.
  uint64_t parent = 0;
  for (auto _ : state) {
    if (parent == 40) {
      state.PauseTiming();
      v1::DeleteSessionRequest remove;
      remove.set_tenant("t");
      remove.set_session_id("s");
      store.DeleteSession(remove, Soon()).IgnoreError();
      state.ResumeTiming();
    }
    const auto lease = store.AcquireLease(acquire, Soon());
    if (!lease.ok()) {
      state.SkipWithError(lease.status().ToString().c_str());
      break;
    }
    parent = lease->session().version();
    v1::CommitTurnRequest commit = TurnOf(lease->lease_token(), parent, state.range(0));
    commit.set_release(true);
    const auto response = store.CommitTurn(commit, Soon());
    if (!response.ok()) {
      state.SkipWithError(response.status().ToString().c_str());
      break;
    }
    parent = response->version();
  }
  state.SetItemsProcessed(state.iterations());
}
BENCHMARK(BM_Turn)->ArgsProduct({{512}, {0, 1}})->UseRealTime();

}  // namespace
}  // namespace mneme::memory
