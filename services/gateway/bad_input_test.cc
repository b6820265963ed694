// What clients get wrong, or do on purpose: each refused by name, and the server goes on.
#include <arpa/inet.h>
#include <grpcpp/completion_queue.h>
#include <grpcpp/generic/generic_stub.h>
#include <poll.h>
#include <sys/socket.h>

#include <thread>

#include "services/gateway/gateway_fixture.h"
#include "tests/support/time_limit.h"

namespace mneme::gateway {
namespace {

using ::testing::HasSubstr;

class BadInputTest : public GatewayTest {
 protected:
  // The field must be refused with 400 and its name.
  void ExpectRefused(const std::string& path, const Json& body, const std::string& param,
                     const std::string& message) {
    const auto result = Post(path, body.dump());
    EXPECT_THAT(ErrorOf(result, 400, "invalid_request_error"), HasSubstr(message)) << body;
    EXPECT_EQ(Parse(result)["error"]["param"], param) << body;
  }
  void ExpectChatRefused(const Json& more, const std::string& param, const std::string& message) {
    ExpectRefused("/v1/chat/completions", Json::parse(Chat("hi", more)), param, message);
  }
  int Connect(int receive_buffer = 0) {
    const std::string& address = gateway_->http_address();
    const int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (receive_buffer > 0) {
      setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &receive_buffer, sizeof(receive_buffer));
    }
    sockaddr_in server{};
    server.sin_family = AF_INET;
    server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    server.sin_port = htons(std::stoi(address.substr(address.rfind(':') + 1)));
    EXPECT_EQ(connect(fd, reinterpret_cast<sockaddr*>(&server), sizeof(server)), 0);
    return fd;
  }
  // Reads until the server closes.
  static std::string ReadAll(int fd) {
    std::string all;
    char buffer[4096];
    pollfd poll_fd{fd, POLLIN, 0};
    while (poll(&poll_fd, 1, 10'000) > 0) {
      const ssize_t count = recv(fd, buffer, sizeof(buffer), 0);
      if (count <= 0) break;
      all.append(buffer, count);
    }
    return all;
  }
};

TEST_F(BadInputTest, WrongTypesAndRangesAreNamed) {
  Start();
  ExpectChatRefused({{"temperature", "hot"}}, "temperature", "temperature must be a number");
  ExpectChatRefused({{"temperature", -1}}, "temperature", "temperature must lie between");
  ExpectChatRefused({{"n", 0}}, "n", "n must lie between 1 and 16");
  ExpectChatRefused({{"n", 1.5}}, "n", "whole number");
  ExpectChatRefused({{"top_p", 0}}, "top_p", "over 0");
  ExpectChatRefused({{"min_p", 2}}, "min_p", "between");
  ExpectChatRefused({{"presence_penalty", 3}}, "presence_penalty", "between -2 and 2");
  ExpectChatRefused({{"repetition_penalty", 0}}, "repetition_penalty", "over 0");
  ExpectChatRefused({{"max_tokens", 0}}, "max_tokens", "between");
  ExpectChatRefused({{"max_tokens", "9"}}, "max_tokens", "whole number");
  ExpectChatRefused({{"min_tokens", 9}, {"max_tokens", 3}}, "min_tokens", "max_tokens");
  ExpectChatRefused({{"stream", "yes"}}, "stream", "true or false");
  ExpectChatRefused({{"stop", 7}}, "stop", "list of strings");
  ExpectChatRefused({{"stop", {""}}}, "stop", "1 to 256 bytes");
  ExpectChatRefused({{"stop", std::string(300, 'x')}}, "stop", "1 to 256 bytes");
  ExpectChatRefused({{"seed", 0.5}}, "seed", "whole number");
  ExpectChatRefused({{"logit_bias", {{"x", 1}}}}, "logit_bias", "token ids");
  ExpectChatRefused({{"logit_bias", {{"999", 1}}}}, "logit_bias", "not 999");
  ExpectChatRefused({{"stop_token_ids", {5000}}}, "stop_token_ids", "not 5000");
  ExpectChatRefused({{"top_logprobs", 2}}, "top_logprobs", "with logprobs");
  ExpectChatRefused({{"logprobs", true}, {"top_logprobs", 21}}, "top_logprobs", "between");
  ExpectChatRefused({{"stream_options", {{"include_usage", true}}}}, "stream_options", "stream");
  ExpectChatRefused({{"memory_policy", {{"type", "magic"}}}}, "memory_policy.type", "window");
  ExpectChatRefused({{"memory_policy", {{"type", "window"}}}}, "memory_policy.recent", "given");
  ExpectChatRefused({{"memory_policy", {{"type", "h2o"}}}}, "memory_policy.budget", "given");
  ExpectChatRefused({{"memory_policy", {{"type", "snapkv"}, {"budget", Json::object()}}}},
                    "memory_policy.budget", "one of tokens");
  ExpectChatRefused({{"memory_policy", {{"type", "l2norm"}, {"budget", {{"tokens", 1.5}}}}}},
                    "memory_policy.budget.tokens", "whole number");
  ExpectChatRefused({{"memory_policy", {{"type", "namm"}}}}, "memory_policy.artifact", "given");
  ExpectChatRefused({{"memory_policy", {{"type", "beacon"}}}}, "memory_policy.ratios", "given");
  ExpectChatRefused({{"memory_policy", {{"type", "beacon"}, {"ratios", {4, -1}}}}},
                    "memory_policy.ratios", "whole numbers");
  ExpectChatRefused({{"memory_policy", {{"type", "beacon"}, {"ratios", {4}}, {"mix", "all"}}}},
                    "memory_policy.mix", "in-turn");
  ExpectChatRefused({{"response_format", {{"type", "json_object"}}}}, "response_format.type",
                    "text");
  ExpectChatRefused({{"tools", "hammer"}}, "tools", "list");
  ExpectChatRefused({{"session_id", "a b"}}, "session_id", "must match");
  ExpectChatRefused({{"session_id", "s"}, {"n", 2}}, "n", "session");
  EXPECT_EQ(executor_->calls, 0);
  EXPECT_EQ(Post("/v1/chat/completions", Chat("hi"))->status, 200);
}

TEST_F(BadInputTest, WrongMessagesAreNamed) {
  config_.set_max_messages(3);
  Start();
  ExpectChatRefused({{"messages", Json::array()}}, "messages", "at least one");
  ExpectChatRefused({{"messages", "hi"}}, "messages", "list");
  ExpectChatRefused({{"messages", nullptr}}, "messages", "given");
  ExpectChatRefused({{"messages", {5}}}, "messages[0]", "object");
  ExpectChatRefused({{"messages", {{{"content", "x"}}}}}, "messages[0].role", "string");
  ExpectChatRefused({{"messages", {{{"role", "user"}}}}}, "messages[0].content", "given");
  ExpectChatRefused({{"messages", {{{"role", "user"}, {"content", 5}}}}}, "messages[0].content",
                    "string");
  ExpectChatRefused({{"messages", {{{"role", "wizard"}, {"content", "x"}}}}}, "messages[0].role",
                    "must be one of system, user");
  const Json image = {{"type", "image_url"}, {"image_url", {{"url", "data:"}}}};
  ExpectChatRefused({{"messages", {{{"role", "user"}, {"content", Json::array({image})}}}}},
                    "messages[0].content[0].type", "image_url");
  const Json message = {{"role", "user"}, {"content", "x"}};
  ExpectChatRefused({{"messages", {message, message, message, message}}}, "messages", "at most 3");
  // A role that the template itself names is one.
  const Json narrator = {{"role", "narrator"}, {"content", "x"}};
  EXPECT_EQ(Post("/v1/chat/completions", Chat("", {{"messages", {narrator}}}))->status, 200);
  // What the template raises reaches the caller in its own words.
  ExpectChatRefused({{"messages", {{{"role", "user"}, {"content", "raise"}}}}}, "messages",
                    "no such talk");
  ExpectChatRefused({{"messages", {{{"role", "user"}, {"content", std::string(11'000, 'x')}}}}},
                    "messages", "context has 10000");
}

TEST_F(BadInputTest, WrongCompletionsAreNamed) {
  Start();
  const std::string path = "/v1/completions";
  ExpectRefused(path, {{"model", "script"}}, "prompt", "given");
  ExpectRefused(path, {{"prompt", Json::array()}}, "prompt", "list");
  ExpectRefused(path, {{"prompt", {1, "a"}}}, "prompt", "list");
  ExpectRefused(path, {{"prompt", {70'000}}}, "prompt", "not 70000");
  ExpectRefused(path, {{"prompt", "a"}, {"best_of", 3}}, "best_of", "same as n");
  ExpectRefused(path, {{"prompt", "a"}, {"suffix", "b"}}, "suffix", "not be given");
  ExpectRefused(path, {{"prompt", "a"}, {"max_tokens", 0}}, "max_tokens", "echo");
  ExpectRefused(path, {{"prompt", "a"}, {"logprobs", 99}}, "logprobs", "between");
}

TEST_F(BadInputTest, UnknownModelIsNotFound) {
  Start();
  const auto result = Post("/v1/chat/completions", Chat("hi", {{"model", "none"}}));
  EXPECT_THAT(ErrorOf(result, 404, "invalid_request_error"), HasSubstr("none"));
  EXPECT_EQ(Parse(result)["error"]["code"], "model_not_found");
  EXPECT_EQ(Parse(result)["error"]["param"], "model");
}

TEST_F(BadInputTest, BodiesThatAreNoJsonAreRefused) {
  Start();
  const auto refuse = [&](const std::string& body, const std::string& message) {
    EXPECT_THAT(ErrorOf(Post("/v1/chat/completions", body), 400, "invalid_request_error"),
                HasSubstr(message));
  };
  refuse("", "not valid JSON");
  refuse("{\"messages\": [}", "at byte 15");
  refuse("[]", "must be a JSON object");
  refuse("{\"messages\":[{\"role\":\"user\",\"content\":\"\xff\"}]}", "UTF-8, first at byte 39");
  refuse(std::string(100'000, '['), "deeper than 64");
  refuse("{\"temperature\":1e999}", "not valid JSON");
  EXPECT_EQ(Post("/v1/chat/completions", Chat("hi"))->status, 200);
}

TEST_F(BadInputTest, BodyOverTheLimitIsTooLarge) {
  config_.set_max_body_bytes(1 << 20);
  Start();
  const std::string body = Chat(std::string(100 << 20, 'x'));
  const auto result = Post("/v1/chat/completions", body);
  EXPECT_THAT(ErrorOf(result, 413, "invalid_request_error"), HasSubstr("larger"));
  // The same without a Content-Length that gives it away.
  auto client = Http();
  const auto chunked = client.Post(
      "/v1/chat/completions", {},
      [](size_t offset, httplib::DataSink& sink) {
        const std::string part(64 << 10, ' ');
        if (offset > (4 << 20)) {
          sink.done();
          return true;
        }
        return sink.write(part.data(), part.size());
      },
      "application/json");
  if (chunked) {
    EXPECT_EQ(chunked->status, 413);
  }
  EXPECT_EQ(executor_->calls, 0);
  EXPECT_EQ(Post("/v1/chat/completions", Chat("hi"))->status, 200);
}

TEST_F(BadInputTest, CompressedBodyIsRefused) {
  Start();
  ErrorOf(Post("/v1/chat/completions", "x", {{"Content-Encoding", "gzip"}}), 415,
          "invalid_request_error");
}

TEST_F(BadInputTest, FormContentTypeIsReadAsJson) {
  Start();
  const std::string body = Chat(std::string(9000, 'x'));
  const auto result = Http().Post("/v1/chat/completions", httplib::Headers(), body,
                                  "application/x-www-form-urlencoded");
  ASSERT_TRUE(result);
  EXPECT_EQ(result->status, 200) << result->body;
}

TEST_F(BadInputTest, RequestThatDribblesInIsCutOff) {
  timing_.http_request_timeout = absl::Milliseconds(300);
  Start();
  const int fd = Connect();
  const std::string head = "POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 100\r\n";
  ASSERT_GT(send(fd, head.data(), head.size(), 0), 0);
  const absl::Time begun = absl::Now();
  ReadAll(fd);
  EXPECT_LT(absl::Now() - begun, testing::TimeLimit(absl::Seconds(5)));
  close(fd);
  EXPECT_EQ(Post("/v1/chat/completions", Chat("hi"))->status, 200);
}

TEST_F(BadInputTest, ClientThatStopsReadingIsCutOff) {
  config_.set_write_timeout_ms(300);
  Start();
  const int fd = Connect(/*receive_buffer=*/4096);
  const std::string body = Chat(
      "hi", {{"stream", true}, {"ignore_eos", true}, {"logprobs", true}, {"top_logprobs", 20}});
  const std::string request = absl::StrCat(
      "POST /v1/chat/completions HTTP/1.1\r\nContent-Length: ", body.size(), "\r\n\r\n", body);
  ASSERT_GT(send(fd, request.data(), request.size(), 0), 0);
  // The stream fills the buffers, then the write times out and the executor is told to stop.
  EXPECT_TRUE(Eventually([&] { return executor_->cancelled == 1; }));
  close(fd);
}

TEST_F(BadInputTest, GrpcClientThatStopsReadingIsCutOff) {
  config_.set_write_timeout_ms(300);
  Start();
  v1::ChatRequest request = GrpcRequest("hi");
  request.mutable_sampling()->set_ignore_eos(true);
  request.mutable_sampling()->set_logprobs(20);
  const auto stub = v1::ChatService::NewStub(Channel());
  grpc::ClientContext context;
  const auto reader = stub->Chat(&context, request);
  v1::ChatResponse event;
  ASSERT_TRUE(reader->Read(&event));
  // The stream fills the flow-control window, then a write takes too long.
  EXPECT_TRUE(Eventually([&] { return executor_->cancelled == 1; }));
  while (reader->Read(&event)) {
  }
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
}

TEST_F(BadInputTest, GarbageOnTheWireIsAnsweredOrClosed) {
  Start();
  const int fd = Connect();
  const std::string garbage = "\x16\x03\x01\x02\r\n\r\n";
  ASSERT_GT(send(fd, garbage.data(), garbage.size(), 0), 0);
  shutdown(fd, SHUT_WR);
  EXPECT_THAT(ReadAll(fd), ::testing::AnyOf("", HasSubstr("400")));
  close(fd);
  EXPECT_EQ(Http().Get("/healthz")->status, 200);
}

TEST_F(BadInputTest, GrpcNamesTheFieldAndBoundsTheMessage) {
  config_.set_max_body_bytes(1 << 20);
  Start();
  v1::ChatRequest request = GrpcRequest("hi");
  request.mutable_sampling()->set_temperature(-1);
  GrpcAnswer answer = GrpcChat(request);
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(status::PayloadOf(rpc::FromGrpc(answer.status), status::kFieldPayload),
            "sampling.temperature");
  request = GrpcRequest("hi");
  request.mutable_sampling()->set_n(-3);
  EXPECT_EQ(GrpcChat(request).status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(GrpcChat(v1::ChatRequest()).status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(GrpcChat(GrpcRequest(std::string(2 << 20, 'x'))).status.error_code(),
            grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_TRUE(GrpcChat(GrpcRequest("hi")).status.ok());
}

TEST_F(BadInputTest, GrpcRefusesTextThatIsNotUtf8) {
  Start();
  // The generated classes would not write such a message, so it is made of its bytes: messages =
  // {role: "user", content: 0xff}.
  const std::string bytes = std::string("\x1a\x09\x0a\x04user\x12\x01\xff", 11);
  EXPECT_FALSE(v1::ChatRequest().ParseFromString(bytes));
  const grpc::Slice slice(bytes);
  const grpc::ByteBuffer buffer(&slice, 1);
  grpc::GenericStub stub(Channel());
  grpc::ClientContext context;
  grpc::CompletionQueue queue;
  const auto call =
      stub.PrepareUnaryCall(&context, "/mneme.gateway.v1.ChatService/Chat", buffer, &queue);
  call->StartCall();
  grpc::ByteBuffer response;
  grpc::Status status;
  call->Finish(&response, &status, &status);
  void* tag = nullptr;
  bool ok = false;
  ASSERT_TRUE(queue.Next(&tag, &ok));
  EXPECT_FALSE(status.ok());
  EXPECT_EQ(executor_->calls, 0);
  EXPECT_TRUE(GrpcChat(GrpcRequest("hi")).status.ok());
}

TEST_F(BadInputTest, OccupiedPortIsAnError) {
  Start();
  v1::GatewayConfig config = CompleteConfig(config_).value();
  config.set_http_listen(gateway_->http_address());
  metrics::Registry registry;
  const auto second = Gateway::Start(config, timing_, registry, clock_);
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(second.status().message()), HasSubstr("taken by another process"));
}

TEST_F(BadInputTest, OpenAddressNeedsKeys) {
  config_.set_http_listen("0.0.0.0:0");
  EXPECT_EQ(status::PayloadOf(CompleteConfig(config_).status(), status::kFieldPayload),
            "keys_file");
}

}  // namespace
}  // namespace mneme::gateway
