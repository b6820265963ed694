#include "services/gateway/gateway_metrics.h"

namespace mneme::gateway {
namespace {

// From 1 ms: a token of a small model takes a few.
std::vector<double> TokenBounds() {
  return {0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 10};
}

}  // namespace

GatewayMetrics::GatewayMetrics(metrics::Registry& registry)
    : in_flight(registry.AddGauge("mneme_gateway_requests_in_flight",
                                  "Chat and completion requests being answered")),
      time_to_first_token_seconds(registry.AddHistogram(
          "mneme_gateway_time_to_first_token_seconds",
          "From a request's arrival to its first token", metrics::LatencyBounds())),
      inter_token_seconds(registry.AddHistogram("mneme_gateway_inter_token_latency_seconds",
                                                "Between tokens of one answer", TokenBounds())),
      prompt_tokens(registry.AddCounter("mneme_gateway_prompt_tokens_total", "Tokens of prompts")),
      cached_tokens(registry.AddCounter("mneme_gateway_cached_prompt_tokens_total",
                                        "Prompt tokens whose key/value entries were reused")),
      completion_tokens(
          registry.AddCounter("mneme_gateway_completion_tokens_total", "Tokens generated")),
      retries(registry.AddCounter("mneme_gateway_retries_total",
                                  "Generations begun again before their first token")),
      failovers(registry.AddCounter("mneme_gateway_failovers_total",
                                    "Generations resumed after an executor was lost")),
      cancelled(registry.AddCounter("mneme_gateway_cancelled_total",
                                    "Answers whose client went away before the end")),
      unpersisted_turns(registry.AddCounter("mneme_gateway_unpersisted_turns_total",
                                            "Session turns answered but not committed")),
      ready_executors(registry.AddGauge("mneme_gateway_ready_executors",
                                        "Executors that answered the last probe")),
      registry_(registry) {}

void GatewayMetrics::CountRequest(absl::string_view route, absl::string_view code, double seconds) {
  registry_
      .AddCounter("mneme_gateway_requests_total", "Requests by route and status code",
                  {{"route", std::string(route)}, {"code", std::string(code)}})
      .Increment();
  registry_
      .AddHistogram("mneme_gateway_request_duration_seconds", "From arrival to the last byte",
                    metrics::LatencyBounds(), {{"route", std::string(route)}})
      .Observe(seconds);
}

void GatewayMetrics::CountRejection(absl::string_view reason) {
  registry_
      .AddCounter("mneme_gateway_rejections_total", "Requests refused before any work, by reason",
                  {{"reason", std::string(reason)}})
      .Increment();
}

}  // namespace mneme::gateway
