// How fast snapshots go into Redis and come back, through the real stub on the loopback interface,
// on a real redis-server that waits for its disk at every write (as `mneme up` sets it), beside
// plain pipelined SET and GET of the same bytes in the same run. How fast they go to the disk tier
// and come back from there. And what a fork costs.
#include <benchmark/benchmark.h>
#include <fcntl.h>
#include <unistd.h>

#include <ctime>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "absl/base/casts.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/rpc/client.h"
#include "common/rpc/grpc_status.h"
#include "common/rpc/server.h"
#include "services/memory/memory_service.h"
#include "services/memory/store_fixture.h"
#include "tests/support/median.h"

namespace mneme::memory {
namespace {

using ::mneme::testing::Median;

constexpr size_t kChunkBytes = 1 << 20;

// Redis, a store on it and the service before it; ends the process where they cannot be started.
struct Bench {
  // `redis_budget_bytes` other than 0: it has a disk tier.
  explicit Bench(int64_t redis_budget_bytes = 0)
      : redis_server(*testing::RedisServer::Start({.append_fsync = "always"})),
        redis(redis_server->address(), StoreOptions{.redis_budget_bytes = redis_budget_bytes},
              redis_budget_bytes == 0 ? std::nullopt : std::optional<int64_t>(0)),
        service(redis.store(), MemoryPlans({}), metrics),
        server(*rpc::Server::Start({.listen = "127.0.0.1:0"}, {&service})),
        stub(v1::MemoryService::NewStub(rpc::ConnectTo(server->address()))) {}

  SessionStore& store() { return redis.store(); }

  int64_t UsedMemory() {
    const std::string info = redis.client().Run({"INFO", "memory"})->text();
    const size_t at = info.find("used_memory:") + 12;
    int64_t bytes = 0;
    (void)absl::SimpleAtoi(info.substr(at, info.find('\r', at) - at), &bytes);
    return bytes;
  }

  std::unique_ptr<testing::RedisServer> redis_server;
  RedisUnderTest redis;
  // For all bytes in one pipeline, which may take longer than a service's calls do.
  redis::Client plain{{.address = redis_server->address(), .command_timeout = absl::Minutes(1)}};
  metrics::Registry registry;
  MemoryMetrics metrics{registry};
  MemoryServiceImpl service;
  std::unique_ptr<rpc::Server> server;
  std::unique_ptr<v1::MemoryService::Stub> stub;
};

// The parts of a stream that stages these payloads.
std::vector<v1::StageSnapshotRequest> PartsOf(const std::string& session_id, uint64_t token,
                                              const std::vector<std::string>& payloads,
                                              snapshot::v1::Manifest manifest = {}) {
  std::vector<v1::StageSnapshotRequest> parts(1);
  parts[0].mutable_header()->set_tenant("t");
  parts[0].mutable_header()->set_session_id(session_id);
  parts[0].mutable_header()->set_lease_token(token);
  manifest.set_format_version(1);
  for (const std::string& payload : payloads) {
    v1::ChunkPayload& chunk = *parts.emplace_back().mutable_chunk();
    chunk = ChunkOf(payload, kSerialsPerChunk * manifest.chunks_size());
    *manifest.add_chunks() = chunk.chunk();
  }
  manifest.set_num_tokens(kSerialsPerChunk * manifest.chunks_size());
  *parts.emplace_back().mutable_manifest() = std::move(manifest);
  return parts;
}

absl::StatusOr<v1::StageSnapshotResponse> Send(Bench& bench,
                                               const std::vector<v1::StageSnapshotRequest>& parts) {
  grpc::ClientContext context;
  rpc::Prepare(trace::ContextFrom("", ""), absl::Now() + absl::Minutes(1), &context);
  v1::StageSnapshotResponse response;
  const auto writer = bench.stub->StageSnapshot(&context, &response);
  for (const v1::StageSnapshotRequest& part : parts) {
    if (!writer->Write(part)) break;
  }
  writer->WritesDone();
  const absl::Status status = rpc::FromGrpc(writer->Finish());
  if (!status.ok()) return status;
  return response;
}

absl::StatusOr<int64_t> Receive(Bench& bench, const std::string& session_id) {
  grpc::ClientContext context;
  rpc::Prepare(trace::ContextFrom("", ""), absl::Now() + absl::Minutes(1), &context);
  v1::FetchSnapshotRequest request;
  request.set_tenant("t");
  request.set_session_id(session_id);
  const auto reader = bench.stub->FetchSnapshot(&context, request);
  v1::FetchSnapshotResponse part;
  int64_t bytes = 0;
  while (reader->Read(&part)) bytes += static_cast<int64_t>(part.chunk().payload().size());
  const absl::Status status = rpc::FromGrpc(reader->Finish());
  if (!status.ok()) return status;
  return bytes;
}

uint64_t LeaseOf(Bench& bench, const std::string& session_id) {
  v1::AcquireLeaseRequest acquire = AcquireOf(session_id);
  acquire.set_ttl_ms(600'000);
  return bench.store().AcquireLease(acquire, Soon())->lease_token();
}

void Delete(Bench& bench, const std::string& session_id) {
  v1::DeleteSessionRequest remove;
  remove.set_tenant("t");
  remove.set_session_id(session_id);
  bench.store().DeleteSession(remove, Soon()).IgnoreError();
}

// Of this process: client and service, not Redis.
double CpuSeconds() { return static_cast<double>(std::clock()) / CLOCKS_PER_SEC; }

double SecondsSince(absl::Time start) { return absl::ToDoubleSeconds(absl::Now() - start); }

// Argument: chunks of 1 MiB. Each round does all four, one after the other; medians are shown.
void BM_SaveAndRestore(benchmark::State& state) {
  Bench bench;
  std::vector<std::string> payloads;
  for (int64_t i = 0; i < state.range(0); ++i) {
    payloads.push_back(PayloadOf(absl::StrCat("chunk ", i), kChunkBytes));
  }
  const double megabytes = static_cast<double>(payloads.size() * kChunkBytes) / 1e6;
  std::vector<redis::Command> sets;
  std::vector<redis::Command> gets;
  redis::Command remove = {"UNLINK"};
  for (size_t i = 0; i < payloads.size(); ++i) {
    sets.push_back({"SET", absl::StrCat("plain-", i), payloads[i]});
    gets.push_back({"GET", absl::StrCat("plain-", i)});
    remove.push_back(absl::StrCat("plain-", i));
  }
  std::vector<double> set_seconds;
  std::vector<double> get_seconds;
  std::vector<double> save_seconds;
  std::vector<double> restore_seconds;
  double set_cpu = 0;
  double get_cpu = 0;
  double save_cpu = 0;
  double restore_cpu = 0;
  const auto fail = [&state](const absl::Status& status) {
    state.SkipWithError(status.ToString().c_str());
  };
  for (auto _ : state) {
    double cpu = CpuSeconds();
    absl::Time start = absl::Now();
    auto replies = bench.plain.RunPipeline(sets, absl::Now() + absl::Minutes(1));
    set_seconds.push_back(SecondsSince(start));
    set_cpu += CpuSeconds() - cpu;
    if (!replies.ok()) return fail(replies.status());
    cpu = CpuSeconds();
    start = absl::Now();
    replies = bench.plain.RunPipeline(gets, absl::Now() + absl::Minutes(1));
    get_seconds.push_back(SecondsSince(start));
    get_cpu += CpuSeconds() - cpu;
    if (!replies.ok()) return fail(replies.status());
    replies->clear();
    (void)bench.plain.Run(remove);

    const uint64_t token = LeaseOf(bench, "s");
    const std::vector<v1::StageSnapshotRequest> parts = PartsOf("s", token, payloads);
    cpu = CpuSeconds();
    start = absl::Now();
    const auto staged = Send(bench, parts);
    save_seconds.push_back(SecondsSince(start));
    save_cpu += CpuSeconds() - cpu;
    if (!staged.ok()) return fail(staged.status());
    v1::CommitTurnRequest commit = CommitOf("s", token, 0, "x");
    commit.set_snapshot_id(staged->snapshot_id());
    const auto committed = bench.store().CommitTurn(commit, Soon());
    if (!committed.ok()) return fail(committed.status());
    if (!committed->snapshot_lost_reason().empty()) {
      return fail(absl::InternalError(committed->snapshot_lost_reason()));
    }
    cpu = CpuSeconds();
    start = absl::Now();
    const auto received = Receive(bench, "s");
    restore_seconds.push_back(SecondsSince(start));
    restore_cpu += CpuSeconds() - cpu;
    if (!received.ok()) return fail(received.status());
    Delete(bench, "s");
  }
  state.counters["set_MB/s"] = megabytes / Median(set_seconds);
  state.counters["save_MB/s"] = megabytes / Median(save_seconds);
  state.counters["save_ratio"] = Median(set_seconds) / Median(save_seconds);
  state.counters["get_MB/s"] = megabytes / Median(get_seconds);
  state.counters["restore_MB/s"] = megabytes / Median(restore_seconds);
  const auto per_round_ms = benchmark::Counter::kAvgIterations;
  state.counters["set_cpu_ms"] = benchmark::Counter(1000 * set_cpu, per_round_ms);
  state.counters["save_cpu_ms"] = benchmark::Counter(1000 * save_cpu, per_round_ms);
  state.counters["get_cpu_ms"] = benchmark::Counter(1000 * get_cpu, per_round_ms);
  state.counters["restore_cpu_ms"] = benchmark::Counter(1000 * restore_cpu, per_round_ms);
  state.counters["restore_ratio"] = Median(get_seconds) / Median(restore_seconds);
}
BENCHMARK(BM_SaveAndRestore)->Arg(181)->Unit(benchmark::kMillisecond)->UseRealTime()->Iterations(7);

// A chunk of normally distributed bfloat16 numbers, as keys and values nearly are: Zstandard finds
// less in them than in text, and more than in random bytes.
std::string NumbersOf(int64_t seed) {
  std::mt19937 random(static_cast<uint32_t>(seed));
  std::normal_distribution<float> normal;
  std::string payload(kChunkBytes, '\0');
  for (size_t i = 0; i < payload.size(); i += 2) {
    const auto bits = absl::bit_cast<uint32_t>(normal(random));
    payload[i] = static_cast<char>(bits >> 16);
    payload[i + 1] = static_cast<char>(bits >> 24);
  }
  return payload;
}

// Has the kernel forget what it holds of files in a folder, so that they are read from the disk.
void ForgetPages(const std::string& folder) {
  for (const std::string& path : FilesIn(folder)) {
    const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) continue;
    posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    close(fd);
  }
}

// Argument: chunks of 1 MiB, all of one session. Each round: fetch from Redis, demote, fetch from
// disk with the kernel's copies and without. Medians are shown.
void BM_DiskTier(benchmark::State& state) {
  Bench bench(/*redis_budget_bytes=*/1);
  std::vector<std::string> payloads;
  for (int64_t i = 0; i < state.range(0); ++i) payloads.push_back(NumbersOf(i));
  const double megabytes = static_cast<double>(payloads.size() * kChunkBytes) / 1e6;
  std::vector<double> redis_seconds;
  std::vector<double> demote_seconds;
  std::vector<double> warm_seconds;
  std::vector<double> cold_seconds;
  double stored_bytes = 0;
  const auto fail = [&state](const absl::Status& status) {
    state.SkipWithError(status.ToString().c_str());
  };
  for (auto _ : state) {
    const uint64_t token = LeaseOf(bench, "s");
    const auto staged = Send(bench, PartsOf("s", token, payloads));
    if (!staged.ok()) return fail(staged.status());
    v1::CommitTurnRequest commit = CommitOf("s", token, 0, "x");
    commit.set_snapshot_id(staged->snapshot_id());
    commit.set_release(true);
    const auto committed = bench.store().CommitTurn(commit, Soon());
    if (!committed.ok()) return fail(committed.status());
    const auto fetch = [&](std::vector<double>& seconds) {
      const absl::Time start = absl::Now();
      const auto received = Receive(bench, "s");
      seconds.push_back(SecondsSince(start));
      return received.status();
    };
    if (const absl::Status status = fetch(redis_seconds); !status.ok()) return fail(status);
    const absl::Time start = absl::Now();
    const absl::Status swept = bench.store().Sweep(absl::Now() + absl::Minutes(1));
    demote_seconds.push_back(SecondsSince(start));
    if (!swept.ok()) return fail(swept);
    stored_bytes = static_cast<double>(bench.redis.disk().bytes());
    if (stored_bytes < 1e6) return fail(absl::InternalError("nothing was demoted"));
    if (const absl::Status status = fetch(warm_seconds); !status.ok()) return fail(status);
    ForgetPages(bench.redis.disk().path());
    if (const absl::Status status = fetch(cold_seconds); !status.ok()) return fail(status);
    Delete(bench, "s");
  }
  state.counters["redis_MB/s"] = megabytes / Median(redis_seconds);
  state.counters["demote_MB/s"] = megabytes / Median(demote_seconds);
  state.counters["disk_MB/s"] = megabytes / Median(warm_seconds);
  state.counters["cold_disk_MB/s"] = megabytes / Median(cold_seconds);
  state.counters["stored_ratio"] = stored_bytes / (megabytes * 1e6);
}
BENCHMARK(BM_DiskTier)->Arg(181)->Unit(benchmark::kMillisecond)->UseRealTime()->Iterations(5);

// What a turn adds after its last token: its own chunks (200 tokens of the default model) and the
// manifest are staged, the turn is committed. The session has 8192 tokens before it.
void BM_CommitOfATurn(benchmark::State& state) {
  Bench bench;
  std::vector<std::string> payloads;
  payloads.reserve(181);
  for (int i = 0; i < 181; ++i) {
    payloads.push_back(PayloadOf(absl::StrCat("chunk ", i), kChunkBytes));
  }
  const uint64_t token = LeaseOf(bench, "s");
  auto staged = Send(bench, PartsOf("s", token, payloads));
  std::vector<double> stage_ms;
  std::vector<double> commit_ms;
  uint64_t parent = 0;
  for (auto _ : state) {
    if (!staged.ok()) return state.SkipWithError(staged.status().ToString().c_str());
    v1::CommitTurnRequest commit = CommitOf("s", token, parent, absl::StrCat("turn ", parent));
    commit.set_snapshot_id(staged->snapshot_id());
    absl::Time start = absl::Now();
    const auto committed = bench.store().CommitTurn(commit, Soon());
    if (!committed.ok()) return state.SkipWithError(committed.status().ToString().c_str());
    commit_ms.push_back(1000 * SecondsSince(start));
    parent = committed->version();
    state.PauseTiming();
    std::vector<std::string> own;
    own.reserve(5);
    for (int i = 0; i < 5; ++i) {
      own.push_back(PayloadOf(absl::StrCat("turn ", parent, " chunk ", i), 900'000));
    }
    const auto parts = PartsOf("s", token, own, staged->manifest());
    state.ResumeTiming();
    start = absl::Now();
    staged = Send(bench, parts);
    stage_ms.push_back(1000 * SecondsSince(start));
  }
  state.counters["stage_p50_ms"] = Median(stage_ms);
  state.counters["commit_p50_ms"] = Median(commit_ms);
}
BENCHMARK(BM_CommitOfATurn)->Unit(benchmark::kMillisecond)->UseRealTime()->Iterations(30);

// Argument: turns of the session that is forked.
void BM_Fork(benchmark::State& state) {
  Bench bench;
  const uint64_t token = LeaseOf(bench, "s");
  for (int64_t turn = 0; turn < state.range(0); ++turn) {
    const auto committed = bench.store().CommitTurn(
        CommitOf("s", token, static_cast<uint64_t>(turn), std::string(800, 'x')), Soon());
    if (!committed.ok()) return state.SkipWithError(committed.status().ToString().c_str());
  }
  const int64_t before = bench.UsedMemory();
  int64_t count = 0;
  for (auto _ : state) {
    v1::ForkSessionRequest fork;
    fork.set_tenant("t");
    fork.set_session_id("s");
    fork.set_new_session_id(absl::StrCat("fork-", count++));
    const auto forked = bench.store().ForkSession(fork, Soon());
    if (!forked.ok()) return state.SkipWithError(forked.status().ToString().c_str());
  }
  state.counters["redis_bytes"] =
      static_cast<double>(bench.UsedMemory() - before) / static_cast<double>(count);
}
BENCHMARK(BM_Fork)
    ->Arg(40)
    ->Arg(1000)
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime()
    ->Iterations(50);

}  // namespace
}  // namespace mneme::memory
