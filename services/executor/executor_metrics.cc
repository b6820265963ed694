#include "services/executor/executor_metrics.h"

namespace mneme::executor {
namespace {

constexpr char kFinished[] = "mneme_executor_finished_total";
constexpr char kFinishedHelp[] = "Answers that ended, by reason.";
constexpr char kSnapshots[] = "mneme_executor_snapshots_total";
constexpr char kSnapshotsHelp[] = "Ends of turns, by whether their memory was stored.";
constexpr char kEnded[] = "mneme_executor_ended_early_total";
constexpr char kEndedHelp[] = "Requests that ended without all their answers, by reason.";

std::vector<double> TokenLatencyBounds() {
  return {0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05,
          0.075, 0.1,    0.15,  0.2,    0.3,  0.5,   1,    2.5,  10};
}

}  // namespace

ExecutorMetrics::ExecutorMetrics(metrics::Registry& registry)
    : running_sequences(
          registry.AddGauge("mneme_executor_running_sequences", "Sequences in the batch.")),
      waiting_requests(registry.AddGauge("mneme_executor_waiting_requests",
                                         "Requests and preempted sequences in the queue.")),
      kv_pages_used(registry.AddGauge("mneme_executor_kv_pages_used",
                                      "Key/value pages that running sequences refer to.")),
      kv_pages_cached(registry.AddGauge("mneme_executor_kv_pages_cached",
                                        "Key/value pages that are only kept for later requests.")),
      kv_pages_total(registry.AddGauge("mneme_executor_kv_pages_capacity",
                                       "Key/value pages that the budget allows.")),
      kv_usage_ratio(registry.AddGauge("mneme_executor_kv_usage_ratio",
                                       "Used part of the key/value pages, from 0 to 1.")),
      time_to_first_token(registry.AddHistogram("mneme_executor_time_to_first_token_seconds",
                                                "From the request's arrival to its first token.",
                                                metrics::LatencyBounds())),
      inter_token_latency(registry.AddHistogram("mneme_executor_inter_token_latency_seconds",
                                                "Between two tokens of an answer.",
                                                TokenLatencyBounds())),
      queue_seconds(registry.AddHistogram("mneme_executor_queue_seconds",
                                          "From the request's arrival to its first step.",
                                          metrics::LatencyBounds())),
      step_seconds(registry.AddHistogram("mneme_executor_step_seconds",
                                         "Duration of a step, sampling included.",
                                         TokenLatencyBounds())),
      step_tokens(registry.AddHistogram("mneme_executor_step_tokens", "Tokens computed in a step.",
                                        {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048})),
      prompt_tokens(registry.AddCounter("mneme_executor_prompt_tokens_total",
                                        "Prompt and context tokens of accepted requests.")),
      generation_tokens(
          registry.AddCounter("mneme_executor_generation_tokens_total", "Tokens generated.")),
      reused_tokens(registry.AddCounter("mneme_executor_reused_tokens_total",
                                        "Tokens whose key/value entries were shared instead of "
                                        "computed.")),
      prefix_cache_queries(registry.AddCounter("mneme_executor_prefix_cache_queries_total",
                                               "Tokens looked for among those of ended "
                                               "sequences.")),
      prefix_cache_hits(registry.AddCounter("mneme_executor_prefix_cache_hits_total",
                                            "Tokens found among those of ended sequences.")),
      prefix_cache_evictions(registry.AddCounter("mneme_executor_prefix_cache_evictions_total",
                                                 "Ended sequences whose pages were given back "
                                                 "before anybody asked for them.")),
      restored_tokens(
          registry.AddCounter("mneme_executor_restored_tokens_total",
                              "Tokens whose entries came back from a stored snapshot.")),
      restores_failed(registry.AddCounter("mneme_executor_restores_failed_total",
                                          "Stored memories that were not used but computed anew.")),
      restore_seconds(registry.AddHistogram("mneme_executor_restore_seconds",
                                            "From asking for a stored memory until it was there.",
                                            metrics::LatencyBounds())),
      snapshots_stored(registry.AddCounter(kSnapshots, kSnapshotsHelp, {{"result", "stored"}})),
      snapshots_failed(registry.AddCounter(kSnapshots, kSnapshotsHelp, {{"result", "failed"}})),
      stage_seconds(registry.AddHistogram(
          "mneme_executor_stage_seconds",
          "From an answer's last token until its memory was stored.", metrics::LatencyBounds())),
      snapshot_bytes_sent(registry.AddCounter("mneme_executor_snapshot_bytes_sent_total",
                                              "Chunk bytes sent to the memory service.")),
      snapshot_bytes_fetched(registry.AddCounter("mneme_executor_snapshot_bytes_fetched_total",
                                                 "Chunk bytes got from the memory service.")),
      steps(registry.AddCounter("mneme_executor_steps_total", "Steps of the model.")),
      preemptions(registry.AddCounter("mneme_executor_preemptions_total",
                                      "Sequences put back into the queue for want of pages.")),
      shrinks(registry.AddCounter("mneme_executor_shrinks_total",
                                  "Memories of elastic sequences tightened for want of pages.")),
      guard_probes(registry.AddCounter("mneme_executor_guard_probes_total",
                                       "Comparisons of guarded policies with the full cache.")),
      guard_back_offs(registry.AddCounter("mneme_executor_guard_back_offs_total",
                                          "Budgets that a guard has doubled.")),
      rejections(registry.AddCounter("mneme_executor_rejections_total",
                                     "Requests refused because the queue was full.")),
      cancelled(registry.AddCounter(kEnded, kEndedHelp, {{"reason", "cancelled"}})),
      deadline_exceeded(registry.AddCounter(kEnded, kEndedHelp, {{"reason", "deadline"}})),
      failed(registry.AddCounter(kEnded, kEndedHelp, {{"reason", "error"}})),
      finished_stop_(registry.AddCounter(kFinished, kFinishedHelp, {{"reason", "stop"}})),
      finished_length_(registry.AddCounter(kFinished, kFinishedHelp, {{"reason", "length"}})) {}

metrics::Counter& ExecutorMetrics::Finished(inference::v1::FinishReason reason) {
  return reason == inference::v1::FINISH_REASON_STOP ? finished_stop_ : finished_length_;
}

}  // namespace mneme::executor
