// What the tokenizer service shows of itself on /metrics.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "common/metrics/metrics.h"

namespace mneme::tokenizer {

// Thread-safe. `registry` must outlive it.
class TokenizerMetrics {
 public:
  explicit TokenizerMetrics(metrics::Registry& registry);

  // Counts one call that ended with `status` and took `duration`.
  void CountCall(absl::string_view method, const absl::Status& status, absl::Duration duration);
  void CountEncoded(size_t num_tokens) { encoded_.Increment(static_cast<double>(num_tokens)); }
  void CountDecoded(size_t num_tokens) { decoded_.Increment(static_cast<double>(num_tokens)); }

 private:
  metrics::Registry& registry_;
  metrics::Counter& encoded_;
  metrics::Counter& decoded_;
};

}  // namespace mneme::tokenizer
