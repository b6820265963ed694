// Many streams at once through the whole system: texts stay what they are alone, cancelled ones
// leave, and an overload is turned away quickly without touching what was accepted.
#include <grpcpp/client_context.h>
#include <grpcpp/completion_queue.h>
#include <grpcpp/create_channel.h>
#include <httplib.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <fstream>
#include <latch>
#include <limits>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/time.h"
#include "common/config/config.h"
#include "common/rpc/client.h"
#include "common/sync/short_turns.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "mneme/gateway/v1/chat.grpc.pb.h"
#include "tests/support/mneme_up.h"
#include "tests/support/time_limit.h"

namespace mneme {
namespace {

using std::chrono::steady_clock;
namespace v1 = gateway::v1;

struct Answer {
  std::string text;
  grpc::Status status;
  steady_clock::duration took{};
};

v1::ChatRequest Request(int index) {
  constexpr const char* kTopics[] = {"the sea",          "an old clock", "bread", "a long journey",
                                     "the number seven", "winter",       "glass", "two brothers"};
  v1::ChatRequest request;
  auto* message = request.add_messages();
  message->set_role("user");
  std::string text = absl::StrCat("Write about ", kTopics[index % 8], ", note ", index, ".");
  // Mixed lengths: every fourth prompt is several hundred tokens long.
  const int repeats = index % 4 == 3 ? 12 + index % 16 : index % 3;
  for (int i = 0; i < repeats; ++i) {
    absl::StrAppend(&text, " Remember that remark number ", i, " said: ", kTopics[(index + i) % 8],
                    " is where the story of the traveller began, and he did not know it.");
  }
  message->set_content(text);
  request.mutable_sampling()->set_temperature(0);
  request.mutable_sampling()->set_max_tokens(8 + (index * 7) % 25);
  return request;
}

Answer Ask(v1::ChatService::Stub& stub, const v1::ChatRequest& request) {
  Answer answer;
  const auto begin = steady_clock::now();
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::minutes(10));
  const auto reader = stub.Chat(&context, request);
  v1::ChatResponse event;
  while (reader->Read(&event)) answer.text += event.text_delta();
  answer.status = reader->Finish();
  answer.took = steady_clock::now() - begin;
  return answer;
}

std::vector<Answer> AskAll(v1::ChatService::Stub& stub,
                           const std::vector<v1::ChatRequest>& requests) {
  std::vector<Answer> answers(requests.size());
  std::latch start(static_cast<std::ptrdiff_t>(requests.size()));
  std::vector<std::jthread> threads;
  for (size_t i = 0; i < requests.size(); ++i) {
    threads.emplace_back([&, i] {
      start.arrive_and_wait();
      answers[i] = Ask(stub, requests[i]);
    });
  }
  threads.clear();
  return answers;
}

// The same with one thread for all: many that wait in gRPC would take the processors from what is
// measured beside them.
std::vector<Answer> AskAllFromOneThread(v1::ChatService::Stub& stub,
                                        const std::vector<v1::ChatRequest>& requests) {
  struct Stream {
    Answer* answer = nullptr;
    grpc::ClientContext context;
    std::unique_ptr<grpc::ClientAsyncReader<v1::ChatResponse>> reader;
    v1::ChatResponse event;
    bool finishing = false;
  };
  std::vector<Answer> answers(requests.size());
  std::vector<Stream> streams(requests.size());
  grpc::CompletionQueue queue;
  for (size_t i = 0; i < requests.size(); ++i) {
    streams[i].answer = &answers[i];
    streams[i].reader = stub.AsyncChat(&streams[i].context, requests[i], &queue, &streams[i]);
  }
  size_t open = requests.size();
  void* tag = nullptr;
  for (bool ok = false; open > 0 && queue.Next(&tag, &ok);) {
    Stream& stream = *static_cast<Stream*>(tag);
    if (stream.finishing) {
      --open;
    } else if (ok) {
      stream.answer->text += stream.event.text_delta();
      stream.reader->Read(&stream.event, tag);
    } else {
      stream.finishing = true;
      stream.reader->Finish(&stream.answer->status, tag);
    }
  }
  return answers;
}

// A gauge of the executor, from its metrics port; -1 where it is not there.
double Gauge(const testing::MnemeUp& up, const std::string& name) {
  const auto service = up.ServiceOf("executor");
  if (!service.ok()) return -1;
  httplib::Client client("http://" + service->metrics());
  const auto response = client.Get("/metrics");
  if (!response) return -1;
  for (const absl::string_view line : absl::StrSplit(response->body, '\n')) {
    double value = 0;
    if (absl::StartsWith(line, name + " ") &&
        absl::SimpleAtod(line.substr(name.size() + 1), &value)) {
      return value;
    }
  }
  return -1;
}

// Resident bytes of a process, from /proc.
int64_t ResidentBytes(int pid) {
  std::ifstream file(absl::StrCat("/proc/", pid, "/statm"));
  int64_t total = 0;
  int64_t resident = 0;
  file >> total >> resident;
  return resident * 4096;
}

template <typename Condition>
bool Eventually(std::chrono::milliseconds limit, Condition condition) {
  const auto end =
      steady_clock::now() + absl::ToChronoMilliseconds(testing::TimeLimit(absl::FromChrono(limit)));
  while (!condition()) {
    if (steady_clock::now() > end) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return true;
}

TEST(ConcurrencyTest, SixtyFourStreamsGiveTheTextsOfOneAtATimeRunsFiveTimes) {
  auto up = testing::MnemeUp::Start({});
  ASSERT_TRUE(up.ok()) << up.status();
  const auto stub = v1::ChatService::NewStub((*up)->channel());
  std::vector<v1::ChatRequest> requests;
  for (int i = 0; i < 64; ++i) requests.push_back(Request(i));
  std::vector<std::string> alone;
  for (const v1::ChatRequest& request : requests) {
    const Answer answer = Ask(*stub, request);
    ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
    alone.push_back(answer.text);
  }
  for (int repetition = 0; repetition < 5; ++repetition) {
    const std::vector<Answer> answers = AskAll(*stub, requests);
    for (size_t i = 0; i < answers.size(); ++i) {
      ASSERT_TRUE(answers[i].status.ok()) << answers[i].status.error_message();
      EXPECT_EQ(answers[i].text, alone[i]) << "stream " << i << ", repetition " << repetition;
    }
  }
}

TEST(ConcurrencyTest, CancellingHalfOfTheStreamsFreesTheirPages) {
  auto up = testing::MnemeUp::Start({});
  ASSERT_TRUE(up.ok()) << up.status();
  const auto stub = v1::ChatService::NewStub((*up)->channel());
  constexpr int kStreams = 32;
  std::vector<std::unique_ptr<grpc::ClientContext>> contexts;
  std::vector<std::unique_ptr<grpc::ClientReader<v1::ChatResponse>>> readers;
  for (int i = 0; i < kStreams; ++i) {
    v1::ChatRequest request = Request(i);
    request.mutable_sampling()->set_max_tokens(1500);
    request.mutable_sampling()->set_ignore_eos(true);
    contexts.push_back(std::make_unique<grpc::ClientContext>());
    readers.push_back(stub->Chat(contexts.back().get(), request));
  }
  for (auto& reader : readers) {
    v1::ChatResponse event;
    while (reader->Read(&event) && event.text_delta().empty()) {
    }
    ASSERT_FALSE(event.text_delta().empty());
  }
  const auto gauge = [&](const std::string& name) { return Gauge(**up, name); };
  ASSERT_EQ(gauge("mneme_executor_running_sequences"), kStreams);
  const double pages = gauge("mneme_executor_kv_pages_used");
  for (int i = 0; i < kStreams / 2; ++i) contexts[i]->TryCancel();
  EXPECT_TRUE(Eventually(std::chrono::seconds(2), [&] {
    return gauge("mneme_executor_running_sequences") == kStreams / 2 &&
           gauge("mneme_executor_kv_pages_used") < pages;
  }));
  for (int i = kStreams / 2; i < kStreams; ++i) contexts[i]->TryCancel();
  EXPECT_TRUE(Eventually(std::chrono::seconds(2),
                         [&] { return gauge("mneme_executor_kv_pages_used") == 0; }));
  for (auto& reader : readers) reader->Finish();
}

TEST(ConcurrencyTest, TenfoldOverloadIsRejectedQuicklyAndLosesNoAcceptedRequest) {
  constexpr int kRunning = 8;
  constexpr int kWaiting = 8;
  constexpr int kRefused = 1000;  // of which the slowest ten may be slower
  // Neighbours on the machine only ever slow a round down, so that the quietest one tells.
  constexpr int kRounds = 5;
  auto up = testing::MnemeUp::Start(
      {.config_json = absl::StrCat(R"({"executor":{"max_running":)", kRunning, R"(,"max_waiting":)",
                                   kWaiting, "}}")});
  ASSERT_TRUE(up.ok()) << up.status();
  const auto stub = v1::ChatService::NewStub((*up)->channel());
  // Those to be refused have a connection of their own, so that what is measured is the gateway and
  // not the turns that calls take at one socket.
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  const auto refused = v1::ChatService::NewStub(
      grpc::CreateCustomChannel((*up)->grpc(), grpc::InsecureChannelCredentials(), arguments));
  std::vector<v1::ChatRequest> requests;
  for (int i = 0; i < kRunning + kWaiting; ++i) {
    requests.push_back(Request(i));
    requests.back().mutable_sampling()->set_max_tokens(200);
    requests.back().mutable_sampling()->set_ignore_eos(true);
  }
  const auto executor = (*up)->ServiceOf("executor");
  ASSERT_TRUE(executor.ok()) << executor.status();
  const int executor_pid = executor->pid();
  const int64_t memory_before = ResidentBytes(executor_pid);
  std::vector<Answer> accepted;
  std::atomic<bool> loaded = true;
  std::jthread load([&] {
    accepted = AskAllFromOneThread(*stub, requests);
    loaded = false;
  });
  ASSERT_TRUE(Eventually(std::chrono::seconds(60), [&] {
    return Gauge(**up, "mneme_executor_running_sequences") == kRunning &&
           Gauge(**up, "mneme_executor_waiting_requests") == kWaiting;
  }));
  // From here on this thread only asks and waits. That it is woken late by an executor which keeps
  // both processors busy is no time of the gateway's.
  sync::AskForShortTurns();
  std::string described;
  double best_p99 = std::numeric_limits<double>::infinity();
  const double bound = absl::ToDoubleMilliseconds(testing::TimeLimit(absl::Milliseconds(5)));
  for (int round = 0; round < kRounds && best_p99 >= bound; ++round) {
    std::vector<double> rejected_ms;
    while (loaded && rejected_ms.size() < kRefused) {
      const Answer answer = Ask(*refused, requests[0]);
      if (answer.status.ok()) continue;  // a place had become free
      ASSERT_EQ(answer.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED)
          << answer.status.error_message();
      EXPECT_FALSE(answer.status.error_details().empty());  // RetryInfo
      rejected_ms.push_back(std::chrono::duration<double, std::milli>(answer.took).count());
    }
    if (rejected_ms.size() < kRefused) break;  // the load has ended
    std::sort(rejected_ms.begin(), rejected_ms.end());
    const double p50 = rejected_ms[rejected_ms.size() / 2];
    const double p99 = rejected_ms[rejected_ms.size() * 99 / 100];
    absl::StrAppend(&described, "p50 ", p50, " ms, p99 ", p99, " ms; ");
    best_p99 = std::min(best_p99, p99);
  }
  load.join();
  for (const Answer& answer : accepted) {
    EXPECT_TRUE(answer.status.ok()) << answer.status.error_message();
    EXPECT_FALSE(answer.text.empty());
  }
  RecordProperty("rejected", described);
  EXPECT_LT(best_p99, bound) << described;
  // Sanitizers keep a shadow of the memory, a few times as large.
  const double shadows = absl::FDivDuration(testing::TimeLimit(absl::Seconds(1)), absl::Seconds(1));
  EXPECT_LT(static_cast<double>(ResidentBytes(executor_pid) - memory_before),
            shadows * (512 << 20));
}

}  // namespace
}  // namespace mneme
