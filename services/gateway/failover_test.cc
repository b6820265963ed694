// What happens to a request when an executor, or the tokenizer, dies under it.
#include <thread>

#include "services/gateway/gateway_fixture.h"
#include "tests/support/time_limit.h"

namespace mneme::gateway {
namespace {

using ::testing::HasSubstr;

class FailoverTest : public GatewayTest {
 protected:
  bool MetricIs(const std::string& name, int value) {
    return absl::StrContains(registry_.Text(), absl::StrCat("\n", name, " ", value, "\n"));
  }
  Upstream<ScriptedExecutor> second_;
};

TEST_F(FailoverTest, FailureBeforeTheFirstTokenIsTriedElsewhere) {
  config_.add_executor_addresses(second_.address());
  Start(2);
  executor_->refuse = 1;
  second_->refuse = 0;
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(Parse(Post("/v1/chat/completions", Chat("hi")))["choices"][0]["message"]["content"],
              "Hello, world");
  }
  EXPECT_TRUE(MetricIs("mneme_gateway_retries_total", 1));
  EXPECT_EQ(executor_->calls + second_->calls, 5);
}

TEST_F(FailoverTest, GenerationGoesOnElsewhereFromTheTokensSent) {
  config_.add_executor_addresses(second_.address());
  Start(2);
  executor_->break_after = 5;
  second_->break_after = 7;
  const auto events = Events(Post("/v1/chat/completions", Chat("hi", {{"stream", true}}))->body);
  EXPECT_EQ(TextOf(events), "Hello, world");
  EXPECT_TRUE(Eventually([&] { return executor_->running + second_->running == 0; }));
  std::vector<int> generated;
  for (const auto& request : executor_->requests())
    generated.push_back(request.generated_ids_size());
  for (const auto& request : second_->requests()) generated.push_back(request.generated_ids_size());
  std::sort(generated.begin(), generated.end());
  EXPECT_GE(generated.size(), 2U);
  EXPECT_EQ(generated[0], 0);
  EXPECT_GE(generated[1], 5);
  EXPECT_FALSE(MetricIs("mneme_gateway_failovers_total", 0));
}

TEST_F(FailoverTest, RestartedExecutorTakesTheGenerationUpAgain) {
  executor_->token_ms = 30;
  Start();
  std::string body;
  std::jthread client([&] {
    body = Post("/v1/chat/completions", Chat("hi", {{"stream", true}}))->body;
  });
  ASSERT_TRUE(Eventually([&] { return executor_->running == 1; }));
  absl::SleepFor(absl::Milliseconds(100));  // some tokens are out
  executor_.Kill();
  executor_->token_ms = 0;
  executor_.Restart();
  client.join();
  EXPECT_EQ(TextOf(Events(body)), "Hello, world");
  EXPECT_GE(executor_->calls, 2);
}

TEST_F(FailoverTest, WithoutAnyExecutorTheErrorComesInBoundedTime) {
  timing_.generation.failover_wait = absl::Milliseconds(300);
  Start();
  executor_.Kill();
  const absl::Time begun = absl::Now();
  const auto result = Post("/v1/chat/completions", Chat("hi"));
  ErrorOf(result, 503, "server_error");
  EXPECT_TRUE(result->has_header("Retry-After"));
  EXPECT_LT(absl::Now() - begun, testing::TimeLimit(absl::Seconds(5)));
  executor_.Restart();
  EXPECT_TRUE(Eventually([&] { return Http().Get("/healthz")->status == 200; }));
  EXPECT_EQ(Post("/v1/chat/completions", Chat("hi"))->status, 200);
}

TEST_F(FailoverTest, LossInTheMiddleOfAStreamIsToldInIt) {
  timing_.generation.failover_wait = absl::Milliseconds(200);
  executor_->token_ms = 30;
  Start();
  std::string body;
  std::jthread client([&] {
    body = Post("/v1/chat/completions", Chat("hi", {{"stream", true}}))->body;
  });
  ASSERT_TRUE(Eventually([&] { return executor_->running == 1; }));
  absl::SleepFor(absl::Milliseconds(100));
  executor_.Kill();
  client.join();
  const auto events = Events(body);
  ASSERT_FALSE(events.empty());
  EXPECT_EQ(events.back()["error"]["type"], "server_error") << body;
}

TEST_F(FailoverTest, FullQueueIsTriedElsewhereAndThenTold) {
  config_.add_executor_addresses(second_.address());
  Start(2);
  executor_->queue_full = 1;
  second_->queue_full = 0;
  for (int i = 0; i < 3; ++i) EXPECT_EQ(Post("/v1/chat/completions", Chat("hi"))->status, 200);
  executor_->queue_full = 1;
  second_->queue_full = 1;
  const absl::Time begun = absl::Now();
  const auto full = Post("/v1/chat/completions", Chat("hi"));
  EXPECT_THAT(ErrorOf(full, 429, "rate_limit_error"), HasSubstr("queue is full"));
  EXPECT_EQ(full->get_header_value("Retry-After"), "2");
  EXPECT_LT(absl::Now() - begun, testing::TimeLimit(absl::Seconds(1)));
}

TEST_F(FailoverTest, LoadGoesToTheIdlerExecutor) {
  config_.add_executor_addresses(second_.address());
  executor_->token_ms = 10;
  second_->token_ms = 10;
  Start(2);
  std::vector<std::jthread> clients;
  for (int i = 0; i < 8; ++i) {
    clients.emplace_back([&] { EXPECT_EQ(Post("/v1/chat/completions", Chat("hi"))->status, 200); });
  }
  clients.clear();
  EXPECT_GE(executor_->calls, 3);
  EXPECT_GE(second_->calls, 3);
}

TEST_F(FailoverTest, TokenizerThatComesBackIsWaitedFor) {
  Start();
  ASSERT_EQ(Post("/v1/chat/completions", Chat("hi"))->status, 200);
  tokenizer_.Kill();
  std::jthread later([&] {
    absl::SleepFor(absl::Milliseconds(300));
    tokenizer_.Restart();
  });
  EXPECT_EQ(Post("/v1/chat/completions", Chat("hi"))->status, 200);
}

}  // namespace
}  // namespace mneme::gateway
