// What the way through the services costs: tokens per second of 16 streams through the gateway of
// a `mneme up`, over gRPC and over HTTP, beside those of the executor's own engine called in
// process, on the default model, the same prompts and the executor's default settings. Rounds
// alternate, so that a machine that becomes slower does so for all; the ratio is the median of the
// rounds' own. The client shares the processors with what it measures.
#include <benchmark/benchmark.h>
#include <grpcpp/client_context.h>
#include <grpcpp/completion_queue.h>
#include <httplib.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <optional>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"
#include "mneme/gateway/v1/chat.grpc.pb.h"
#include "services/executor/engine.h"
#include "services/executor/loaded_model.h"
#include "services/executor/test_requests.h"
#include "tests/support/median.h"
#include "tests/support/mneme_up.h"

namespace mneme {
namespace {

using ::mneme::testing::Median;

namespace v1 = gateway::v1;

constexpr int kStreams = 16;
constexpr int kPromptTokens = 64;
constexpr int kNewTokens = 128;
constexpr int kRounds = 7;

std::vector<int32_t> Prompt(int stream) {
  std::vector<int32_t> ids;
  ids.reserve(kPromptTokens);
  for (int i = 0; i < kPromptTokens; ++i) ids.push_back(100 + (i * 131 + stream * 17) % 20000);
  return ids;
}

// Each returns the number of tokens that came; kStreams * kNewTokens if all went well.

int64_t RunEngine(executor::Engine& engine) {
  std::atomic<int64_t> tokens{0};
  std::vector<std::jthread> readers;
  for (int i = 0; i < kStreams; ++i) {
    executor::WorkSpec spec;
    spec.prompt = Prompt(i);
    executor::SamplingParams sampling{.temperature = 0, .max_tokens = kNewTokens};
    spec.sampling = std::make_shared<executor::SamplingParams>(sampling);  // no end tokens
    spec.policy = memory::FullPolicy();
    auto stream = engine.Submit(std::move(spec));
    if (!stream.ok()) return 0;
    readers.emplace_back([&tokens, stream = *std::move(stream)] {
      for (executor::StreamEvent event; stream->Next(&event);) {
        tokens += static_cast<int64_t>(event.token_ids.size());
      }
    });
  }
  readers.clear();
  return tokens;
}

// All streams are read by one thread, the cheapest client that gRPC allows.
int64_t RunGrpc(v1::ChatService::Stub& stub) {
  struct Stream {
    grpc::ClientContext context;
    std::unique_ptr<grpc::ClientAsyncReader<v1::CompleteResponse>> reader;
    v1::CompleteResponse response;
    grpc::Status status;
    bool finishing = false;
  };
  grpc::CompletionQueue queue;
  std::vector<Stream> streams(kStreams);
  for (int i = 0; i < kStreams; ++i) {
    v1::CompleteRequest request;
    for (const int32_t id : Prompt(i)) request.add_prompt_ids(id);
    request.mutable_sampling()->set_temperature(0);
    request.mutable_sampling()->set_max_tokens(kNewTokens);
    request.mutable_sampling()->set_ignore_eos(true);
    streams[i].reader = stub.AsyncComplete(&streams[i].context, request, &queue, &streams[i]);
  }
  int64_t tokens = 0;
  int open = kStreams;
  void* tag = nullptr;
  for (bool ok = false; open > 0 && queue.Next(&tag, &ok);) {
    Stream& stream = *static_cast<Stream*>(tag);
    if (stream.finishing) {
      --open;
    } else if (ok) {
      tokens += stream.response.event().usage().completion_tokens();
      stream.reader->Read(&stream.response, tag);
    } else {
      stream.finishing = true;
      stream.reader->Finish(&stream.status, tag);
    }
  }
  return tokens;
}

int64_t RunHttp(const std::string& address) {
  std::atomic<int64_t> tokens{0};
  std::vector<std::jthread> clients;
  clients.reserve(kStreams);
  for (int i = 0; i < kStreams; ++i) {
    clients.emplace_back([&, i] {
      std::string tail;
      httplib::Request request;
      request.method = "POST";
      request.path = "/v1/completions";
      request.set_header("Content-Type", "application/json");
      request.body =
          absl::StrCat("{\"prompt\":[", absl::StrJoin(Prompt(i), ","),
                       "],\"temperature\":0,\"max_tokens\":", kNewTokens,
                       ",\"ignore_eos\":true,\"stream\":true,\"stream_options\":{\"include_usage\""
                       ":true}}");
      request.content_receiver = [&](const char* data, size_t size, uint64_t, uint64_t) {
        tail.append(data, size);
        // What it ends with is all that is looked at.
        if (tail.size() > 4096) tail.erase(0, tail.size() - 2048);
        return true;
      };
      httplib::Client client("http://" + address);
      client.set_read_timeout(120);
      const httplib::Result result = client.send(request);
      constexpr absl::string_view kKey = "\"completion_tokens\":";
      const size_t at = tail.rfind(std::string(kKey));
      if (!result || result->status != 200 || at == std::string::npos) return;
      tokens += std::atoi(tail.c_str() + at + kKey.size());
    });
  }
  clients.clear();
  return tokens;
}

// Processor time of a process, from /proc; 0 where it is not there.
double CpuSeconds(int pid) {
  std::ifstream file(absl::StrCat("/proc/", pid, "/stat"));
  std::string line;
  std::getline(file, line);
  // Fields 14 and 15; the name before may hold anything but ends with the last parenthesis.
  const size_t name_end = line.rfind(')');
  if (name_end == std::string::npos) return 0;
  std::istringstream fields(line.substr(name_end + 1));
  std::string skipped;
  for (int i = 3; i < 14; ++i) fields >> skipped;
  double user = 0;
  double system = 0;
  fields >> user >> system;
  return (user + system) / static_cast<double>(sysconf(_SC_CLK_TCK));
}

// Runs one round; nothing if not all tokens came.
template <typename Run>
std::optional<double> TokensPerSecond(Run run) {
  const auto begin = std::chrono::steady_clock::now();
  if (run() != kStreams * kNewTokens) return std::nullopt;
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
  return kStreams * kNewTokens / took.count();
}

void BM_SixteenStreams(benchmark::State& state) {
  executor::v1::ExecutorConfig config = executor::DefaultModelConfig("auto");
  config.set_kv_budget_bytes(0);
  auto model = executor::LoadedModel::Load(config);
  if (!model.ok()) return state.SkipWithError("the default model is missing");
  executor::EngineOptions options;
  options.scheduler.kv_budget_bytes = executor::KvBudget(config, **model);
  metrics::Registry registry;
  executor::ExecutorMetrics metrics(registry);
  const auto engine = executor::Engine::Create(*std::move(model), options, &metrics);
  const auto up = testing::MnemeUp::Start();
  if (!engine.ok()) return state.SkipWithError(engine.status().ToString().c_str());
  if (!up.ok()) return state.SkipWithError(up.status().ToString().c_str());
  const auto stub = v1::ChatService::NewStub((*up)->channel());

  const auto gateway = (*up)->ServiceOf("gateway");
  if (!gateway.ok()) return state.SkipWithError(gateway.status().ToString().c_str());

  double gateway_seconds = 0;
  std::vector<double> in_process;
  std::vector<double> grpc;
  std::vector<double> http;
  std::vector<double> grpc_ratio;
  std::vector<double> http_ratio;
  for (auto _ : state) {
    for (int round = -1; round < kRounds; ++round) {
      const auto a = TokensPerSecond([&] { return RunEngine(**engine); });
      const double before = CpuSeconds(gateway->pid());
      const auto b = TokensPerSecond([&] { return RunGrpc(*stub); });
      const auto c = TokensPerSecond([&] { return RunHttp((*up)->http()); });
      const double after = CpuSeconds(gateway->pid());
      if (!a || !b || !c) return state.SkipWithError("not all tokens came");
      if (round < 0) continue;  // warms up
      gateway_seconds += after - before;
      in_process.push_back(*a);
      grpc.push_back(*b);
      http.push_back(*c);
      grpc_ratio.push_back(*b / *a);
      http_ratio.push_back(*c / *a);
    }
  }
  state.counters["engine_tokens_per_s"] = Median(in_process);
  state.counters["grpc_tokens_per_s"] = Median(grpc);
  state.counters["http_tokens_per_s"] = Median(http);
  state.counters["grpc_ratio"] = Median(grpc_ratio);
  state.counters["http_ratio"] = Median(http_ratio);
  state.counters["gateway_cpu_us_per_token"] =
      1e6 * gateway_seconds / (2.0 * kRounds * kStreams * kNewTokens);
}

BENCHMARK(BM_SixteenStreams)->Iterations(1)->UseRealTime()->Unit(benchmark::kSecond);

}  // namespace
}  // namespace mneme
