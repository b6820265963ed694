// Turns the logits of a step into tokens, logprobs and ends. Rows are worked on in parallel; the
// streams are written afterwards, by the calling thread.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "services/executor/executor_metrics.h"
#include "services/executor/sequence.h"

namespace mneme::executor {

// Not thread-safe.
class StepResults {
 public:
  // `metrics` must outlive this.
  explicit StepResults(ExecutorMetrics* metrics) : metrics_(metrics) {}

  // A sequence of the step that the model has advanced, and where its rows of logits begin.
  struct Rows {
    Sequence* sequence;
    int64_t first_row;
    int64_t num_rows;
  };

  struct Outcome {
    std::vector<Sequence*> ended;                   // answers and continuations that are complete
    std::vector<Sequence*> broken;                  // the model gave no usable logits
    std::vector<std::unique_ptr<Sequence>> forked;  // new answers, each with its first token
  };

  // `logits` [R, V] float32 on the CPU; changed in place.
  Outcome Take(const at::Tensor& logits, const std::vector<Rows>& rows);

 private:
  struct Draw {
    Sequence* sequence;
    float* row;
    bool keep_row;  // others need it unchanged
    int32_t token = -1;
    TokenScores scores;
  };
  struct PromptScore {
    Sequence* sequence;
    const float* row;
    int32_t token;
    int num_top;
    TokenScores scores;
  };
  struct Scratch {
    SamplerScratch sampler;
    std::vector<float> row;
  };

  void ScoreFirstTokens(Sequence* context, const float* row, int64_t vocab_size);
  void AcceptToken(Draw* draw, Instant now, Outcome* outcome);

  ExecutorMetrics* const metrics_;
  std::vector<Scratch> scratch_;
  std::vector<Draw> draws_;
  std::vector<PromptScore> prompt_scores_;
};

}  // namespace mneme::executor
