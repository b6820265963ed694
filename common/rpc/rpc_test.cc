#include <grpcpp/create_channel.h>
#include <httplib.h>

#include "absl/time/clock.h"
#include "common/rpc/client.h"
#include "common/rpc/grpc_status.h"
#include "common/rpc/server.h"
#include "common/status/annotate.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "mneme/tokenizer/v1/tokenizer.grpc.pb.h"

namespace mneme::rpc {
namespace {

namespace v1 = tokenizer::v1;

// Fails with every kind of detail and reports the metadata it was called with.
class FailingService final : public v1::TokenizerService::Service {
 public:
  grpc::Status Encode(grpc::ServerContext* context, const v1::EncodeRequest*,
                      v1::EncodeResponse*) override {
    request = ContextOf(*context);
    deadline = DeadlineOf(*context);
    const absl::Status status = status::WithPayload(status::InvalidField("texts", "is empty"),
                                                    status::kReasonPayload, "EMPTY");
    return ToGrpc(status::WithRetryAfter(status::WithPayload(status, status::kVersionPayload, "7"),
                                         absl::Milliseconds(1500)));
  }

  trace::RequestContext request;
  absl::Time deadline;
};

TEST(RpcTest, StatusDetailsAndContextCrossTheWire) {
  FailingService service;
  auto server = Server::Start({.listen = "127.0.0.1:0"}, {&service});
  ASSERT_TRUE(server.ok()) << server.status();
  const auto channel = ConnectTo((*server)->address());
  ASSERT_TRUE(WaitForConnection(*channel, absl::Seconds(10)));
  const auto stub = v1::TokenizerService::NewStub(channel);
  const trace::RequestContext sent = trace::ContextFrom("id-7", "");
  grpc::ClientContext context;
  Prepare(sent, absl::Now() + absl::Seconds(30), &context);
  v1::EncodeResponse response;
  const absl::Status status = FromGrpc(stub->Encode(&context, {}, &response));
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(status.message(), "texts: is empty");
  EXPECT_EQ(status::PayloadOf(status, status::kFieldPayload), "texts");
  EXPECT_EQ(status::PayloadOf(status, status::kRetryAfterPayload), "1500");
  EXPECT_EQ(status::PayloadOf(status, status::kReasonPayload), "EMPTY");
  EXPECT_EQ(status::PayloadOf(status, status::kVersionPayload), "7");
  EXPECT_EQ(service.request.request_id, "id-7");
  EXPECT_EQ(service.request.traceparent.substr(0, 35), sent.traceparent.substr(0, 35));
  EXPECT_LT(service.deadline, absl::Now() + absl::Seconds(31));
}

TEST(RpcTest, OccupiedPortIsUnavailable) {
  FailingService one;
  FailingService two;
  auto first = Server::Start({.listen = "127.0.0.1:0"}, {&one});
  ASSERT_TRUE(first.ok());
  const auto second = Server::Start({.listen = (*first)->address()}, {&two});
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
}

TEST(ProcessTest, MetricsAreServedOnlyAsLongAsTheirRegistryLives) {
  Process process;
  std::string address;
  {
    metrics::Registry registry;
    registry.AddGauge("mneme_test_depth", "Depth.").Set(3);
    const auto server = process.StartMetrics("127.0.0.1:0", registry);
    ASSERT_TRUE(server.ok()) << server.status();
    address = (*server)->address();
    const auto response = httplib::Client("http://" + address).Get("/metrics");
    ASSERT_TRUE(response);
    EXPECT_THAT(response->body, ::testing::HasSubstr("mneme_test_depth 3"));
  }
  // The process goes on; a scrape that comes now must not find the registry's remains.
  EXPECT_FALSE(httplib::Client("http://" + address).Get("/metrics"));
}

TEST(ProcessTest, WithoutAnAddressThereAreNoMetrics) {
  Process process;
  const metrics::Registry registry;
  const auto server = process.StartMetrics("", registry);
  ASSERT_TRUE(server.ok()) << server.status();
  EXPECT_EQ(*server, nullptr);
}

}  // namespace
}  // namespace mneme::rpc
