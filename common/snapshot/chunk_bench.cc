// Bytes per second out of pages into chunks and back, with the shape of the default model. Argument
// "encoding" as in snapshot.proto; "shift": how far chunks begin from a page.
#include <benchmark/benchmark.h>

#include "common/snapshot/test_memory.h"

namespace mneme::snapshot {
namespace {

const memory::KvShape kShape{.num_layers = 30, .num_kv_heads = 3, .head_size = 64};
constexpr int64_t kTokens = 2048;

struct Bench {
  explicit Bench(v1::Encoding encoding) {
    const at::ScalarType dtype = encoding == v1::ENCODING_FLOAT32 ? at::kFloat : at::kBFloat16;
    pool = MakePool(64, dtype, 3 * 90 * kTokens / 16);
    sequence.emplace(pool.get(), kShape, memory::FullPolicy());
    Grow(*sequence, kTokens);
    pool->tensor().fill_(0.5);
  }
  std::unique_ptr<memory::KvPool> pool;
  std::optional<memory::KvSequence> sequence;
};

int64_t BytesOf(const Stored& stored) {
  int64_t bytes = 0;
  for (const std::string& payload : stored.payloads) bytes += static_cast<int64_t>(payload.size());
  return bytes;
}

void BM_Export(benchmark::State& state) {
  const auto encoding = static_cast<v1::Encoding>(state.range(0));
  Bench bench(encoding);
  int64_t bytes = 0;
  for (auto _ : state) {
    Stored stored;
    Store(*bench.sequence, state.range(1), kTokens, encoding, &stored);
    bytes += BytesOf(stored);
  }
  state.SetBytesProcessed(bytes);
}

void BM_Import(benchmark::State& state) {
  const auto encoding = static_cast<v1::Encoding>(state.range(0));
  Bench bench(encoding);
  Stored stored;
  Store(*bench.sequence, state.range(1), kTokens, encoding, &stored);
  int64_t bytes = 0;
  for (auto _ : state) {
    for (size_t i = 0; i < stored.chunks.size(); ++i) {
      const absl::Status status =
          ImportChunk(stored.chunks[i], stored.payloads[i], &*bench.sequence);
      if (!status.ok()) state.SkipWithError("import failed");
    }
    bytes += BytesOf(stored);
  }
  state.SetBytesProcessed(bytes);
}

BENCHMARK(BM_Export)->ArgNames({"encoding", "shift"})->ArgsProduct({{1, 2, 3, 4}, {0, 5}});
BENCHMARK(BM_Import)->ArgNames({"encoding", "shift"})->ArgsProduct({{1, 2, 3, 4}, {0, 5}});

}  // namespace
}  // namespace mneme::snapshot
