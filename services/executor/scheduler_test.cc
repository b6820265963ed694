#include "services/executor/scheduler.h"

#include <algorithm>
#include <array>
#include <map>
#include <numeric>
#include <random>
#include <set>
#include <string>

#include "absl/time/clock.h"
#include "common/metrics/metrics.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "services/executor/admission.h"
#include "services/executor/hash_step_model.h"
#include "services/executor/philox.h"

namespace mneme::executor {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Le;
using ::testing::SizeIs;

std::vector<int32_t> Prompt(int64_t size, int32_t salt) {
  std::vector<int32_t> ids(size);
  for (int64_t i = 0; i < size; ++i) ids[i] = static_cast<int32_t>(1 + (i * 7 + salt * 13) % 60);
  return ids;
}

WorkSpec Generate(std::vector<int32_t> prompt, SamplingParams sampling) {
  WorkSpec spec;
  spec.prompt = std::move(prompt);
  spec.sampling = std::make_shared<SamplingParams>(std::move(sampling));
  spec.policy = memory::FullPolicy();
  return spec;
}

WorkSpec Score(std::vector<int32_t> context, std::vector<std::vector<int32_t>> continuations) {
  WorkSpec spec;
  spec.prompt = std::move(context);
  spec.continuations = std::move(continuations);
  spec.policy = memory::FullPolicy();
  return spec;
}

struct Answer {
  std::vector<int32_t> ids;
  std::vector<TokenScores> logprobs;
  std::vector<TokenScores> prompt_logprobs;
  std::optional<AnswerEnd> end;
};

// A model, its scheduler, and the streams of what was added.
struct Bench {
  explicit Bench(const SchedulerOptions& wanted = {}, int64_t num_pages = 4096,
                 const HashModelOptions& model_options = {})
      : metrics(registry), model(model_options) {
    SchedulerOptions options = wanted;
    options.kv_budget_bytes = model.BudgetOf(num_pages);
    max_running = options.max_running;
    step_tokens = options.step_tokens;
    scheduler = *Scheduler::Create(&model, options, &metrics);
  }

  std::shared_ptr<TokenStream> Add(WorkSpec spec) {
    auto request = std::make_shared<Request>();
    request->submitted = std::chrono::steady_clock::now();
    request->arrival = arrivals++;
    const auto limit = TokenLimit(spec, {.model = model.limits(),
                                         .kv_shape = model.kv_shape(),
                                         .num_pages = scheduler->pool().num_pages(),
                                         .step_tokens = step_tokens,
                                         .max_running = max_running});
    EXPECT_TRUE(limit.ok()) << limit.status();
    request->token_limit = *limit;
    auto stream = std::make_shared<TokenStream>(spec.num_answers(), signal);
    request->stream = stream;
    request->spec = std::move(spec);
    scheduler->Add(std::move(request));
    return stream;
  }

  void Run(int max_steps = 100000) {
    for (int i = 0; i < max_steps && !scheduler->idle(); ++i) scheduler->Step();
  }

  // Takes what the stream has without waiting.
  static std::map<int, Answer> Take(TokenStream& stream) {
    std::map<int, Answer> answers;
    StreamEvent event;
    while (stream.Next(&event, std::chrono::steady_clock::now()) == TokenStream::Read::kEvent) {
      Answer& answer = answers[event.index];
      answer.ids.insert(answer.ids.end(), event.token_ids.begin(), event.token_ids.end());
      answer.logprobs.insert(answer.logprobs.end(), event.logprobs.begin(), event.logprobs.end());
      answer.prompt_logprobs.insert(answer.prompt_logprobs.end(), event.prompt_logprobs.begin(),
                                    event.prompt_logprobs.end());
      if (event.end.has_value()) answer.end = event.end;
    }
    return answers;
  }

  metrics::Registry registry;
  ExecutorMetrics metrics;
  HashStepModel model;
  std::shared_ptr<EngineSignal> signal = std::make_shared<EngineSignal>();
  int64_t max_running = 0;
  int64_t step_tokens = 0;
  uint64_t arrivals = 0;
  std::unique_ptr<Scheduler> scheduler;
};

// What a request answers when nobody else is there.
std::map<int, Answer> Alone(const WorkSpec& spec) {
  Bench bench;
  const auto stream = bench.Add(spec);
  std::map<int, Answer> answers;
  while (!bench.scheduler->idle()) {
    bench.Run(100);
    for (auto& [index, news] : Bench::Take(*stream)) {
      Answer& answer = answers[index];
      answer.ids.insert(answer.ids.end(), news.ids.begin(), news.ids.end());
      std::move(news.logprobs.begin(), news.logprobs.end(), std::back_inserter(answer.logprobs));
      if (news.end.has_value()) answer.end = news.end;
    }
  }
  EXPECT_TRUE(stream->status().ok()) << stream->status();
  return answers;
}

std::vector<WorkSpec> MixedRequests(int count) {
  std::vector<WorkSpec> specs;
  for (int i = 0; i < count; ++i) {
    SamplingParams sampling;
    sampling.max_tokens = 5 + i * 11 % 40;
    sampling.seed = 100 + i;
    sampling.temperature = i % 3 == 0 ? 0 : 0.9F;
    if (i % 3 == 2) sampling.top_p = 0.9F;
    if (i % 4 == 1) sampling.repetition_penalty = 1.3F;
    if (i % 5 == 4) sampling.frequency_penalty = 0.7F;
    sampling.end_ids = {0};
    specs.push_back(Generate(Prompt(1 + i * 37 % 150, i), sampling));
    if (i % 7 == 3) specs.back().policy = *memory::WindowPolicy(4, 20);
  }
  return specs;
}

TEST(SchedulerTest, AnswersInABatchOf64AreThoseOfEachAlone) {
  const std::vector<WorkSpec> specs = MixedRequests(64);
  Bench bench({.step_tokens = 96}, 1 << 15);
  std::vector<std::shared_ptr<TokenStream>> streams;
  for (const WorkSpec& spec : specs) {
    streams.push_back(bench.Add(spec));
    bench.scheduler->Step();
  }
  bench.Run();
  for (size_t i = 0; i < specs.size(); ++i) {
    EXPECT_EQ(Bench::Take(*streams[i])[0].ids, Alone(specs[i])[0].ids) << i;
  }
  EXPECT_EQ(bench.scheduler->pool().used_pages(), 0);
}

TEST(SchedulerTest, PreemptionLosesNothing) {
  std::vector<WorkSpec> specs;
  for (int i = 0; i < 24; ++i) {
    SamplingParams sampling{.temperature = i % 2 == 0 ? 0.0F : 0.8F, .max_tokens = 60 + i};
    sampling.seed = i;
    sampling.n = i % 6 == 5 ? 3 : 1;
    specs.push_back(Generate(Prompt(5 + i * 3, i), sampling));
  }
  // Many fit when they begin, about five when they end: 4 heads, pages of 16 entries.
  Bench bench({.step_tokens = 64}, 4 * 34);
  std::vector<std::shared_ptr<TokenStream>> streams;
  for (const WorkSpec& spec : specs) streams.push_back(bench.Add(spec));
  bench.Run();
  EXPECT_TRUE(bench.scheduler->idle());
  for (size_t i = 0; i < specs.size(); ++i) {
    EXPECT_TRUE(streams[i]->status().ok()) << streams[i]->status();
    std::map<int, Answer> expected = Alone(specs[i]);
    for (auto& [index, answer] : Bench::Take(*streams[i])) {
      EXPECT_EQ(answer.ids, expected[index].ids) << i << " " << index;
    }
  }
  EXPECT_GT(bench.metrics.preemptions.Value(), 0);
  EXPECT_EQ(bench.scheduler->pool().used_pages(), 0);
}

TEST(SchedulerTest, PreemptionTakesTheYoungestAndTheOldestGoesOn) {
  SamplingParams sampling{.temperature = 0, .max_tokens = 100};
  Bench bench({}, 4 * 10);
  const auto first = bench.Add(Generate(Prompt(30, 1), sampling));
  const auto second = bench.Add(Generate(Prompt(30, 2), sampling));
  for (int i = 0; i < 80; ++i) bench.scheduler->Step();
  EXPECT_EQ(bench.scheduler->num_running(), 1);
  EXPECT_EQ(bench.scheduler->num_waiting(), 1);
  EXPECT_GT(bench.metrics.preemptions.Value(), 0);
  EXPECT_THAT(Bench::Take(*first)[0].ids, SizeIs(80));
  bench.Run();
  EXPECT_TRUE(second->status().ok());
  EXPECT_THAT(Bench::Take(*second)[0].ids, SizeIs(100));
}

TEST(SchedulerTest, ElasticMemoriesAreTightenedBeforeAnybodyIsPreempted) {
  SamplingParams sampling{.temperature = 0, .max_tokens = 130};
  const HashModelOptions model{.context_length = 2048};
  const auto run = [&](bool is_elastic) {
    // Both fit when they begin: 25 and 13 pages of each of 4 heads; not when they end: 34 and 21.
    auto bench = std::make_unique<Bench>(SchedulerOptions{}, 4 * 42, model);
    WorkSpec large = Generate(Prompt(400, 1), sampling);
    large.is_elastic = is_elastic;
    const auto first = bench->Add(large);
    const auto second = bench->Add(Generate(Prompt(200, 2), sampling));
    bench->Run();
    EXPECT_TRUE(first->status().ok()) << first->status();
    EXPECT_EQ(Bench::Take(*second)[0].ids, Alone(Generate(Prompt(200, 2), sampling))[0].ids);
    EXPECT_EQ(bench->scheduler->pool().used_pages(), 0);
    return std::pair(std::move(bench), Bench::Take(*first)[0]);
  };
  const auto [stiff, whole] = run(false);
  EXPECT_GT(stiff->metrics.preemptions.Value(), 0);
  EXPECT_EQ(stiff->metrics.shrinks.Value(), 0);
  EXPECT_EQ(whole.end->receipt.policy(), "full");

  const auto [bench, answer] = run(true);
  EXPECT_EQ(bench->metrics.preemptions.Value(), 0);
  EXPECT_EQ(bench->metrics.shrinks.Value(), 1);
  EXPECT_EQ(answer.end->receipt.shrinks(), 1);
  EXPECT_THAT(answer.end->receipt.policy(), HasSubstr("window(sinks=4,recent=2"));
  EXPECT_LT(answer.end->receipt.kv_bytes_resident(), answer.end->receipt.kv_bytes_full() * 2 / 3);
  EXPECT_GT(answer.end->receipt.kv_bytes_peak(), answer.end->receipt.kv_bytes_resident());
  ASSERT_THAT(answer.ids, SizeIs(130));
  // The same text until it was tightened, another one from then on.
  EXPECT_EQ(answer.ids[0], whole.ids[0]);
  EXPECT_NE(answer.ids, whole.ids);
}

TEST(SchedulerTest, OfElasticMemoriesTheLargestGivesWay) {
  SamplingParams sampling{.temperature = 0, .max_tokens = 250};
  Bench bench({}, 4 * 54, {.context_length = 2048});
  WorkSpec older = Generate(Prompt(500, 1), sampling);
  WorkSpec younger = Generate(Prompt(316, 2), sampling);
  older.is_elastic = younger.is_elastic = true;
  const auto first = bench.Add(older);
  const auto second = bench.Add(younger);
  bench.Run();
  EXPECT_TRUE(first->status().ok()) << first->status();
  EXPECT_TRUE(second->status().ok()) << second->status();
  const Answer larger = Bench::Take(*first)[0];
  const Answer smaller = Bench::Take(*second)[0];
  EXPECT_THAT(larger.ids, SizeIs(250));
  EXPECT_THAT(smaller.ids, SizeIs(250));
  EXPECT_EQ(larger.end->receipt.shrinks(), 1);
  EXPECT_EQ(smaller.end->receipt.shrinks(), 0);
  EXPECT_EQ(bench.metrics.preemptions.Value(), 0);
  EXPECT_EQ(bench.scheduler->pool().used_pages(), 0);
}

TEST(SchedulerTest, ALongPromptDoesNotStallOthers) {
  SamplingParams sampling{.temperature = 0, .max_tokens = 60};
  Bench bench({.step_tokens = 32}, 1 << 14, {.context_length = 4096});
  const auto decoding = bench.Add(Generate(Prompt(4, 1), sampling));
  bench.scheduler->Step();
  Bench::Take(*decoding);
  bench.Add(Generate(Prompt(3000, 2), sampling));
  const auto late = bench.Add(Generate(Prompt(20, 3), sampling));
  for (int i = 0; i < 4; ++i) {
    bench.scheduler->Step();
    EXPECT_THAT(Bench::Take(*decoding)[0].ids, SizeIs(1)) << "step " << i;
  }
  EXPECT_THAT(Bench::Take(*late)[0].ids, SizeIs(::testing::Ge(2U)));
  for (const StepRecord& step : bench.model.steps()) {
    EXPECT_LE(std::accumulate(step.begin(), step.end(), int64_t{0}), 32);
  }
}

TEST(SchedulerTest, CancelFreesPagesWithinOneStep) {
  SamplingParams sampling{.temperature = 0, .max_tokens = 400};
  Bench bench;
  const auto kept = bench.Add(Generate(Prompt(10, 1), sampling));
  bench.scheduler->Step();
  const int64_t pages_before = bench.scheduler->pool().used_pages();
  sampling.n = 3;
  const auto cancelled = bench.Add(Generate(Prompt(90, 2), sampling));
  for (int i = 0; i < 3; ++i) bench.scheduler->Step();
  EXPECT_EQ(bench.scheduler->num_running(), 4);
  EXPECT_GT(bench.scheduler->pool().used_pages(), pages_before);
  cancelled->Cancel();
  bench.scheduler->Step();
  EXPECT_EQ(bench.scheduler->pool().used_pages(), pages_before);
  EXPECT_EQ(bench.metrics.kv_pages_used.Value(), static_cast<double>(pages_before));
  EXPECT_EQ(bench.metrics.running_sequences.Value(), 1);
  EXPECT_EQ(cancelled->status().code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(bench.metrics.cancelled.Value(), 1);
  bench.Run();
  EXPECT_TRUE(kept->status().ok());
}

TEST(SchedulerTest, ADeadlineEndsARequestInTheBatchAndInTheQueue) {
  SamplingParams sampling{.temperature = 0, .max_tokens = 400};
  Bench bench({.max_running = 1});
  WorkSpec spec = Generate(Prompt(10, 1), sampling);
  const auto running = bench.Add(spec);
  spec.deadline = absl::Now() - absl::Seconds(1);
  const auto waiting = bench.Add(spec);
  bench.scheduler->Step();
  EXPECT_EQ(waiting->status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(bench.scheduler->num_running(), 1);
  EXPECT_EQ(bench.scheduler->num_waiting(), 0);
  EXPECT_EQ(bench.metrics.deadline_exceeded.Value(), 1);
}

TEST(SchedulerTest, AnAnswerWhoseReaderIsBehindPausesAndOthersGoOn) {
  SamplingParams sampling{.temperature = 0, .max_tokens = 450};
  Bench bench;
  const auto slow = bench.Add(Generate(Prompt(10, 1), sampling));
  const auto fast = bench.Add(Generate(Prompt(10, 2), sampling));
  int64_t fast_tokens = 0;
  for (int i = 0; i < 350; ++i) {
    bench.scheduler->Step();
    fast_tokens += static_cast<int64_t>(Bench::Take(*fast)[0].ids.size());
  }
  EXPECT_EQ(fast_tokens, 350);
  EXPECT_TRUE(slow->is_backed_up(0));
  Answer answer = Bench::Take(*slow)[0];
  EXPECT_THAT(answer.ids, SizeIs(TokenStream::kMaxBacklog));
  while (!bench.scheduler->idle()) {
    bench.scheduler->Step();
    const std::vector<int32_t> more = Bench::Take(*slow)[0].ids;
    answer.ids.insert(answer.ids.end(), more.begin(), more.end());
    Bench::Take(*fast);
  }
  EXPECT_THAT(answer.ids, SizeIs(450));
  EXPECT_EQ(std::vector<int32_t>(answer.ids.begin(), answer.ids.begin() + 200), [&] {
    SamplingParams shorter = sampling;
    shorter.max_tokens = 200;
    return Alone(Generate(Prompt(10, 1), shorter))[0].ids;
  }());
}

TEST(SchedulerTest, APausedAnswerGivesItsPlaceToThoseWaiting) {
  SamplingParams sampling{.temperature = 0, .max_tokens = 400};
  Bench bench({.max_running = 1, .pause_limit = std::chrono::milliseconds(0)});
  const auto slow = bench.Add(Generate(Prompt(10, 1), sampling));
  for (int i = 0; i < 300; ++i) bench.scheduler->Step();
  sampling.max_tokens = 5;
  const auto next = bench.Add(Generate(Prompt(10, 2), sampling));
  for (int i = 0; i < 8; ++i) bench.scheduler->Step();
  EXPECT_THAT(Bench::Take(*next)[0].ids, SizeIs(5));
  EXPECT_EQ(bench.scheduler->num_waiting(), 1);
  Answer answer = Bench::Take(*slow)[0];
  while (!bench.scheduler->idle()) {
    bench.scheduler->Step();
    const std::vector<int32_t> more = Bench::Take(*slow)[0].ids;
    answer.ids.insert(answer.ids.end(), more.begin(), more.end());
  }
  EXPECT_THAT(answer.ids, SizeIs(400));
}

TEST(SchedulerTest, SeveralAnswersShareThePromptAndEqualSingleOnes) {
  SamplingParams sampling{.seed = 9, .max_tokens = 30, .n = 4};
  WorkSpec spec = Generate(Prompt(100, 1), sampling);
  Bench bench;
  const auto stream = bench.Add(spec);
  bench.Run();
  std::map<int, Answer> answers = Bench::Take(*stream);
  ASSERT_EQ(answers.size(), 4U);
  // The prompt is computed once: 100 tokens, then 29 steps of 4.
  int64_t computed = 0;
  for (const StepRecord& step : bench.model.steps()) {
    computed += std::accumulate(step.begin(), step.end(), int64_t{0});
  }
  EXPECT_EQ(computed, 100 + 29 * 4);
  std::set<std::vector<int32_t>> different;
  for (int i = 0; i < 4; ++i) {
    SamplingParams single = sampling;
    single.n = 1;
    single.seed = SeedOfAnswer(9, i);
    EXPECT_EQ(answers[i].ids, Alone(Generate(Prompt(100, 1), single))[0].ids) << i;
    different.insert(answers[i].ids);
    EXPECT_EQ(answers[i].end->receipt.reused_tokens(), i == 0 ? 0 : 100);
  }
  EXPECT_EQ(different.size(), 4U);
}

TEST(SchedulerTest, AGenerationGoesOnWhereAnotherExecutorDied) {
  for (const float temperature : {0.0F, 1.0F}) {
    SamplingParams sampling{.temperature = temperature,
                            .presence_penalty = 0.5F,
                            .repetition_penalty = 1.2F,
                            .seed = 4,
                            .max_tokens = 40,
                            .min_tokens = 20,
                            .logprobs = 2};
    sampling.end_ids = {0, 1, 2};
    WorkSpec spec = Generate(Prompt(33, 1), sampling);
    const Answer whole = Alone(spec)[0];
    for (const size_t cut : {size_t{1}, size_t{7}, whole.ids.size() - 1}) {
      spec.generated.assign(whole.ids.begin(), whole.ids.begin() + cut);
      const Answer rest = Alone(spec)[0];
      EXPECT_EQ(rest.ids, std::vector<int32_t>(whole.ids.begin() + cut, whole.ids.end()));
      EXPECT_EQ(rest.end->reason, whole.end->reason);
      EXPECT_EQ(rest.end->usage.completion_tokens(), whole.end->usage.completion_tokens());
      EXPECT_EQ(rest.logprobs.front().chosen.logprob, whole.logprobs[cut].chosen.logprob);
    }
  }
}

TEST(SchedulerTest, AnswersEndByStopTokenByLengthAndByTheContext) {
  SamplingParams sampling{.temperature = 0, .max_tokens = 50};
  const std::vector<int32_t> ids = Alone(Generate(Prompt(9, 5), sampling))[0].ids;
  ASSERT_THAT(ids, SizeIs(50));
  sampling.end_ids = {ids[7]};
  const size_t first = std::find(ids.begin(), ids.end(), ids[7]) - ids.begin();
  Answer answer = Alone(Generate(Prompt(9, 5), sampling))[0];
  EXPECT_EQ(answer.ids, std::vector<int32_t>(ids.begin(), ids.begin() + first + 1));
  EXPECT_EQ(answer.end->reason, inference::v1::FINISH_REASON_STOP);
  answer = Alone(Generate(Prompt(500, 5), {.temperature = 0}))[0];
  EXPECT_THAT(answer.ids, SizeIs(12));
  EXPECT_EQ(answer.end->reason, inference::v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(answer.end->usage.prompt_tokens(), 500);
  EXPECT_EQ(answer.end->usage.completion_tokens(), 12);
  EXPECT_EQ(answer.end->receipt.prefilled_tokens(), 500);
  EXPECT_EQ(answer.end->receipt.resident_tokens(), 511);
  EXPECT_EQ(answer.end->receipt.kv_bytes_full(), answer.end->receipt.kv_bytes_resident());
  EXPECT_EQ(answer.end->receipt.tier(), "none");
}

TEST(SchedulerTest, AWindowBoundsMemoryAndMayRunPastTheContext) {
  SamplingParams sampling{.temperature = 0, .max_tokens = 900};
  WorkSpec spec = Generate(Prompt(300, 2), sampling);
  spec.policy = *memory::WindowPolicy(4, 28);
  Bench bench({.step_tokens = 32});
  const auto stream = bench.Add(spec);
  std::vector<int32_t> ids;
  AnswerEnd end;
  while (!bench.scheduler->idle()) {
    bench.scheduler->Step();
    Answer news = Bench::Take(*stream)[0];
    ids.insert(ids.end(), news.ids.begin(), news.ids.end());
    if (news.end.has_value()) end = *news.end;
    EXPECT_LE(bench.scheduler->pool().used_pages(), 4 * 6);
  }
  EXPECT_THAT(ids, SizeIs(900));
  EXPECT_LE(end.receipt.resident_tokens(), 64);
  EXPECT_EQ(end.receipt.resident_tokens() + end.receipt.evicted_tokens(), 1199);
  EXPECT_GT(end.receipt.compression_ratio(), 10);
  EXPECT_GE(end.receipt.kv_bytes_peak(), end.receipt.kv_bytes_resident());
}

TEST(SchedulerTest, PromptLogprobsAreTheScoresOfThePrompt) {
  SamplingParams sampling{.temperature = 0, .max_tokens = 3, .prompt_logprobs = 2};
  const std::vector<int32_t> prompt = Prompt(70, 3);
  Bench bench({.step_tokens = 16});
  const auto stream = bench.Add(Generate(prompt, sampling));
  bench.Run();
  const Answer answer = Bench::Take(*stream)[0];
  const std::vector<int32_t> rest(prompt.begin() + 1, prompt.end());
  const Answer scored = Alone(Score({prompt[0]}, {rest}))[0];
  ASSERT_THAT(answer.prompt_logprobs, SizeIs(69));
  ASSERT_THAT(scored.logprobs, SizeIs(69));
  for (size_t i = 0; i < 69; ++i) {
    EXPECT_EQ(answer.prompt_logprobs[i].chosen.id, prompt[i + 1]);
    EXPECT_EQ(answer.prompt_logprobs[i].chosen.logprob, scored.logprobs[i].chosen.logprob) << i;
    EXPECT_THAT(answer.prompt_logprobs[i].top, SizeIs(2));
  }
  EXPECT_THAT(answer.ids, SizeIs(3));
}

TEST(SchedulerTest, ScoresEqualThoseOfEachContinuationAloneEvenWithFewPages) {
  std::vector<std::vector<int32_t>> continuations;
  for (int i = 0; i < 40; ++i) continuations.push_back(Prompt(1 + i * 5 % 33, i));
  const std::vector<int32_t> context = Prompt(77, 9);
  for (const int64_t pages : {4096, 4 * 12}) {
    Bench bench({.max_running = 8, .step_tokens = 24}, pages);
    const auto stream = bench.Add(Score(context, continuations));
    const auto other = bench.Add(Generate(Prompt(20, 1), {.temperature = 0, .max_tokens = 30}));
    bench.Run();
    EXPECT_TRUE(bench.scheduler->idle());
    EXPECT_TRUE(stream->status().ok()) << stream->status();
    EXPECT_TRUE(other->status().ok());
    std::map<int, Answer> answers = Bench::Take(*stream);
    ASSERT_EQ(answers.size(), continuations.size());
    for (size_t i = 0; i < continuations.size(); ++i) {
      const Answer alone = Alone(Score(context, {continuations[i]}))[0];
      ASSERT_EQ(answers[i].logprobs.size(), continuations[i].size());
      for (size_t j = 0; j < continuations[i].size(); ++j) {
        EXPECT_EQ(answers[i].logprobs[j].chosen.logprob, alone.logprobs[j].chosen.logprob);
        EXPECT_EQ(answers[i].logprobs[j].chosen.id, continuations[i][j]);
      }
    }
    EXPECT_EQ(bench.scheduler->pool().used_pages(), 0);
  }
}

TEST(SchedulerTest, AFailedStepEndsItsRequestsAndTheNextOnesWork) {
  Bench bench;
  bench.model.before_step = [] { return absl::InternalError("device lost"); };
  const auto failed = bench.Add(Generate(Prompt(10, 1), {.max_tokens = 5}));
  bench.scheduler->Step();
  EXPECT_EQ(failed->status().code(), absl::StatusCode::kInternal);
  EXPECT_EQ(bench.scheduler->pool().used_pages(), 0);
  bench.model.before_step = nullptr;
  bench.model.gives_nan = true;
  const auto nan = bench.Add(Generate(Prompt(10, 1), {.max_tokens = 5, .n = 2}));
  bench.Run();
  EXPECT_THAT(std::string(nan->status().message()), HasSubstr("finite"));
  bench.model.gives_nan = false;
  const auto works = bench.Add(Generate(Prompt(10, 1), {.max_tokens = 5}));
  bench.Run();
  EXPECT_TRUE(works->status().ok());
  EXPECT_EQ(bench.scheduler->pool().used_pages(), 0);
}

TEST(SchedulerTest, AScoreOfManyContinuationsLeavesPlacesForOthers) {
  Bench bench({.max_running = 4, .step_tokens = 16});
  std::vector<std::vector<int32_t>> continuations;
  for (int i = 0; i < 200; ++i) continuations.push_back(Prompt(12, i));
  const auto score = bench.Add(Score(Prompt(8, 1), continuations));
  bench.scheduler->Step();
  bench.scheduler->Step();
  const auto late = bench.Add(Generate(Prompt(5, 2), {.temperature = 0, .max_tokens = 4}));
  for (int i = 0; i < 12; ++i) bench.scheduler->Step();
  EXPECT_THAT(Bench::Take(*late)[0].ids, SizeIs(4));
  EXPECT_GT(bench.scheduler->num_running(), 0);
  bench.Run();
  EXPECT_TRUE(score->status().ok());
}

// Requests of all kinds, few pages, readers that stop and callers that go: whatever happens,
// everything ends, answers are whole, and no page is lost.
class SchedulerLoadTest : public ::testing::TestWithParam<int> {};

TEST_P(SchedulerLoadTest, NothingStallsLeaksOrIsLost) {
  std::mt19937_64 random(GetParam());
  const auto pick = [&](int64_t low, int64_t high) {
    return low + static_cast<int64_t>(random() % (high - low + 1));
  };
  Bench bench({.max_running = pick(3, 12),
               .step_tokens = pick(12, 80),
               .pause_limit = std::chrono::milliseconds(0)},
              4 * pick(36, 90));
  struct Caller {
    WorkSpec spec;
    std::shared_ptr<TokenStream> stream;
    std::map<int, Answer> answers;
    bool cancelled = false;
  };
  std::vector<Caller> callers;
  const auto read = [](Caller& caller) {
    for (auto& [index, news] : Bench::Take(*caller.stream)) {
      Answer& answer = caller.answers[index];
      answer.ids.insert(answer.ids.end(), news.ids.begin(), news.ids.end());
      answer.logprobs.insert(answer.logprobs.end(), news.logprobs.begin(), news.logprobs.end());
      if (news.end.has_value()) answer.end = news.end;
    }
  };
  for (int step = 0; step < 20000 && (callers.size() < 60 || !bench.scheduler->idle()); ++step) {
    if (callers.size() < 60 && pick(0, 3) == 0) {
      Caller caller;
      const std::vector<int32_t> prompt = Prompt(pick(1, 100), static_cast<int32_t>(pick(0, 9)));
      if (pick(0, 4) == 0) {
        std::vector<std::vector<int32_t>> continuations(pick(1, 9));
        for (auto& ids : continuations)
          ids = Prompt(pick(1, 40), static_cast<int32_t>(pick(0, 50)));
        caller.spec = Score(prompt, continuations);
      } else {
        SamplingParams sampling{.seed = random(),
                                .max_tokens = pick(1, pick(0, 5) == 0 ? 400 : 60)};
        sampling.n = static_cast<int>(pick(0, 3) == 0 ? pick(1, 3) : 1);
        caller.spec = Generate(prompt, sampling);
      }
      if (pick(0, 3) == 0) caller.spec.policy = *memory::WindowPolicy(pick(0, 4), pick(1, 40));
      // Many find what earlier ones have left behind.
      caller.spec.tenant = std::array{"", "a", "b"}[pick(0, 2)];
      if (!caller.spec.is_score() && !caller.spec.tenant.empty() && pick(0, 1) == 0) {
        caller.spec.session_id = std::array{"s", "t", "u"}[pick(0, 2)];
      }
      caller.stream = bench.Add(caller.spec);
      callers.push_back(std::move(caller));
    }
    if (!callers.empty() && pick(0, 40) == 0) {
      Caller& caller = callers[pick(0, static_cast<int64_t>(callers.size()) - 1)];
      caller.cancelled = true;
      caller.stream->Cancel();
    }
    bench.scheduler->Step();
    ASSERT_LE(bench.scheduler->pool().used_pages(), bench.scheduler->pool().num_pages());
    for (Caller& caller : callers) {
      if (pick(0, 60) == 0) read(caller);
    }
  }
  ASSERT_TRUE(bench.scheduler->idle()) << "something stands still";
  EXPECT_EQ(bench.scheduler->pool().used_pages(), 0);
  for (Caller& caller : callers) {
    read(caller);
    if (caller.cancelled) continue;
    EXPECT_TRUE(caller.stream->status().ok()) << caller.stream->status();
    std::map<int, Answer> expected = Alone(caller.spec);
    ASSERT_EQ(caller.answers.size(), expected.size());
    for (auto& [index, answer] : caller.answers) {
      EXPECT_EQ(answer.ids, expected[index].ids);
      ASSERT_EQ(answer.logprobs.size(), expected[index].logprobs.size());
      for (size_t i = 0; i < answer.logprobs.size(); ++i) {
        EXPECT_EQ(answer.logprobs[i].chosen.logprob, expected[index].logprobs[i].chosen.logprob);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Seeds, SchedulerLoadTest, ::testing::Range(0, 12));

// What a request answers after others have left their memory behind.
struct CacheBench : Bench {
  using Bench::Bench;
  Answer Ask(WorkSpec spec, const std::string& tenant, const std::string& session = "") {
    spec.tenant = tenant;
    spec.session_id = session;
    const size_t steps_before = model.steps().size();
    const auto stream = Add(std::move(spec));
    Answer answer;
    while (!scheduler->idle()) {
      Run(100);
      Answer news = Take(*stream)[0];
      answer.ids.insert(answer.ids.end(), news.ids.begin(), news.ids.end());
      std::move(news.logprobs.begin(), news.logprobs.end(), std::back_inserter(answer.logprobs));
      std::move(news.prompt_logprobs.begin(), news.prompt_logprobs.end(),
                std::back_inserter(answer.prompt_logprobs));
      if (news.end.has_value()) answer.end = news.end;
    }
    computed = 0;
    for (size_t i = steps_before; i < model.steps().size(); ++i) {
      computed += std::accumulate(model.steps()[i].begin(), model.steps()[i].end(), int64_t{0});
    }
    return answer;
  }
  int64_t computed = 0;  // tokens, for the last one asked
};

TEST(SchedulerCacheTest, ALaterRequestOfTheTenantComputesOnlyWhatIsNew) {
  const WorkSpec spec = Generate(Prompt(100, 1), {.temperature = 0, .max_tokens = 20});
  CacheBench bench;
  const Answer first = bench.Ask(spec, "a");
  EXPECT_EQ(first.ids, Alone(spec)[0].ids);
  EXPECT_EQ(bench.computed, 119);
  EXPECT_EQ(bench.scheduler->pool().used_pages(), 0);
  EXPECT_EQ(bench.metrics.kv_pages_used.Value(), 0);
  EXPECT_EQ(bench.metrics.kv_pages_cached.Value(), 4 * 8);

  const Answer again = bench.Ask(spec, "a");
  EXPECT_EQ(again.ids, first.ids);
  EXPECT_EQ(bench.computed, 20) << "the last token of the prompt gives the logits";
  EXPECT_EQ(again.end->usage.cached_tokens(), 99);
  EXPECT_EQ(again.end->receipt.reused_tokens(), 99);
  EXPECT_EQ(again.end->receipt.prefilled_tokens(), 1);
  EXPECT_EQ(again.end->receipt.tier(), "hot");
  EXPECT_EQ(bench.metrics.prefix_cache_hits.Value(), 99);
  EXPECT_EQ(bench.metrics.prefix_cache_queries.Value(), 200);

  std::vector<int32_t> next = spec.prompt;
  next.insert(next.end(), first.ids.begin(), first.ids.end());
  next.push_back(5);
  const WorkSpec turn = Generate(next, {.temperature = 0, .max_tokens = 5});
  EXPECT_EQ(bench.Ask(turn, "a").ids, Alone(turn)[0].ids);
  EXPECT_EQ(bench.computed, 2 + 4);
}

TEST(SchedulerCacheTest, AnotherTenantFindsNothing) {
  const WorkSpec spec = Generate(Prompt(100, 1), {.temperature = 0, .max_tokens = 20});
  CacheBench bench;
  bench.Ask(spec, "a");
  const Answer other = bench.Ask(spec, "b");
  EXPECT_EQ(bench.computed, 119);
  EXPECT_EQ(other.end->usage.cached_tokens(), 0);
  EXPECT_EQ(other.end->receipt.tier(), "none");
  bench.Ask(spec, "");
  EXPECT_EQ(bench.computed, 119);
  bench.Ask(spec, "");
  EXPECT_EQ(bench.computed, 119) << "without a tenant nothing is kept";
}

TEST(SchedulerCacheTest, TextsOfASessionAreTheSameWithAndWithoutTheCache) {
  for (const bool is_windowed : {false, true}) {
    CacheBench bench;
    std::vector<int32_t> log = Prompt(30, 3);
    for (int turn = 0; turn < 8; ++turn) {
      WorkSpec spec = Generate(log, {.seed = 7, .max_tokens = 11});
      if (is_windowed) spec.policy = *memory::WindowPolicy(4, 24);
      const int64_t known = turn == 0 ? 0 : static_cast<int64_t>(log.size()) - 6;
      const Answer answer = bench.Ask(spec, "a", "s");
      EXPECT_EQ(answer.ids, Alone(spec)[0].ids) << turn;
      EXPECT_EQ(answer.end->receipt.reused_tokens(), known) << turn;
      EXPECT_EQ(answer.end->receipt.prefilled_tokens(), log.size() - known) << turn;
      // The last generated token is not in the memory, and five new ones come.
      log.insert(log.end(), answer.ids.begin(), answer.ids.end());
      for (int i = 0; i < 5; ++i) log.push_back(20 + turn);
    }
  }
}

TEST(SchedulerCacheTest, AWindowThatCannotGoBackIsBuiltAnew) {
  WorkSpec spec = Generate(Prompt(120, 3), {.temperature = 0, .max_tokens = 30});
  spec.policy = *memory::WindowPolicy(4, 24);
  CacheBench bench;
  bench.Ask(spec, "a", "s");
  spec.prompt.resize(60);
  const Answer answer = bench.Ask(spec, "a", "s");
  EXPECT_EQ(answer.ids, Alone(spec)[0].ids);
  EXPECT_EQ(answer.end->receipt.reused_tokens(), 0);
}

TEST(SchedulerCacheTest, PromptLogprobsNeedEveryRow) {
  SamplingParams sampling{.temperature = 0, .max_tokens = 3, .prompt_logprobs = 0};
  const WorkSpec spec = Generate(Prompt(70, 3), sampling);
  CacheBench bench;
  const Answer first = bench.Ask(spec, "a");
  const Answer second = bench.Ask(spec, "a");
  ASSERT_THAT(second.prompt_logprobs, SizeIs(69));
  for (size_t i = 0; i < 69; ++i) {
    EXPECT_EQ(second.prompt_logprobs[i].chosen.logprob, first.prompt_logprobs[i].chosen.logprob);
  }
  EXPECT_EQ(second.end->receipt.reused_tokens(), 0);
}

TEST(SchedulerCacheTest, SeveralAnswersAndScoresShareWhatWasThere) {
  CacheBench bench;
  bench.Ask(Generate(Prompt(90, 1), {.temperature = 0, .max_tokens = 2}), "a");
  WorkSpec several = Generate(Prompt(100, 1), {.seed = 9, .max_tokens = 12, .n = 3});
  std::map<int, Answer> expected = Alone(several);
  several.tenant = "a";
  const auto stream = bench.Add(several);
  bench.Run();
  for (auto& [index, answer] : Bench::Take(*stream)) {
    EXPECT_EQ(answer.ids, expected[index].ids) << index;
    EXPECT_EQ(answer.end->receipt.reused_tokens(), index == 0 ? 90 : 100);
  }
  WorkSpec score = Score(Prompt(95, 1), {Prompt(1, 4), Prompt(8, 5)});
  std::map<int, Answer> scores = Alone(score);
  score.tenant = "a";
  const size_t steps_before = bench.model.steps().size();
  const auto scored = bench.Add(score);
  bench.Run();
  for (auto& [index, answer] : Bench::Take(*scored)) {
    ASSERT_EQ(answer.logprobs.size(), scores[index].logprobs.size());
    for (size_t i = 0; i < answer.logprobs.size(); ++i) {
      EXPECT_EQ(answer.logprobs[i].chosen.logprob, scores[index].logprobs[i].chosen.logprob);
    }
  }
  EXPECT_EQ(bench.model.steps()[steps_before], StepRecord{1}) << "the context's last token";
}

TEST(SchedulerCacheTest, WhatACancelledRequestHasComputedIsKept) {
  WorkSpec spec = Generate(Prompt(100, 1), {.temperature = 0, .max_tokens = 200});
  spec.tenant = "a";
  CacheBench bench({.step_tokens = 40});
  const auto stream = bench.Add(spec);
  bench.scheduler->Step();
  bench.scheduler->Step();
  stream->Cancel();
  bench.Run();
  EXPECT_EQ(stream->status().code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(bench.scheduler->pool().used_pages(), 0);
  spec.sampling =
      std::make_shared<SamplingParams>(SamplingParams{.temperature = 0, .max_tokens = 20});
  const Answer answer = bench.Ask(spec, "a");
  EXPECT_EQ(answer.end->receipt.reused_tokens(), 80);
  EXPECT_EQ(answer.ids, Alone(spec)[0].ids);
}

TEST(SchedulerCacheTest, TheCacheGivesWayBeforeAnybodyRunning) {
  // Room for 160 tokens: two old entries, then two requests that need all of it.
  CacheBench bench({}, 4 * 10);
  bench.Ask(Generate(Prompt(60, 1), {.temperature = 0, .max_tokens = 4}), "a");
  bench.Ask(Generate(Prompt(60, 2), {.temperature = 0, .max_tokens = 4}), "a");
  EXPECT_EQ(bench.scheduler->pool().idle_pages(), 4 * 8);
  const WorkSpec third = Generate(Prompt(60, 3), {.temperature = 0, .max_tokens = 19});
  const WorkSpec fourth = Generate(Prompt(60, 4), {.temperature = 0, .max_tokens = 19});
  const auto one = bench.Add(third);
  const auto two = bench.Add(fourth);
  bench.scheduler->Step();
  EXPECT_EQ(bench.scheduler->num_running(), 2) << "cached pages are room";
  bench.Run();
  EXPECT_EQ(Bench::Take(*one)[0].ids, Alone(third)[0].ids);
  EXPECT_EQ(Bench::Take(*two)[0].ids, Alone(fourth)[0].ids);
  EXPECT_EQ(bench.metrics.preemptions.Value(), 0);
  EXPECT_EQ(bench.metrics.prefix_cache_evictions.Value(), 2);
}

TEST(SchedulerCacheTest, AFailedStepLeavesNothingBehind) {
  WorkSpec spec = Generate(Prompt(100, 1), {.temperature = 0, .max_tokens = 200});
  spec.tenant = "a";
  CacheBench bench({.step_tokens = 40});
  const auto stream = bench.Add(spec);
  bench.scheduler->Step();
  bench.model.before_step = [] { return absl::InternalError("device lost"); };
  bench.Run();
  EXPECT_EQ(stream->status().code(), absl::StatusCode::kInternal);
  EXPECT_EQ(bench.scheduler->pool().free_pages(), bench.scheduler->pool().num_pages());
}

TEST(SchedulerCacheTest, PausedAnswersComeBackWithoutComputingAgain) {
  WorkSpec slow = Generate(Prompt(10, 1), {.temperature = 0, .max_tokens = 400});
  slow.tenant = "a";
  CacheBench bench({.max_running = 1, .pause_limit = std::chrono::milliseconds(0)});
  const auto stream = bench.Add(slow);
  for (int i = 0; i < 300; ++i) bench.scheduler->Step();
  const auto next = bench.Add(Generate(Prompt(10, 2), {.temperature = 0, .max_tokens = 5}));
  for (int i = 0; i < 8; ++i) bench.scheduler->Step();
  EXPECT_EQ(bench.scheduler->num_waiting(), 1);
  Answer answer = Bench::Take(*stream)[0];
  const size_t steps_before = bench.model.steps().size();
  while (!bench.scheduler->idle()) {
    bench.scheduler->Step();
    const std::vector<int32_t> more = Bench::Take(*stream)[0].ids;
    answer.ids.insert(answer.ids.end(), more.begin(), more.end());
  }
  EXPECT_EQ(bench.model.steps()[steps_before], StepRecord{1});
  slow.tenant = "";
  EXPECT_EQ(answer.ids.size(), 400U);
}

TEST(SchedulerTest, RunningSequencesNeverExceedTheirLimit) {
  Bench bench({.max_running = 5, .step_tokens = 64}, 1 << 14);
  std::vector<std::shared_ptr<TokenStream>> streams;
  for (int i = 0; i < 12; ++i) {
    streams.push_back(
        bench.Add(Generate(Prompt(20, i), {.seed = 1, .max_tokens = 10, .n = 1 + i % 3})));
  }
  while (!bench.scheduler->idle()) {
    bench.scheduler->Step();
    ASSERT_LE(bench.scheduler->num_running(), 5);
  }
  for (const auto& stream : streams) EXPECT_TRUE(stream->status().ok());
}

}  // namespace
}  // namespace mneme::executor
