// A real gateway on loopback ports before the services of test_upstreams.h.
#pragma once

#include <grpcpp/create_channel.h>
#include <httplib.h>
#include <unistd.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "common/clock/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "mneme/gateway/v1/chat.grpc.pb.h"
#include "mneme/gateway/v1/model.grpc.pb.h"
#include "mneme/gateway/v1/session.grpc.pb.h"
#include "nlohmann/json.hpp"
#include "services/gateway/gateway.h"
#include "services/gateway/test_upstreams.h"
#include "tests/support/time_limit.h"

namespace mneme::gateway {

using Json = nlohmann::json;

// Waits until `condition` holds, 10 s at most.
inline bool Eventually(const std::function<bool()>& condition) {
  const absl::Time until = absl::Now() + testing::TimeLimit(absl::Seconds(10));
  while (!condition()) {
    if (absl::Now() > until) return false;
    absl::SleepFor(absl::Milliseconds(5));
  }
  return true;
}

class GatewayTest : public ::testing::Test {
 protected:
  GatewayTest() {
    config_.set_grpc_listen("127.0.0.1:0");
    config_.set_http_listen("127.0.0.1:0");
    config_.set_tokenizer_address(tokenizer_.address());
    config_.set_memory_address(memory_.address());
    config_.add_executor_addresses(executor_.address());
    timing_.generation.failover_wait = absl::Seconds(5);
    timing_.sessions.renew_interval = absl::Milliseconds(30);
    timing_.sessions.busy_patience = absl::Milliseconds(300);
    timing_.sessions.unavailable_patience = absl::Milliseconds(300);
    timing_.sessions.commit_patience = absl::Milliseconds(500);
  }

  // Starts the gateway and waits until it knows its executors.
  void Start(int ready = 1) {
    auto config = CompleteConfig(config_);
    ASSERT_TRUE(config.ok()) << config.status();
    auto gateway = Gateway::Start(*config, timing_, registry_, clock_);
    ASSERT_TRUE(gateway.ok()) << gateway.status();
    gateway_ = *std::move(gateway);
    gateway_->grpc_server().SetServing(true);
    ASSERT_TRUE(Eventually([&] {
      return registry_.Text().find("mneme_gateway_ready_executors " + std::to_string(ready)) !=
             std::string::npos;
    }));
  }

  httplib::Client Http() {
    const std::string& address = gateway_->http_address();
    httplib::Client client("127.0.0.1", std::stoi(address.substr(address.rfind(':') + 1)));
    client.set_read_timeout(30);
    return client;
  }
  httplib::Result Post(const std::string& path, const std::string& body,
                       const httplib::Headers& headers = {}) {
    return Http().Post(path, headers, body, "application/json");
  }
  // A chat of one user message with further fields.
  static std::string Chat(const std::string& content, const Json& more = Json::object()) {
    Json body = {{"model", "script"}, {"messages", {{{"role", "user"}, {"content", content}}}}};
    body.update(more);
    return body.dump();
  }
  static Json Parse(const httplib::Result& result) {
    if (!result) return Json();
    return Json::parse(result->body, nullptr, false);
  }
  // Checks an error's shape and returns its message.
  static std::string ErrorOf(const httplib::Result& result, int status, const std::string& type) {
    if (!result) {
      ADD_FAILURE() << "no answer: " << to_string(result.error());
      return "";
    }
    EXPECT_EQ(result->status, status) << result->body;
    const Json json = Parse(result);
    if (!json.is_object() || !json.contains("error")) {
      ADD_FAILURE() << "no error object: " << result->body;
      return "";
    }
    EXPECT_EQ(json["error"].size(), 4U);
    EXPECT_EQ(json["error"]["type"], type);
    return json["error"]["message"];
  }
  // The JSON objects of a server-sent event stream; the last must be [DONE].
  static std::vector<Json> Events(const std::string& stream) {
    std::vector<Json> events;
    EXPECT_TRUE(absl::EndsWith(stream, "data: [DONE]\n\n")) << stream;
    for (const absl::string_view event : absl::StrSplit(stream, "\n\n", absl::SkipEmpty())) {
      EXPECT_TRUE(absl::StartsWith(event, "data: ")) << event;
      if (event == "data: [DONE]") continue;
      events.push_back(Json::parse(event.substr(6), nullptr, false));
      EXPECT_FALSE(events.back().is_discarded()) << event;
    }
    return events;
  }
  static std::string TextOf(const std::vector<Json>& events) {
    std::string text;
    for (const Json& event : events) {
      for (const Json& choice : event["choices"]) {
        text += choice["delta"].value("content", "");
      }
    }
    return text;
  }

  std::shared_ptr<grpc::Channel> Channel() {
    return grpc::CreateChannel(gateway_->grpc_server().address(),
                               grpc::InsecureChannelCredentials());
  }
  // Runs a chat over gRPC.
  struct GrpcAnswer {
    grpc::Status status;
    std::vector<v1::ChatResponse> events;
    std::string text;
  };
  GrpcAnswer GrpcChat(const v1::ChatRequest& request) {
    const auto stub = v1::ChatService::NewStub(Channel());
    grpc::ClientContext context;
    GrpcAnswer answer;
    const auto reader = stub->Chat(&context, request);
    v1::ChatResponse event;
    while (reader->Read(&event)) {
      answer.text += event.text_delta();
      answer.events.push_back(event);
    }
    answer.status = reader->Finish();
    return answer;
  }
  static v1::ChatRequest GrpcRequest(const std::string& content) {
    v1::ChatRequest request;
    auto* message = request.add_messages();
    message->set_role("user");
    message->set_content(content);
    return request;
  }

  Upstream<ByteTokenizer> tokenizer_;
  Upstream<ScriptedExecutor> executor_;
  Upstream<MapMemory> memory_;
  v1::GatewayConfig config_;
  GatewayTiming timing_;
  metrics::Registry registry_;
  clock::SystemClock clock_;
  std::unique_ptr<Gateway> gateway_;
};

}  // namespace mneme::gateway
