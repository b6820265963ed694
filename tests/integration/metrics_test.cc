// The /metrics pages of a running Mneme: what Prometheus' own checker says of them, and whether
// they have what dashboards ask for.
#include <grpcpp/client_context.h>
#include <httplib.h>

#include <memory>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "common/config/config.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "mneme/gateway/v1/chat.grpc.pb.h"
#include "tests/support/mneme_up.h"
#include "tests/support/run_command.h"
#include "tests/support/temp_folder.h"

namespace mneme {
namespace {

namespace v1 = gateway::v1;
using testing::MnemeUp;

// Room for one request that runs and one that waits.
constexpr char kSmall[] = R"({"executor":{"max_running":1,"max_waiting":1}})";

std::string MetricsOf(const MnemeUp& up, const std::string& service) {
  const auto state = up.ServiceOf(service);
  if (!state.ok()) return state.status().ToString();
  const auto page = httplib::Client("http://" + state->metrics()).Get("/metrics");
  return page ? page->body : "no answer";
}

// The value of a sample, its labels included in the name; -1 where there is none.
double Sample(const std::string& page, absl::string_view name) {
  for (const absl::string_view line : absl::StrSplit(page, '\n')) {
    double value = 0;
    if (absl::StartsWith(line, absl::StrCat(name, " ")) &&
        absl::SimpleAtod(line.substr(name.size() + 1), &value)) {
      return value;
    }
  }
  return -1;
}

v1::ChatRequest Request(int max_tokens) {
  v1::ChatRequest request;
  auto* message = request.add_messages();
  message->set_role("user");
  message->set_content("Count from one to ten.");
  request.mutable_sampling()->set_temperature(0);
  request.mutable_sampling()->set_max_tokens(max_tokens);
  request.mutable_sampling()->set_ignore_eos(true);
  return request;
}

class MetricsTest : public ::testing::Test {
 protected:
  void Start() {
    auto up = MnemeUp::Start({.config_json = kSmall});
    ASSERT_TRUE(up.ok()) << up.status();
    up_ = *std::move(up);
    stub_ = v1::ChatService::NewStub(up_->channel());
  }
  grpc::Status Ask(const v1::ChatRequest& request) {
    grpc::ClientContext context;
    const auto reader = stub_->Chat(&context, request);
    v1::ChatResponse event;
    while (reader->Read(&event)) {
    }
    return reader->Finish();
  }

  std::unique_ptr<MnemeUp> up_;
  std::unique_ptr<v1::ChatService::Stub> stub_;
};

TEST_F(MetricsTest, PromtoolFindsNothingWrongWithAnyPage) {
  ASSERT_NO_FATAL_FAILURE(Start());
  // Series with labels appear with what they count: answers, a turn, a failure, HTTP and gRPC.
  ASSERT_TRUE(Ask(Request(4)).ok());
  v1::ChatRequest turn = Request(4);
  turn.set_session_id("s");
  ASSERT_TRUE(Ask(turn).ok());
  v1::ChatRequest unknown = Request(4);
  unknown.set_model("none");
  EXPECT_EQ(Ask(unknown).error_code(), grpc::StatusCode::NOT_FOUND);
  httplib::Client http("http://" + up_->http());
  EXPECT_EQ(http.Get("/v1/models")->status, 200);
  EXPECT_EQ(http.Get("/v1/nothing")->status, 404);
  const testing::TempFolder folder;
  for (const char* service : {"gateway", "tokenizer", "executor", "memory"}) {
    const std::string page = MetricsOf(*up_, service);
    EXPECT_THAT(page, ::testing::HasSubstr(absl::StrCat("\nmneme_", service, "_"))) << service;
    const std::string file = folder.File(service);
    ASSERT_TRUE(config::WriteFileAtomically(file, page).ok());
    const auto result = testing::RunCommand({"/bin/sh", "-c", "promtool check metrics < " + file});
    ASSERT_TRUE(result.ok()) << result.status();
    ASSERT_NE(result->exit_code, 127) << "promtool is not installed: deploy/setup.sh --test";
    EXPECT_EQ(result->exit_code, 0) << service;
    // What it only warns of is an error here too.
    EXPECT_EQ(absl::StrCat(result->out, result->err), "") << service;
  }
}

TEST_F(MetricsTest, DashboardsFindLoadLatencyMemoryHitsAndRejections) {
  ASSERT_NO_FATAL_FAILURE(Start());
  ASSERT_TRUE(Ask(Request(4)).ok());
  // One runs, one waits, the next is refused.
  grpc::ClientContext contexts[2];
  std::unique_ptr<grpc::ClientReader<v1::ChatResponse>> readers[2];
  v1::ChatResponse event;
  for (int i = 0; i < 2; ++i) {
    readers[i] = stub_->Chat(&contexts[i], Request(1500));
    if (i == 0) {
      while (event.text_delta().empty() && readers[0]->Read(&event)) {
      }
    }
  }
  const absl::Time end = absl::Now() + absl::Seconds(20);
  std::string executor;
  do {
    executor = MetricsOf(*up_, "executor");
  } while (Sample(executor, "mneme_executor_waiting_requests") != 1 && absl::Now() < end);
  EXPECT_EQ(Ask(Request(4)).error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  const std::string gateway = MetricsOf(*up_, "gateway");
  for (grpc::ClientContext& context : contexts) context.TryCancel();
  for (const auto& reader : readers) reader->Finish();

  EXPECT_EQ(Sample(executor, "mneme_executor_running_sequences"), 1);
  EXPECT_EQ(Sample(executor, "mneme_executor_waiting_requests"), 1);
  EXPECT_GT(Sample(executor, "mneme_executor_kv_usage_ratio"), 0);
  EXPECT_LT(Sample(executor, "mneme_executor_kv_usage_ratio"), 1);
  EXPECT_GE(Sample(executor, "mneme_executor_time_to_first_token_seconds_count"), 2);
  EXPECT_GE(Sample(executor, "mneme_executor_inter_token_latency_seconds_count"), 3);
  EXPECT_GE(Sample(executor, "mneme_executor_reused_tokens_total"), 0);
  EXPECT_GE(Sample(executor, "mneme_executor_rejections_total"), 0);
  EXPECT_EQ(Sample(gateway, "mneme_gateway_requests_in_flight"), 2);
  EXPECT_GE(Sample(gateway, "mneme_gateway_time_to_first_token_seconds_count"), 2);
  EXPECT_GE(Sample(gateway, "mneme_gateway_inter_token_latency_seconds_count"), 3);
  EXPECT_GE(Sample(gateway, "mneme_gateway_cached_prompt_tokens_total"), 0);
  EXPECT_EQ(Sample(gateway, "mneme_gateway_rejections_total{reason=\"queue_full\"}"), 1);
}

}  // namespace
}  // namespace mneme
