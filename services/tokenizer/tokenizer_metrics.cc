#include "services/tokenizer/tokenizer_metrics.h"

#include <string>

namespace mneme::tokenizer {

TokenizerMetrics::TokenizerMetrics(metrics::Registry& registry)
    : registry_(registry),
      encoded_(registry.AddCounter("mneme_tokenizer_encoded_tokens_total",
                                   "Token ids that texts and conversations were turned into.")),
      decoded_(registry.AddCounter("mneme_tokenizer_decoded_tokens_total",
                                   "Token ids that were turned into text.")) {}

void TokenizerMetrics::CountCall(absl::string_view method, const absl::Status& status,
                                 absl::Duration duration) {
  registry_
      .AddCounter(
          "mneme_tokenizer_calls_total", "Calls by method and status code.",
          {{"method", std::string(method)}, {"code", absl::StatusCodeToString(status.code())}})
      .Increment();
  registry_
      .AddHistogram("mneme_tokenizer_call_seconds", "How long calls took, by method.",
                    metrics::LatencyBounds(), {{"method", std::string(method)}})
      .Observe(absl::ToDoubleSeconds(duration));
}

}  // namespace mneme::tokenizer
