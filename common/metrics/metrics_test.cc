#include "common/metrics/metrics.h"

#include <httplib.h>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace mneme::metrics {
namespace {

using ::testing::HasSubstr;

TEST(MetricsTest, ServerShowsMetricsAndReadiness) {
  Registry registry;
  registry.AddCounter("mneme_test_calls_total", "Calls.", {{"method", "Encode"}}).Increment(3);
  bool ready = false;
  const auto server = MetricsServer::Start("127.0.0.1:0", registry, [&ready] { return ready; });
  ASSERT_TRUE(server.ok()) << server.status();
  httplib::Client client("http://" + (*server)->address());
  auto response = client.Get("/metrics");
  ASSERT_TRUE(response);
  EXPECT_THAT(response->body, HasSubstr("mneme_test_calls_total{method=\"Encode\"} 3"));
  EXPECT_EQ(client.Get("/healthz")->status, 503);
  ready = true;
  EXPECT_EQ(client.Get("/healthz")->status, 200);
}

TEST(MetricsTest, OccupiedPortIsUnavailable) {
  Registry registry;
  const auto first = MetricsServer::Start("127.0.0.1:0", registry, [] { return true; });
  ASSERT_TRUE(first.ok());
  const auto second = MetricsServer::Start((*first)->address(), registry, [] { return true; });
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace mneme::metrics
