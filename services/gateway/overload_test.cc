// More requests than the executors take: refused before anything is done for them, and none that
// was taken is lost.
#include <latch>
#include <thread>

#include "services/gateway/gateway_fixture.h"

namespace mneme::gateway {
namespace {

using ::testing::HasSubstr;

class OverloadTest : public GatewayTest {
 protected:
  OverloadTest() {
    executor_->max_running = 1;
    executor_->max_waiting = 1;
    second_->max_running = 1;
    second_->max_waiting = 1;
  }

  // Chats that last until they are dropped.
  class Held {
   public:
    Held(OverloadTest& test, int count, int answers = 1) {
      v1::ChatRequest request = GrpcRequest("hold");
      request.mutable_sampling()->set_ignore_eos(true);
      request.mutable_sampling()->set_n(answers);
      stub_ = v1::ChatService::NewStub(test.Channel());
      for (int i = 0; i < count; ++i) {
        contexts_.push_back(std::make_unique<grpc::ClientContext>());
        readers_.push_back(stub_->Chat(contexts_.back().get(), request));
        v1::ChatResponse event;
        EXPECT_TRUE(readers_.back()->Read(&event));
      }
    }
    ~Held() {
      for (const auto& context : contexts_) context->TryCancel();
      for (const auto& reader : readers_) reader->Finish();
    }

   private:
    std::unique_ptr<v1::ChatService::Stub> stub_;
    std::vector<std::unique_ptr<grpc::ClientContext>> contexts_;
    std::vector<std::unique_ptr<grpc::ClientReader<v1::ChatResponse>>> readers_;
  };

  int Status(const Json& more = Json::object()) {
    const auto result = Post("/v1/chat/completions", Chat("hi", more));
    return result ? result->status : 0;
  }

  Upstream<ScriptedExecutor> second_;
};

TEST_F(OverloadTest, RequestBeyondThePlacesIsRefusedBeforeAnyServiceIsAsked) {
  executor_->token_ms = 5;
  config_.set_memory_address(memory_.address());
  Start();
  ASSERT_EQ(Status(), 200);
  const Held held(*this, 2);
  const int calls = executor_->calls;
  const size_t encoded = tokenizer_->request_ids().size();
  const auto refused = Post("/v1/chat/completions", Chat("hi"));
  EXPECT_THAT(ErrorOf(refused, 429, "rate_limit_error"), HasSubstr("queue is full"));
  EXPECT_EQ(refused->get_header_value("Retry-After"), "1");
  EXPECT_EQ(Status({{"session_id", "s"}}), 429);
  EXPECT_EQ(Post("/v1/completions", R"({"prompt":"a"})")->status, 429);
  const absl::Status status = rpc::FromGrpc(GrpcChat(GrpcRequest("hi")).status);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(status::PayloadOf(status, status::kRetryAfterPayload), "1000");
  EXPECT_EQ(executor_->calls, calls);
  EXPECT_EQ(tokenizer_->request_ids().size(), encoded);
  EXPECT_EQ(memory_->Look("default/s").session.session_id(), "") << "the session was opened";
  EXPECT_THAT(registry_.Text(),
              HasSubstr("mneme_gateway_rejections_total{reason=\"queue_full\"} 4"));
}

TEST_F(OverloadTest, PlaceThatBecomesFreeIsGivenAway) {
  executor_->token_ms = 5;
  Start();
  const Held one(*this, 1);
  {
    const Held two(*this, 1);
    EXPECT_EQ(Status(), 429);
  }
  EXPECT_TRUE(Eventually([&] { return Status() == 200; }));
}

TEST_F(OverloadTest, OfABurstExactlyThoseGoOnThatHavePlaces) {
  executor_->token_ms = 20;
  Start();
  constexpr int kBurst = 30;
  std::atomic<int> taken{0};
  std::atomic<int> refused{0};
  std::latch start(kBurst);
  std::vector<std::jthread> clients;
  for (int i = 0; i < kBurst; ++i) {
    clients.emplace_back([&] {
      start.arrive_and_wait();
      const int status = Status();
      ++(status == 200 ? taken : refused);
      EXPECT_TRUE(status == 200 || status == 429) << status;
    });
  }
  clients.clear();
  EXPECT_EQ(taken, 2);
  EXPECT_EQ(refused, kBurst - 2);
  EXPECT_EQ(executor_->calls, 2);
  EXPECT_EQ(tokenizer_->request_ids().size(), 2U);
}

TEST_F(OverloadTest, RefusalOfTheExecutorIsRememberedUntilItHasAPlace) {
  executor_->token_ms = 5;
  Start();
  std::optional<Held> held(std::in_place, *this, 1, /*answers=*/2);
  // By its own count the gateway has one place left, which only the executor knows to be taken.
  EXPECT_EQ(Status(), 429);
  EXPECT_LE(executor_->refused, 1);  // none where a probe was faster
  const int calls = executor_->calls;
  for (int i = 0; i < 50; ++i) EXPECT_EQ(Status(), 429);
  EXPECT_EQ(executor_->calls, calls);
  held.reset();
  EXPECT_TRUE(Eventually([&] { return Status() == 200; }));
}

TEST_F(OverloadTest, LoadOfOtherGatewaysIsSeenByProbes) {
  executor_->others = 2;
  Start();
  EXPECT_EQ(Status(), 429);
  EXPECT_EQ(executor_->calls, 0);
  executor_->others = 0;
  EXPECT_TRUE(Eventually([&] { return Status() == 200; }));
  EXPECT_EQ(executor_->refused, 0);
}

TEST_F(OverloadTest, FullExecutorIsPassedOver) {
  executor_->others = 2;
  config_.add_executor_addresses(second_.address());
  Start(2);
  for (int i = 0; i < 8; ++i) EXPECT_EQ(Status(), 200);
  EXPECT_EQ(executor_->calls, 0);
  EXPECT_EQ(second_->calls, 8);
}

TEST_F(OverloadTest, RequestThatComesToNothingGivesItsPlaceBack) {
  Start();
  for (int i = 0; i < 5; ++i) {
    EXPECT_EQ(Status({{"temperature", -1}}), 400);
    EXPECT_EQ(Post("/v1/chat/completions", Chat("raise"))->status, 400);
  }
  EXPECT_EQ(Status(), 200);
}

TEST_F(OverloadTest, PromptsOfOneRequestWaitForPlacesWhenTheFirstHasOne) {
  executor_->token_ms = 5;
  Start();
  const Held held(*this, 1);
  const Json prompts = {"a", "b", "c", "d", "e", "f"};
  const auto result = Post("/v1/completions", Json({{"prompt", prompts}}).dump());
  ASSERT_TRUE(result);
  ASSERT_EQ(result->status, 200) << result->body;
  const Json reply = Parse(result);
  ASSERT_EQ(reply["choices"].size(), 6U);
  for (const Json& choice : reply["choices"]) EXPECT_EQ(choice["text"], "Hello, world");
  EXPECT_EQ(executor_->calls, 7);
  EXPECT_EQ(executor_->refused, 0);
}

TEST_F(OverloadTest, PromptsThatTheExecutorRefusesWaitToo) {
  executor_->token_ms = 5;
  Start();
  // Takes both places and counts as one: the second prompt is sent, refused and waits.
  executor_->others = 1;
  const auto result = Post("/v1/completions", R"({"prompt": ["a", "b", "c"]})");
  ASSERT_TRUE(result);
  ASSERT_EQ(result->status, 200) << result->body;
  EXPECT_EQ(Parse(result)["choices"].size(), 3U);
  EXPECT_GE(executor_->refused, 1);
}

TEST_F(OverloadTest, AnswersOfALostExecutorGoOnAtAFullOne) {
  executor_->token_ms = 30;
  second_->token_ms = 30;
  config_.add_executor_addresses(second_.address());
  Start(2);
  std::vector<std::string> texts(4);
  std::vector<std::jthread> clients;
  for (std::string& text : texts) {
    clients.emplace_back([&] {
      text = TextOf(Events(Post("/v1/chat/completions", Chat("hi", {{"stream", true}}))->body));
    });
  }
  ASSERT_TRUE(Eventually([&] { return executor_->running == 2 && second_->running == 2; }));
  absl::SleepFor(absl::Milliseconds(100));  // some tokens are out
  executor_.Kill();
  clients.clear();
  for (const std::string& text : texts) EXPECT_EQ(text, "Hello, world");
  EXPECT_EQ(second_->refused, 0);
}

}  // namespace
}  // namespace mneme::gateway
