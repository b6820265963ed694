// The executor's Prometheus metrics.
#pragma once

#include <array>

#include "common/metrics/metrics.h"
#include "mneme/inference/v1/inference.pb.h"

namespace mneme::executor {

// References into a registry; thread-safe. Gauges that are cheap to read are set after every step.
struct ExecutorMetrics {
  // `registry` must outlive this.
  explicit ExecutorMetrics(metrics::Registry& registry);

  // Counts an ended answer.
  metrics::Counter& Finished(inference::v1::FinishReason reason);

  metrics::Gauge& running_sequences;
  metrics::Gauge& waiting_requests;
  metrics::Gauge& kv_pages_used;
  metrics::Gauge& kv_pages_cached;
  metrics::Gauge& kv_pages_total;
  metrics::Gauge& kv_usage_ratio;
  metrics::Histogram& time_to_first_token;
  metrics::Histogram& inter_token_latency;
  metrics::Histogram& queue_seconds;
  metrics::Histogram& step_seconds;
  metrics::Histogram& step_tokens;
  metrics::Counter& prompt_tokens;
  metrics::Counter& generation_tokens;
  metrics::Counter& reused_tokens;
  metrics::Counter& prefix_cache_queries;
  metrics::Counter& prefix_cache_hits;
  metrics::Counter& prefix_cache_evictions;
  metrics::Counter& restored_tokens;
  metrics::Counter& restores_failed;
  metrics::Histogram& restore_seconds;
  metrics::Counter& snapshots_stored;
  metrics::Counter& snapshots_failed;
  metrics::Histogram& stage_seconds;
  metrics::Counter& snapshot_bytes_sent;
  metrics::Counter& snapshot_bytes_fetched;
  metrics::Counter& steps;
  metrics::Counter& preemptions;
  metrics::Counter& shrinks;
  metrics::Counter& guard_probes;
  metrics::Counter& guard_back_offs;
  metrics::Counter& rejections;
  metrics::Counter& cancelled;
  metrics::Counter& deadline_exceeded;
  metrics::Counter& failed;

 private:
  metrics::Counter& finished_stop_;
  metrics::Counter& finished_length_;
};

}  // namespace mneme::executor
