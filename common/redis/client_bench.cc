// Large values through the client, beside the least that any program can do: the same bytes written
// and read by hand on a blocking socket. On a busy machine look at the column CPU: it is the work
// of this process alone.
#include <arpa/inet.h>
#include <benchmark/benchmark.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cstdlib>
#include <iostream>
#include <memory>

#include "absl/strings/str_cat.h"
#include "common/redis/client.h"
#include "tests/support/redis_server.h"

namespace mneme::redis {
namespace {

constexpr int kNumValues = 64;
constexpr size_t kValueBytes = 1 << 20;

void Check(bool ok, absl::string_view what) {
  if (ok) return;
  std::cerr << "client_bench: " << what << "\n";
  std::exit(1);
}

const std::string& Address() {
  static const std::unique_ptr<testing::RedisServer> server = [] {
    // Without its disk: the transfer is what is measured.
    auto started = testing::RedisServer::Start({.config_lines = {"appendonly no"}});
    Check(started.ok(), started.status().message());
    return *std::move(started);
  }();
  return server->address();
}

std::string KeyOf(int i) { return absl::StrCat("value:", i); }

std::vector<std::string> Values() {
  std::vector<std::string> values(kNumValues);
  uint64_t state = 1;
  for (std::string& value : values) {
    value.resize(kValueBytes);
    for (char& byte : value) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      byte = static_cast<char>(state >> 56);
    }
  }
  return values;
}

// A blocking connection without any care for errors and time.
class RawConnection {
 public:
  RawConnection() : fd_(socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    const std::string text = Address();
    address.sin_port = htons(static_cast<uint16_t>(std::atoi(text.c_str() + text.rfind(':') + 1)));
    const int yes = 1;
    setsockopt(fd_, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof(yes));
    Check(connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0, "connect");
  }
  ~RawConnection() { close(fd_); }

  void Write(absl::string_view bytes, int flags = 0) {
    while (!bytes.empty()) {
      const ssize_t count = send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL | flags);
      Check(count > 0, "send");
      bytes.remove_prefix(count);
    }
  }
  void Read(char* buffer, size_t size) {
    while (size > 0) {
      const ssize_t count = recv(fd_, buffer, size, 0);
      Check(count > 0, "recv");
      buffer += count;
      size -= count;
    }
  }

 private:
  int fd_;
};

void CountBytes(benchmark::State& state) {
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations()) * kNumValues * kValueBytes);
}

void BM_RawSet(benchmark::State& state) {
  const std::vector<std::string> values = Values();
  RawConnection connection;
  std::string answers(5 * kNumValues, '\0');
  for (auto _ : state) {
    for (int i = 0; i < kNumValues; ++i) {
      const std::string key = KeyOf(i);
      connection.Write(absl::StrCat("*3\r\n$3\r\nSET\r\n$", key.size(), "\r\n", key, "\r\n$",
                                    kValueBytes, "\r\n"),
                       MSG_MORE);
      connection.Write(values[i], MSG_MORE);
      connection.Write("\r\n", i + 1 < kNumValues ? MSG_MORE : 0);
    }
    connection.Read(answers.data(), answers.size());
  }
  CountBytes(state);
}

// With one buffer for all values (0), or keeping each in a string of its own (1) as a client must.
void BM_RawGet(benchmark::State& state) {
  Client client({.address = Address()});
  const std::vector<std::string> values = Values();
  for (int i = 0; i < kNumValues; ++i) Check(client.Run({"SET", KeyOf(i), values[i]}).ok(), "SET");
  RawConnection connection;
  const std::string head = absl::StrCat("$", kValueBytes, "\r\n");
  std::string answer(head.size() + kValueBytes + 2, '\0');
  for (auto _ : state) {
    std::string request;
    for (int i = 0; i < kNumValues; ++i) {
      const std::string key = KeyOf(i);
      absl::StrAppend(&request, "*2\r\n$3\r\nGET\r\n$", key.size(), "\r\n", key, "\r\n");
    }
    connection.Write(request);
    std::vector<std::string> kept(kNumValues);
    for (int i = 0; i < kNumValues; ++i) {
      std::string& into = state.range(0) == 1 ? kept[i] : answer;
      into.resize(answer.size());
      connection.Read(into.data(), into.size());
    }
  }
  CountBytes(state);
}

void BM_ClientSet(benchmark::State& state) {
  const std::vector<std::string> values = Values();
  Client client({.address = Address()});
  for (auto _ : state) {
    std::vector<Command> commands;
    commands.reserve(kNumValues);
    for (int i = 0; i < kNumValues; ++i)
      commands.push_back({"SET", KeyOf(i), Argument::Borrow(values[i])});
    const auto replies = client.RunPipeline(commands);
    Check(replies.ok() && replies->back().text() == "OK", "SET");
  }
  CountBytes(state);
}

void BM_ClientGet(benchmark::State& state) {
  Client client({.address = Address()});
  const std::vector<std::string> values = Values();
  for (int i = 0; i < kNumValues; ++i) Check(client.Run({"SET", KeyOf(i), values[i]}).ok(), "SET");
  for (auto _ : state) {
    std::vector<Command> commands;
    for (int i = 0; i < kNumValues; ++i) commands.push_back({"GET", KeyOf(i)});
    const auto replies = client.RunPipeline(commands);
    Check(replies.ok() && replies->back().text() == values.back(), "GET");
  }
  CountBytes(state);
}

void BM_ClientPing(benchmark::State& state) {
  Client client({.address = Address()});
  for (auto _ : state) Check(client.Ping().ok(), "PING");
}

BENCHMARK(BM_RawSet)->UseRealTime()->Unit(benchmark::kMillisecond);
BENCHMARK(BM_ClientSet)->UseRealTime()->Unit(benchmark::kMillisecond);
BENCHMARK(BM_RawGet)->Arg(0)->Arg(1)->UseRealTime()->Unit(benchmark::kMillisecond);
BENCHMARK(BM_ClientGet)->UseRealTime()->Unit(benchmark::kMillisecond);
BENCHMARK(BM_ClientPing)->UseRealTime()->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace mneme::redis
