// The executor through its real stub, with a small model on real pages.
#include "services/executor/executor_service.h"

#include <functional>
#include <limits>
#include <string>
#include <thread>

#include "absl/time/clock.h"
#include "common/rpc/grpc_status.h"
#include "common/rpc/server.h"
#include "common/status/annotate.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "services/executor/hash_step_model.h"
#include "tests/support/time_limit.h"

namespace mneme::executor {
namespace {

using ::testing::HasSubstr;
using ::testing::SizeIs;

struct Answer {
  absl::Status status;
  std::vector<int32_t> ids;
  int num_messages = 0;
  v1::GenerateResponse last;
};

class ExecutorServiceTest : public ::testing::Test {
 protected:
  void Start(const EngineOptions& wanted = {}, int64_t num_pages = 4096) {
    auto model = std::make_unique<HashStepModel>();
    model_ = model.get();
    model_->before_step = before_step_;
    EngineOptions options = wanted;
    options.scheduler.kv_budget_bytes = model->BudgetOf(num_pages);
    engine_ = *Engine::Create(std::move(model), options, &metrics_);
    v1::GetModelResponse description;
    description.set_model("hash");
    description.set_vocab_size(64);
    service_.SetEngine(engine_.get(), description);
  }

  void TearDown() override {
    Release();
    server_->Shutdown(absl::Seconds(10));
  }

  // Makes every step wait until Release.
  void Block() {
    before_step_ = [this] {
      sync::MutexLock lock(mutex_);
      while (blocked_) changed_.Wait(mutex_);
      return absl::OkStatus();
    };
  }
  void Release() {
    sync::MutexLock lock(mutex_);
    blocked_ = false;
    changed_.NotifyAll();
  }

  static v1::GenerateRequest Request(int prompt_size, int max_tokens) {
    v1::GenerateRequest request;
    for (int i = 0; i < prompt_size; ++i) request.add_prompt_ids(1 + i * 7 % 60);
    request.mutable_sampling()->set_max_tokens(max_tokens);
    request.mutable_sampling()->set_temperature(0);
    request.mutable_sampling()->set_ignore_eos(true);
    return request;
  }

  Answer Generate(const v1::GenerateRequest& request, grpc::ClientContext* context) {
    Answer answer;
    const auto reader = stub_->Generate(context, request);
    v1::GenerateResponse response;
    while (reader->Read(&response)) {
      answer.ids.insert(answer.ids.end(), response.token_ids().begin(), response.token_ids().end());
      ++answer.num_messages;
      answer.last = response;
    }
    answer.status = rpc::FromGrpc(reader->Finish());
    return answer;
  }
  Answer Generate(const v1::GenerateRequest& request) {
    grpc::ClientContext context;
    return Generate(request, &context);
  }

  v1::GetLoadResponse Load() {
    grpc::ClientContext context;
    v1::GetLoadResponse response;
    EXPECT_TRUE(stub_->GetLoad(&context, {}, &response).ok());
    return response;
  }

  // Waits until nothing runs and no page is used; false after ten seconds.
  bool BecomesIdle() {
    for (const absl::Time end = absl::Now() + testing::TimeLimit(absl::Seconds(10));
         absl::Now() < end;) {
      const v1::GetLoadResponse load = Load();
      if (load.running() == 0 && load.waiting() == 0 && load.pages_used() == 0) return true;
      absl::SleepFor(absl::Milliseconds(2));
    }
    return false;
  }

  metrics::Registry registry_;
  ExecutorMetrics metrics_{registry_};
  sync::Mutex mutex_;
  sync::CondVar changed_;
  bool blocked_ ABSL_GUARDED_BY(mutex_) = true;
  std::function<absl::Status()> before_step_;
  HashStepModel* model_ = nullptr;
  std::unique_ptr<Engine> engine_;
  ExecutorServiceImpl service_;
  std::unique_ptr<rpc::Server> server_ = *rpc::Server::Start({}, {&service_});
  std::unique_ptr<v1::ExecutorService::Stub> stub_ =
      v1::ExecutorService::NewStub(server_->InProcessChannel());
};

TEST_F(ExecutorServiceTest, IsUnavailableWhileTheModelLoads) {
  EXPECT_EQ(Generate(Request(3, 3)).status.code(), absl::StatusCode::kUnavailable);
  grpc::ClientContext context;
  v1::GetModelResponse response;
  EXPECT_EQ(stub_->GetModel(&context, {}, &response).error_code(), grpc::StatusCode::UNAVAILABLE);
}

TEST_F(ExecutorServiceTest, StreamsTokensThenUsageAndReceipt) {
  Start();
  v1::GenerateRequest request = Request(40, 20);
  request.set_session_id("s-1");
  request.mutable_sampling()->set_logprobs(3);
  const Answer answer = Generate(request);
  ASSERT_TRUE(answer.status.ok()) << answer.status;
  EXPECT_THAT(answer.ids, SizeIs(20));
  EXPECT_EQ(answer.last.finish_reason(), inference::v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(answer.last.usage().prompt_tokens(), 40);
  EXPECT_EQ(answer.last.usage().completion_tokens(), 20);
  EXPECT_EQ(answer.last.receipt().prefilled_tokens(), 40);
  EXPECT_EQ(answer.last.receipt().resident_tokens(), 59);
  EXPECT_EQ(answer.last.receipt().tier(), "none");
  EXPECT_FALSE(answer.last.receipt().persisted());
  EXPECT_FALSE(answer.last.receipt().not_persisted_reason().empty());
  EXPECT_GT(answer.last.receipt().ms().at("total"), 0);
  const auto& logprob = answer.last.logprobs(answer.last.logprobs_size() - 1);
  EXPECT_EQ(logprob.token_id(), answer.ids.back());
  EXPECT_EQ(logprob.rank(), 1);
  EXPECT_EQ(logprob.top_size(), 3);
  EXPECT_LT(logprob.logprob(), 0);
}

TEST_F(ExecutorServiceTest, NOfZeroMeansOneAndSeveralAnswersAllEnd) {
  Start();
  v1::GenerateRequest request = Request(10, 5);
  request.mutable_sampling()->set_n(0);
  EXPECT_THAT(Generate(request).ids, SizeIs(5));
  request.mutable_sampling()->set_n(16);
  request.mutable_sampling()->set_temperature(1);
  const Answer answer = Generate(request);
  EXPECT_TRUE(answer.status.ok());
  EXPECT_THAT(answer.ids, SizeIs(5 * 16));
}

TEST_F(ExecutorServiceTest, ScoresContinuations) {
  Start();
  v1::ScoreRequest request;
  request.add_context_ids(5);
  request.add_context_ids(6);
  request.add_continuations()->add_token_ids(9);
  v1::Continuation* const longer = request.add_continuations();
  const Answer greedy = Generate([] {
    v1::GenerateRequest generate = Request(0, 4);
    generate.add_prompt_ids(5);
    generate.add_prompt_ids(6);
    return generate;
  }());
  for (const int32_t id : greedy.ids) longer->add_token_ids(id);
  grpc::ClientContext context;
  v1::ScoreResponse response;
  ASSERT_TRUE(stub_->Score(&context, request, &response).ok());
  ASSERT_EQ(response.scores_size(), 2);
  EXPECT_EQ(response.scores(0).logprobs_size(), 1);
  EXPECT_FALSE(response.scores(0).is_greedy());
  ASSERT_EQ(response.scores(1).logprobs_size(), 4);
  EXPECT_TRUE(response.scores(1).is_greedy());
  double sum = 0;
  for (const float logprob : response.scores(1).logprobs()) sum += logprob;
  EXPECT_DOUBLE_EQ(response.scores(1).sum(), sum);
}

TEST_F(ExecutorServiceTest, DeadlineEndsTheCallAndFreesThePages) {
  before_step_ = [] {
    absl::SleepFor(absl::Milliseconds(5));
    return absl::OkStatus();
  };
  Start();
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(150));
  const Answer answer = Generate(Request(50, 400), &context);
  EXPECT_EQ(answer.status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_GT(answer.ids.size(), 0U);
  EXPECT_TRUE(BecomesIdle());
}

TEST_F(ExecutorServiceTest, CancelFreesThePages) {
  before_step_ = [] {
    absl::SleepFor(absl::Milliseconds(2));
    return absl::OkStatus();
  };
  Start();
  grpc::ClientContext context;
  v1::GenerateRequest request = Request(50, 400);
  request.mutable_sampling()->set_n(4);
  const auto reader = stub_->Generate(&context, request);
  v1::GenerateResponse response;
  ASSERT_TRUE(reader->Read(&response));
  EXPECT_GT(Load().pages_used(), 0);
  context.TryCancel();
  while (reader->Read(&response)) {
  }
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_TRUE(BecomesIdle());
  EXPECT_EQ(metrics_.cancelled.Value(), 1);
}

TEST_F(ExecutorServiceTest, ClientThatStopsReadingPausesAloneAndGetsEverythingLater) {
  Start();
  grpc::ClientContext context;
  const auto reader = stub_->Generate(&context, Request(5, 500));
  v1::GenerateResponse response;
  ASSERT_TRUE(reader->Read(&response));
  std::vector<int32_t> ids(response.token_ids().begin(), response.token_ids().end());
  for (int i = 0; i < 5; ++i) EXPECT_THAT(Generate(Request(5 + i, 300)).ids, SizeIs(300));
  // Only the one that is not read is left, and it stands still.
  while (Load().running() > 1) absl::SleepFor(absl::Milliseconds(1));
  const double generated = metrics_.generation_tokens.Value();
  absl::SleepFor(absl::Milliseconds(50));
  EXPECT_EQ(metrics_.generation_tokens.Value(), generated);
  int num_messages = 1;
  while (reader->Read(&response)) {
    ids.insert(ids.end(), response.token_ids().begin(), response.token_ids().end());
    ++num_messages;
  }
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_THAT(ids, SizeIs(500));
  EXPECT_LT(num_messages, 400) << "tokens that waited come in fewer messages";
}

TEST_F(ExecutorServiceTest, FullQueueRefusesAtOnceWithARetryDelay) {
  Block();
  Start({.scheduler = {.max_running = 2}, .max_waiting = 3});
  std::vector<std::thread> threads;
  std::vector<Answer> answers(5);
  for (int i = 0; i < 5; ++i) {
    threads.emplace_back([&, i] { answers[i] = Generate(Request(4 + i, 3)); });
    // One after the other, so that the sixth is the one too many.
    while (engine_->num_accepted() < i + 1) absl::SleepFor(absl::Milliseconds(1));
  }
  const absl::Time begin = absl::Now();
  const Answer refused = Generate(Request(9, 3));
  EXPECT_LT(absl::Now() - begin, testing::TimeLimit(absl::Seconds(1)));
  EXPECT_EQ(refused.status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_FALSE(status::PayloadOf(refused.status, status::kRetryAfterPayload).empty());
  EXPECT_EQ(metrics_.rejections.Value(), 1);
  Release();
  for (std::thread& thread : threads) thread.join();
  for (const Answer& answer : answers) EXPECT_THAT(answer.ids, SizeIs(3)) << answer.status;
}

TEST_F(ExecutorServiceTest, DrainingRefusesNewWorkAndFinishesTheRest) {
  Block();
  Start();
  Answer answer;
  std::thread thread([&] { answer = Generate(Request(8, 30)); });
  while (engine_->num_accepted() < 1) absl::SleepFor(absl::Milliseconds(1));
  engine_->Drain();
  EXPECT_EQ(Generate(Request(8, 3)).status.code(), absl::StatusCode::kUnavailable);
  Release();
  thread.join();
  EXPECT_TRUE(answer.status.ok()) << answer.status;
  EXPECT_THAT(answer.ids, SizeIs(30));
}

TEST_F(ExecutorServiceTest, EngineThatStopsEndsItsCallsWithUnavailable) {
  before_step_ = [] {
    absl::SleepFor(absl::Milliseconds(2));
    return absl::OkStatus();
  };
  Start();
  grpc::ClientContext context;
  const auto reader = stub_->Generate(&context, Request(8, 500));
  v1::GenerateResponse response;
  ASSERT_TRUE(reader->Read(&response));
  engine_.reset();
  while (reader->Read(&response)) {
  }
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
}

TEST_F(ExecutorServiceTest, RequestThatCanNeverFitIsRefusedWithoutARetryDelay) {
  Start({}, 4 * 8);  // 128 tokens
  const Answer refused = Generate(Request(100, 100));
  EXPECT_EQ(refused.status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(status::PayloadOf(refused.status, status::kRetryAfterPayload).empty());
  EXPECT_THAT(std::string(refused.status.message()), HasSubstr("kv_budget_bytes"));
  v1::GenerateRequest unbounded = Request(100, 1);
  unbounded.mutable_sampling()->clear_max_tokens();
  EXPECT_THAT(Generate(unbounded).ids, SizeIs(29));
}

TEST_F(ExecutorServiceTest, UnknownModelIsNotFound) {
  Start();
  v1::GenerateRequest request = Request(3, 3);
  request.set_model("other");
  EXPECT_EQ(Generate(request).status.code(), absl::StatusCode::kNotFound);
  request.set_model("hash");
  EXPECT_TRUE(Generate(request).status.ok());
}

struct BadRequest {
  std::string field;
  std::function<void(v1::GenerateRequest&)> spoil;
};

class BadGenerateTest : public ExecutorServiceTest,
                        public ::testing::WithParamInterface<BadRequest> {};

TEST_P(BadGenerateTest, IsInvalidNamesTheFieldAndTheServiceGoesOn) {
  Start();
  v1::GenerateRequest request = Request(5, 5);
  GetParam().spoil(request);
  const Answer answer = Generate(request);
  EXPECT_EQ(answer.status.code(), absl::StatusCode::kInvalidArgument) << answer.status;
  EXPECT_EQ(status::PayloadOf(answer.status, status::kFieldPayload), GetParam().field);
  EXPECT_TRUE(Generate(Request(5, 5)).status.ok());
}

INSTANTIATE_TEST_SUITE_P(
    Requests, BadGenerateTest,
    ::testing::Values(
        BadRequest{"sampling.temperature",
                   [](v1::GenerateRequest& r) { r.mutable_sampling()->set_temperature(-1); }},
        BadRequest{"sampling.temperature",
                   [](v1::GenerateRequest& r) {
                     r.mutable_sampling()->set_temperature(std::numeric_limits<float>::quiet_NaN());
                   }},
        BadRequest{"sampling.n", [](v1::GenerateRequest& r) { r.mutable_sampling()->set_n(-1); }},
        BadRequest{"sampling.n", [](v1::GenerateRequest& r) { r.mutable_sampling()->set_n(17); }},
        BadRequest{"sampling.min_tokens",
                   [](v1::GenerateRequest& r) { r.mutable_sampling()->set_min_tokens(6); }},
        BadRequest{"sampling.stop_token_ids",
                   [](v1::GenerateRequest& r) { r.mutable_sampling()->add_stop_token_ids(64); }},
        BadRequest{"prompt_ids", [](v1::GenerateRequest& r) { r.clear_prompt_ids(); }},
        BadRequest{"prompt_ids", [](v1::GenerateRequest& r) { r.add_prompt_ids(64); }},
        BadRequest{"prompt_ids", [](v1::GenerateRequest& r) { r.add_prompt_ids(-1); }},
        BadRequest{"prompt_ids",
                   [](v1::GenerateRequest& r) {
                     for (int i = 0; i < 512; ++i) r.add_prompt_ids(1);
                   }},
        BadRequest{"generated_ids", [](v1::GenerateRequest& r) { r.add_generated_ids(99); }},
        BadRequest{"generated_ids",
                   [](v1::GenerateRequest& r) {
                     r.add_generated_ids(1);
                     r.mutable_sampling()->set_n(2);
                   }},
        BadRequest{"memory_policy.window.recent",
                   [](v1::GenerateRequest& r) {
                     r.mutable_memory_policy()->mutable_window()->set_sinks(4);
                   }},
        BadRequest{"memory_policy.window.sinks", [](v1::GenerateRequest& r) {
                     r.mutable_memory_policy()->mutable_window()->set_sinks(-1);
                     r.mutable_memory_policy()->mutable_window()->set_recent(8);
                   }}));

TEST_F(ExecutorServiceTest, OverLongPromptNamesTheLengths) {
  Start();
  const Answer answer = Generate(Request(512, 1));
  EXPECT_THAT(std::string(answer.status.message()), HasSubstr("512"));
}

TEST_F(ExecutorServiceTest, BadScoreRequestsAreRefused) {
  Start();
  const auto code_of = [&](const v1::ScoreRequest& request) {
    grpc::ClientContext context;
    v1::ScoreResponse response;
    return stub_->Score(&context, request, &response).error_code();
  };
  v1::ScoreRequest request;
  request.add_continuations()->add_token_ids(1);
  EXPECT_EQ(code_of(request), grpc::StatusCode::INVALID_ARGUMENT);
  request.add_context_ids(3);
  EXPECT_EQ(code_of(request), grpc::StatusCode::OK);
  request.add_continuations();
  EXPECT_EQ(code_of(request), grpc::StatusCode::INVALID_ARGUMENT);
  request.mutable_continuations(1)->add_token_ids(64);
  EXPECT_EQ(code_of(request), grpc::StatusCode::INVALID_ARGUMENT);
  request.clear_continuations();
  EXPECT_EQ(code_of(request), grpc::StatusCode::INVALID_ARGUMENT);
  for (int i = 0; i < 257; ++i) request.add_continuations()->add_token_ids(1);
  EXPECT_EQ(code_of(request), grpc::StatusCode::INVALID_ARGUMENT);
}

}  // namespace
}  // namespace mneme::executor
