#include "services/executor/step_results.h"

#include <algorithm>
#include <utility>

#include "kernels/parallel.h"

namespace mneme::executor {
namespace {

double SecondsBetween(Instant begin, Instant end) {
  return std::chrono::duration<double>(end - begin).count();
}

}  // namespace

void StepResults::ScoreFirstTokens(Sequence* context, const float* row, int64_t vocab_size) {
  const absl::Span<const float> logits(row, vocab_size);
  const double log_sum = LogSumExp(logits);
  const int32_t best = ArgMax(logits);
  context->scores.clear();
  for (const std::vector<int32_t>& ids : context->request->spec.continuations) {
    TokenScores score;
    score.chosen = {ids[0], static_cast<float>(logits[ids[0]] - log_sum), ids[0] == best ? 1 : 0};
    context->scores.push_back(std::move(score));
  }
}

void StepResults::AcceptToken(Draw* draw, Instant now, Outcome* outcome) {
  Sequence& sequence = *draw->sequence;
  const Request& request = *sequence.request;
  const SamplingParams& params = *request.spec.sampling;
  sequence.tokens.push_back(draw->token);
  sequence.sampler->AddGenerated(draw->token);
  metrics_->generation_tokens.Increment();
  if (sequence.first_token.has_value()) {
    metrics_->inter_token_latency.Observe(SecondsBetween(sequence.last_token, now));
  } else {
    sequence.first_token = now;
    if (sequence.index == 0) {
      metrics_->time_to_first_token.Observe(SecondsBetween(request.submitted, now));
    }
  }
  sequence.last_token = now;

  StreamEvent event;
  event.index = sequence.index;
  event.token_ids.push_back(draw->token);
  if (params.logprobs.has_value()) event.logprobs.push_back(std::move(draw->scores));
  const int64_t num_tokens = static_cast<int64_t>(sequence.tokens.size());
  inference::v1::FinishReason reason = inference::v1::FINISH_REASON_UNSPECIFIED;
  if (sequence.sampler->IsEnd(draw->token)) {
    reason = inference::v1::FINISH_REASON_STOP;
  } else if (num_tokens >= request.token_limit) {
    reason = inference::v1::FINISH_REASON_LENGTH;
  }
  if (reason != inference::v1::FINISH_REASON_UNSPECIFIED) {
    AnswerEnd end = MakeEnd(sequence, reason, now);
    if (sequence.is_stored()) {
      sequence.end = std::move(end);  // told when its memory is stored
    } else {
      event.end = std::move(end);
    }
    metrics_->Finished(reason).Increment();
    outcome->ended.push_back(&sequence);
  }
  request.stream->Push(std::move(event));
}

StepResults::Outcome StepResults::Take(const at::Tensor& logits, const std::vector<Rows>& rows) {
  Outcome outcome;
  draws_.clear();
  prompt_scores_.clear();
  const int64_t vocab_size = logits.numel() == 0 ? 0 : logits.size(1);
  float* const data = logits.numel() == 0 ? nullptr : logits.data_ptr<float>();
  for (const Rows& entry : rows) {
    Sequence& sequence = *entry.sequence;
    const int64_t computed = sequence.num_computed();
    const bool complete = computed == sequence.num_to_compute();
    const auto row_of = [&](int64_t position) {
      return data + (entry.first_row + position - (computed - entry.num_rows)) * vocab_size;
    };
    if (sequence.kind == SequenceKind::kContext) {
      if (complete) ScoreFirstTokens(&sequence, row_of(computed - 1), vocab_size);
      continue;
    }
    if (sequence.kind == SequenceKind::kContinuation) {
      for (int64_t p = computed - entry.num_rows; p < computed; ++p) {
        prompt_scores_.push_back({&sequence, row_of(p), sequence.tokens[p + 1], 0, {}});
      }
      if (complete) outcome.ended.push_back(&sequence);
      continue;
    }
    if (sequence.wants_prompt_scores() && sequence.num_scored <= computed) {
      const int64_t end = std::min(computed + 1, sequence.num_prompt());
      for (; sequence.num_scored < end; ++sequence.num_scored) {
        prompt_scores_.push_back({&sequence,
                                  row_of(sequence.num_scored - 1),
                                  sequence.tokens[sequence.num_scored],
                                  *sequence.request->spec.sampling->prompt_logprobs,
                                  {}});
      }
    }
    if (!complete) continue;
    const bool fork = sequence.is_unforked_leader();
    draws_.push_back({&sequence, row_of(computed - 1), fork, -1, {}});
    if (!fork) continue;
    sequence.forked = true;
    for (int index = 1; index < sequence.request->spec.sampling->n; ++index) {
      outcome.forked.push_back(ForkAnswer(sequence, index));
      metrics_->reused_tokens.Increment(static_cast<double>(computed));
      draws_.push_back({outcome.forked.back().get(), row_of(computed - 1), true, -1, {}});
    }
  }

  // Prompt scores read rows that draws may change, so they go first.
  const int64_t num_scores = static_cast<int64_t>(prompt_scores_.size());
  const int64_t num_draws = static_cast<int64_t>(draws_.size());
  if (static_cast<int64_t>(scratch_.size()) < std::max(num_scores, num_draws)) {
    scratch_.resize(std::max(num_scores, num_draws));
  }
  kernels::ParallelFor(num_scores, [&](int64_t i) {
    PromptScore& task = prompt_scores_[i];
    task.scores = ScoreToken(absl::MakeConstSpan(task.row, vocab_size), task.token, task.num_top,
                             &scratch_[i].sampler);
  });
  kernels::ParallelFor(num_draws, [&](int64_t i) {
    Draw& draw = draws_[i];
    Scratch& scratch = scratch_[i];
    const std::optional<int> num_top = draw.sequence->request->spec.sampling->logprobs;
    absl::Span<float> row(draw.row, vocab_size);
    if (draw.keep_row || num_top.has_value()) {
      scratch.row.assign(row.begin(), row.end());
      row = absl::MakeSpan(scratch.row);
    }
    draw.token = draw.sequence->sampler->Sample(
        row, static_cast<int64_t>(draw.sequence->tokens.size()), &scratch.sampler);
    if (num_top.has_value() && draw.token >= 0) {
      draw.scores = ScoreToken(absl::MakeConstSpan(draw.row, vocab_size), draw.token, *num_top,
                               &scratch.sampler);
    }
  });

  const Instant now = std::chrono::steady_clock::now();
  for (PromptScore& task : prompt_scores_) {
    if (task.sequence->kind == SequenceKind::kContinuation) {
      task.sequence->scores.push_back(std::move(task.scores));
      continue;
    }
    StreamEvent event;
    event.index = task.sequence->index;
    event.prompt_logprobs.push_back(std::move(task.scores));
    task.sequence->request->stream->Push(std::move(event));
  }
  for (Draw& draw : draws_) {
    if (draw.token < 0) {
      outcome.broken.push_back(draw.sequence);
    } else {
      AcceptToken(&draw, now, &outcome);
    }
  }
  return outcome;
}

}  // namespace mneme::executor
