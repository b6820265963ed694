// Sessions whose memory is stored and comes back, through the executor's stub and a memory service
// that is strict about the contract and fails on demand. Whatever happens, texts are those of a
// session that was never interrupted.
#include "services/executor/session_memory.h"

#include <grpc/grpc.h>

#include <atomic>
#include <random>
#include <set>
#include <string>
#include <thread>

#include "absl/time/clock.h"
#include "common/rpc/client.h"
#include "common/rpc/grpc_status.h"
#include "common/rpc/server.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "services/executor/executor_service.h"
#include "services/executor/fake_memory_service.h"
#include "services/executor/hash_step_model.h"

namespace mneme::executor {
namespace {

using ::testing::HasSubstr;

// 16 layers of 16 heads: 16 KiB a token, so that chunks of 1 MiB are full after 64.
constexpr int64_t kTokenBytes = 16 * 16 * 2 * 8 * 4;

HashModelOptions ModelOptions() {
  return {.context_length = 2048, .num_layers = 16, .num_kv_heads = 16};
}

// No bound that a busy machine could reach; tests of the bounds set their own.
SessionMemoryOptions Patient() {
  SessionMemoryOptions options;
  options.close_timeout = std::chrono::minutes(1);
  options.stall_timeout = std::chrono::minutes(1);
  options.link.fetch.manifest_timeout = absl::Minutes(1);
  options.link.fetch.chunk_timeout = absl::Minutes(1);
  return options;
}

struct Answer {
  absl::Status status;
  std::vector<int32_t> ids;
  v1::GenerateResponse last;

  const inference::v1::MemoryReceipt& receipt() const { return last.receipt(); }
};

// Waits until the condition is true; false after ten seconds.
bool Becomes(const std::function<bool()>& condition) {
  for (const absl::Time end = absl::Now() + absl::Seconds(10); absl::Now() < end;) {
    if (condition()) return true;
    absl::SleepFor(absl::Milliseconds(1));
  }
  return false;
}

// Blocks calls until it is opened.
class Gate {
 public:
  grpc::Status Pass() {
    sync::MutexLock lock(mutex_);
    ++num_waiting_;
    while (!is_open_) changed_.Wait(mutex_);
    return grpc::Status::OK;
  }
  void Open() {
    sync::MutexLock lock(mutex_);
    is_open_ = true;
    changed_.NotifyAll();
  }
  bool BecomesUsed() {
    return Becomes([this] {
      sync::MutexLock lock(mutex_);
      return num_waiting_ > 0;
    });
  }

 private:
  sync::Mutex mutex_;
  sync::CondVar changed_;
  bool is_open_ ABSL_GUARDED_BY(mutex_) = false;
  int num_waiting_ ABSL_GUARDED_BY(mutex_) = 0;
};

// An executor of its own, as another process would be.
class Executor {
 public:
  explicit Executor(std::shared_ptr<grpc::Channel> memory,
                    SessionMemoryOptions sessions = Patient(),
                    int64_t num_pages = int64_t{256} * 300,
                    std::function<absl::Status()> before_step = nullptr) {
    auto model = std::make_unique<HashStepModel>(ModelOptions());
    model->before_step = std::move(before_step);
    EngineOptions options;
    options.scheduler.step_tokens = 100;
    options.scheduler.kv_budget_bytes = model->BudgetOf(num_pages);
    if (sessions.model_fingerprint.empty()) sessions.model_fingerprint = "hash";
    options.sessions = sessions;
    if (memory != nullptr) options.memory_service = memory::v1::MemoryService::NewStub(memory);
    engine_ = *Engine::Create(std::move(model), options, &metrics);
    service_.SetEngine(engine_.get(), {});
    server_ = *rpc::Server::Start({}, {&service_});
    stub = v1::ExecutorService::NewStub(server_->InProcessChannel());
  }
  ~Executor() { server_->Shutdown(absl::Seconds(10)); }

  Answer Generate(const v1::GenerateRequest& request, grpc::ClientContext* context) {
    Answer answer;
    const auto reader = stub->Generate(context, request);
    v1::GenerateResponse response;
    while (reader->Read(&response)) {
      answer.ids.insert(answer.ids.end(), response.token_ids().begin(), response.token_ids().end());
      answer.last = response;
      if (on_message) on_message(response);
    }
    answer.status = rpc::FromGrpc(reader->Finish());
    EXPECT_TRUE(answer.status.ok() || !expects_ok) << answer.status;
    return answer;
  }
  Answer Generate(const v1::GenerateRequest& request) {
    grpc::ClientContext context;
    return Generate(request, &context);
  }

  int64_t pages_used() {
    grpc::ClientContext context;
    v1::GetLoadResponse response;
    EXPECT_TRUE(stub->GetLoad(&context, {}, &response).ok());
    return response.pages_used();
  }

  void Forget(const std::string& tenant, const std::string& session) {
    v1::ForgetMemoryRequest request;
    request.set_tenant(tenant);
    request.set_session_id(session);
    grpc::ClientContext context;
    v1::ForgetMemoryResponse response;
    EXPECT_TRUE(stub->ForgetMemory(&context, request, &response).ok());
  }

  std::function<void(const v1::GenerateResponse&)> on_message;
  bool expects_ok = true;
  metrics::Registry registry;
  ExecutorMetrics metrics{registry};
  std::unique_ptr<v1::ExecutorService::Stub> stub;

 private:
  std::unique_ptr<Engine> engine_;
  ExecutorServiceImpl service_;
  std::unique_ptr<rpc::Server> server_;
};

class SessionMemoryTest : public ::testing::TestWithParam<bool> {
 protected:
  // When its last user goes, gRPC's own shutdown may wait ten seconds for a timer.
  static void SetUpTestSuite() { grpc_init(); }
  static void TearDownTestSuite() { grpc_shutdown(); }

  ~SessionMemoryTest() override { memory_server_->Shutdown(absl::Milliseconds(100)); }

  std::unique_ptr<Executor> NewExecutor(const SessionMemoryOptions& options = Patient(),
                                        int64_t num_pages = int64_t{256} * 300,
                                        std::function<absl::Status()> before_step = nullptr) {
    return std::make_unique<Executor>(rpc::ConnectTo(memory_server_->address()), options, num_pages,
                                      std::move(before_step));
  }

  // A turn of the session: the log so far and some new tokens.
  v1::GenerateRequest Turn(int num_new, int max_tokens) {
    v1::GenerateRequest request;
    for (int i = 0; i < num_new; ++i) {
      log_.push_back(static_cast<int32_t>(1 + (log_.size() * 7 + version_ * 13) % 60));
    }
    request.mutable_prompt_ids()->Assign(log_.begin(), log_.end());
    request.mutable_sampling()->set_max_tokens(max_tokens);
    request.mutable_sampling()->set_seed(3 + version_);
    request.mutable_sampling()->set_ignore_eos(true);
    request.set_tenant("t");
    request.set_session_id("s");
    request.set_lease_token(100 + version_);
    request.set_parent_version(version_);
    request.set_snapshot_version(snapshot_version_);
    if (GetParam()) {
      request.mutable_memory_policy()->mutable_window()->set_sinks(4);
      request.mutable_memory_policy()->mutable_window()->set_recent(90);
    }
    return request;
  }

  // What a caller without a session gets.
  std::vector<int32_t> Undisturbed(v1::GenerateRequest request) {
    request.clear_tenant();
    request.clear_session_id();
    return plain_.Generate(request).ids;
  }

  // The gateway's part: the answer becomes the log, the snapshot the version's.
  void Commit(const Answer& answer) {
    log_.insert(log_.end(), answer.ids.begin(), answer.ids.end());
    ++version_;
    if (answer.last.snapshot_id().empty()) return;
    ASSERT_TRUE(memory_.Commit("t", "s", version_, answer.last.snapshot_id()));
    snapshot_version_ = version_;
  }

  // Runs a turn and checks its text.
  Answer Run(Executor& executor, int num_new, int max_tokens) {
    const v1::GenerateRequest request = Turn(num_new, max_tokens);
    const Answer answer = executor.Generate(request);
    EXPECT_EQ(answer.ids, Undisturbed(request));
    Commit(answer);
    return answer;
  }

  FakeMemoryService memory_;
  // Over TCP: the transport within the process is not the one that streams of chunks will use.
  std::unique_ptr<rpc::Server> memory_server_ =
      *rpc::Server::Start({.listen = "127.0.0.1:0"}, {&memory_});
  Executor plain_{nullptr};
  std::vector<int32_t> log_;
  uint64_t version_ = 0;
  uint64_t snapshot_version_ = 0;
};

INSTANTIATE_TEST_SUITE_P(Policies, SessionMemoryTest, ::testing::Bool(),
                         [](const ::testing::TestParamInfo<bool>& info) {
                           return info.param ? "Window" : "Full";
                         });

TEST_P(SessionMemoryTest, SnapshotThatWasRewrittenUnderHotMemoryCostsOneTurnsSnapshot) {
  const auto executor = NewExecutor();
  EXPECT_FALSE(Run(*executor, 150, 40).last.snapshot_id().empty());
  memory_.Rewrite("t", "s", 1);
  // Nobody had the executor forget the session: it lists chunks that are gone.
  const Answer two = Run(*executor, 20, 30);
  EXPECT_EQ(two.receipt().tier(), "hot");
  EXPECT_THAT(two.receipt().not_persisted_reason(), HasSubstr("never sent"));
  // The next turn asks what is stored and goes on from there.
  const Answer three = Run(*executor, 7, 5);
  EXPECT_EQ(three.receipt().tier(), "hot");
  EXPECT_EQ(three.receipt().not_persisted_reason(), "");
  EXPECT_FALSE(three.last.snapshot_id().empty());
  const auto second = NewExecutor();
  EXPECT_GT(Run(*second, 7, 5).receipt().restored_tokens(), 200);
}

TEST_P(SessionMemoryTest, ATurnComesBackOnAnotherExecutorAndOnlyTheNewTokensAreComputed) {
  const auto first = NewExecutor();
  const Answer one = Run(*first, 150, 40);
  EXPECT_FALSE(one.last.snapshot_id().empty());
  EXPECT_EQ(one.receipt().not_persisted_reason(), "");
  EXPECT_EQ(one.receipt().tier(), "none");
  EXPECT_EQ(memory_.Committed("t", "s", 1).num_tokens(), 189U);

  const auto second = NewExecutor();
  const Answer two = Run(*second, 20, 30);
  EXPECT_EQ(two.receipt().restored_tokens(), 189);
  EXPECT_EQ(two.receipt().reused_tokens(), 0);
  EXPECT_EQ(two.receipt().prefilled_tokens(), 21);
  EXPECT_EQ(two.last.usage().cached_tokens(), 189);
  EXPECT_EQ(two.receipt().tier(), "redis");
  EXPECT_GT(two.receipt().ms().at("restore"), 0);
  EXPECT_GT(two.receipt().ms().count("stage"), 0U);

  const auto third = NewExecutor();
  const Answer three = Run(*third, 7, 5);
  EXPECT_EQ(three.receipt().restored_tokens(), 239);
  EXPECT_EQ(three.receipt().prefilled_tokens(), 8);
  EXPECT_EQ(third->metrics.restores_failed.Value(), 0);
}

TEST_P(SessionMemoryTest, AHotTurnSendsItsOwnTokensOnly) {
  const auto executor = NewExecutor();
  const Answer one = Run(*executor, 150, 40);
  const Answer two = Run(*executor, 20, 30);
  EXPECT_EQ(two.receipt().tier(), "hot");
  EXPECT_EQ(two.receipt().reused_tokens(), 189);
  EXPECT_EQ(two.receipt().restored_tokens(), 0);
  EXPECT_EQ(two.receipt().bytes_moved(), 50 * kTokenBytes);
  EXPECT_EQ(memory_.num_chunks_sent(), 0);
  if (!GetParam()) {
    EXPECT_EQ(one.receipt().bytes_moved(), 189 * kTokenBytes);
  }
  // So does the first turn after a restore.
  const Answer three = Run(*NewExecutor(), 16, 9);
  const int64_t fetched = three.receipt().bytes_moved() - 25 * kTokenBytes;
  if (GetParam()) {
    EXPECT_LT(fetched, 239 * kTokenBytes);
  } else {
    EXPECT_EQ(fetched, 239 * kTokenBytes);
  }
}

TEST_P(SessionMemoryTest, AMemoryThatWasTightenedComesBackTightWhereTheSessionIsElastic) {
  if (GetParam()) GTEST_SKIP() << "90 tokens are too few to be tightened";
  // Of 256 heads: room for 480 tokens.
  const auto first = NewExecutor(Patient(), int64_t{256} * 30, [] {
    absl::SleepFor(absl::Milliseconds(2));
    return absl::OkStatus();
  });
  const auto elastic_turn = [&](int num_new, int max_tokens) {
    v1::GenerateRequest request = Turn(num_new, max_tokens);
    request.mutable_memory_policy()->mutable_full();
    request.mutable_memory_policy()->set_elastic(true);
    return request;
  };
  // Somebody else has a third of the pages, and wants more than that.
  v1::GenerateRequest other;
  other.mutable_prompt_ids()->Resize(140, 5);
  other.mutable_sampling()->set_max_tokens(300);
  other.mutable_sampling()->set_seed(1);
  other.mutable_sampling()->set_ignore_eos(true);
  grpc::ClientContext others_context;
  const auto reader = first->stub->Generate(&others_context, other);
  v1::GenerateResponse response;
  ASSERT_TRUE(reader->Read(&response));
  const Answer one = first->Generate(elastic_turn(260, 60));
  others_context.TryCancel();
  reader->Finish().ok();
  EXPECT_GE(one.receipt().shrinks(), 1);
  EXPECT_THAT(one.receipt().policy(), HasSubstr("window(sinks=4"));
  EXPECT_EQ(one.receipt().not_persisted_reason(), "");
  Commit(one);
  EXPECT_EQ(memory_.Committed("t", "s", 1).lineage().policy(), one.receipt().policy());

  // Hot, and on another executor, it goes on as it is: with the same text.
  const v1::GenerateRequest request = elastic_turn(9, 20);
  const auto second = NewExecutor();
  const Answer restored = second->Generate(request);
  EXPECT_EQ(restored.receipt().restored_tokens(), 319);
  EXPECT_EQ(restored.receipt().prefilled_tokens(), 10);
  EXPECT_EQ(restored.receipt().policy(), one.receipt().policy());
  EXPECT_EQ(restored.receipt().shrinks(), 0);
  const Answer hot = first->Generate(request);
  EXPECT_EQ(hot.receipt().reused_tokens(), 319);
  EXPECT_EQ(hot.ids, restored.ids);
  Commit(hot);

  // A turn that wants all of it has it computed anew.
  const Answer whole = Run(*NewExecutor(), 5, 10);
  EXPECT_EQ(whole.receipt().tier(), "rebuilt");
  EXPECT_EQ(whole.receipt().policy(), "full");
}

TEST_P(SessionMemoryTest, FullChunksLeaveBeforeTheAnswerEnds) {
  if (GetParam()) GTEST_SKIP() << "what passes through a window is not stored";
  const auto executor = NewExecutor();
  int64_t chunks_before_the_end = 0;
  executor->on_message = [&](const v1::GenerateResponse& response) {
    if (response.finish_reason() == inference::v1::FINISH_REASON_UNSPECIFIED) {
      chunks_before_the_end = memory_.num_chunks_received();
    }
  };
  Run(*executor, 400, 30);
  EXPECT_GE(chunks_before_the_end, 400 / 64);
}

TEST_P(SessionMemoryTest, WhateverIsWrongWithTheStoreTheMemoryIsBuiltAnew) {
  const auto first = NewExecutor();
  Run(*first, 150, 40);
  int64_t num_failures = 0;
  const auto expect_rebuilt = [&](const std::string& what,
                                  const SessionMemoryOptions& options = Patient()) {
    const auto executor = NewExecutor(options);
    // Not committed: each time the same turn again.
    const std::vector<int32_t> log = log_;
    const v1::GenerateRequest request = Turn(20, 20);
    const Answer answer = executor->Generate(request);
    log_ = log;
    EXPECT_EQ(answer.ids, Undisturbed(request)) << what;
    EXPECT_EQ(answer.receipt().tier(), "rebuilt") << what;
    EXPECT_EQ(answer.receipt().restored_tokens(), 0) << what;
    EXPECT_EQ(answer.receipt().prefilled_tokens(), 210) << what;
    EXPECT_EQ(executor->metrics.restores_failed.Value(), 1) << what;
    EXPECT_FALSE(answer.last.snapshot_id().empty()) << what << ": it is stored anew";
    EXPECT_EQ(executor->pages_used(), 0) << what;
    ++num_failures;
  };
  memory_.at_look = [] { return grpc::Status(grpc::StatusCode::NOT_FOUND, "no snapshot"); };
  expect_rebuilt("not found");
  memory_.at_look = [] { return grpc::Status(grpc::StatusCode::UNAVAILABLE, "away"); };
  expect_rebuilt("away");
  SessionMemoryOptions impatient = Patient();
  impatient.link.fetch.manifest_timeout = absl::Milliseconds(50);
  impatient.link.fetch.chunk_timeout = absl::Milliseconds(50);
  impatient.link.fetch.min_bytes_per_second = int64_t{1} << 30;
  memory_.at_look = [] {
    absl::SleepFor(absl::Milliseconds(300));
    return grpc::Status::OK;
  };
  expect_rebuilt("slow manifest", impatient);
  memory_.at_look = nullptr;
  memory_.at_fetch = [] { return grpc::Status(grpc::StatusCode::DATA_LOSS, "a chunk is gone"); };
  expect_rebuilt("lost chunk");
  memory_.at_fetch = nullptr;
  std::atomic<int> sent = 0;
  memory_.at_fetched_chunk = [&] {
    return ++sent > 1 ? grpc::Status(grpc::StatusCode::UNAVAILABLE, "gone") : grpc::Status::OK;
  };
  expect_rebuilt("gone between chunks");
  memory_.at_fetched_chunk = [] {
    absl::SleepFor(absl::Milliseconds(300));
    return grpc::Status::OK;
  };
  expect_rebuilt("slow chunks", impatient);
  memory_.at_fetched_chunk = nullptr;
  memory_.damage = [](std::string* payload) { payload->back() ^= 1; };
  expect_rebuilt("flipped bit");
  memory_.damage = [](std::string* payload) { payload->pop_back(); };
  expect_rebuilt("short payload");
  memory_.damage = nullptr;
  SessionMemoryOptions other = Patient();
  other.model_fingerprint = "another model";
  expect_rebuilt("another model", other);
  using Change = std::function<void(snapshot::v1::Manifest*)>;
  for (const Change& change : std::vector<Change>{
           [](auto* manifest) { manifest->set_format_version(9); },
           [](auto* manifest) { manifest->set_tokens_digest("x"); },
           [](auto* manifest) { manifest->set_num_tokens(uint64_t{1} << 60); },
           [](auto* manifest) { manifest->mutable_chunks()->RemoveLast(); },
           [](auto* manifest) { manifest->mutable_chunks(0)->set_num_layers(1000); },
           [](auto* manifest) { manifest->mutable_lineage()->set_policy("other"); }}) {
    memory_.change_manifest = change;
    expect_rebuilt("manifest");
  }
  memory_.change_manifest = nullptr;
  const auto healthy = NewExecutor();
  EXPECT_EQ(Run(*healthy, 20, 20).receipt().restored_tokens(), 189);
  EXPECT_EQ(num_failures, 15);
}

TEST_P(SessionMemoryTest, AnAnswerThatCannotBeStoredIsGivenAllTheSame) {
  SessionMemoryOptions options = Patient();
  options.close_timeout = std::chrono::seconds(2);
  const auto executor = NewExecutor(options);
  Run(*executor, 100, 10);
  const auto expect_not_stored = [&](const std::string& what, const std::string& why) {
    const Answer answer = Run(*executor, 100, 30);
    EXPECT_EQ(answer.last.snapshot_id(), "") << what;
    EXPECT_THAT(answer.receipt().not_persisted_reason(), HasSubstr(why)) << what;
    EXPECT_EQ(answer.receipt().tier(), "hot") << what;
  };
  memory_.at_stage = [] { return grpc::Status(grpc::StatusCode::UNAVAILABLE, "store away"); };
  expect_not_stored("away", "store away");
  memory_.at_stage = nullptr;
  memory_.at_staged_chunk = [] { return grpc::Status(grpc::StatusCode::ABORTED, "lease lost"); };
  expect_not_stored("lease", "lease lost");
  memory_.at_staged_chunk = nullptr;
  memory_.at_manifest = [] { return grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "full"); };
  expect_not_stored("full", "full");
  Gate gate;
  memory_.at_manifest = [&] { return gate.Pass(); };
  expect_not_stored("slow", "too long");
  gate.Open();
  memory_.at_manifest = nullptr;
  // What was not stored goes with the next turn, what was not again.
  const Answer next = Run(*executor, 5, 5);
  EXPECT_FALSE(next.last.snapshot_id().empty());
  EXPECT_EQ(memory_.Committed("t", "s", version_).num_tokens(), log_.size() - 1);
  const int64_t num_stored = static_cast<int64_t>(log_.size()) - 1;
  EXPECT_EQ(Run(*NewExecutor(), 5, 5).receipt().restored_tokens(), num_stored);
}

TEST_P(SessionMemoryTest, WhatBreaksOffIsSentAgainAndStored) {
  const auto executor = NewExecutor();
  std::atomic<int> failures = 0;
  const auto break_once = [&] {
    return failures++ == 0 ? grpc::Status(grpc::StatusCode::UNAVAILABLE, "away") : grpc::Status::OK;
  };
  for (Hook<grpc::Status>* const hook :
       {&memory_.at_stage, &memory_.at_staged_chunk, &memory_.at_manifest}) {
    failures = 0;
    *hook = break_once;
    // Long enough for full chunks to leave, and to break, in the middle of the answer.
    const Answer answer = Run(*executor, 100, 150);
    EXPECT_FALSE(answer.last.snapshot_id().empty()) << answer.receipt().not_persisted_reason();
    EXPECT_EQ(answer.receipt().not_persisted_reason(), "");
    EXPECT_GT(failures, 1);
    *hook = nullptr;
    const int64_t num_stored = static_cast<int64_t>(log_.size()) - 1;
    EXPECT_EQ(memory_.Committed("t", "s", version_).num_tokens(), num_stored);
    EXPECT_EQ(Run(*NewExecutor(), 5, 5).receipt().restored_tokens(), num_stored);
  }
}

TEST_P(SessionMemoryTest, ALargeMemoryIsGivenTheTimeThatItsBytesNeed) {
  SessionMemoryOptions options = Patient();
  options.close_timeout = std::chrono::milliseconds(100);
  memory_.at_manifest = [] {
    absl::SleepFor(absl::Milliseconds(400));
    return grpc::Status::OK;
  };
  options.min_bytes_per_second = 64 * kTokenBytes;  // some of the last tokens wait for the end
  const auto patient = NewExecutor(options);
  EXPECT_FALSE(Run(*patient, 120, 60).last.snapshot_id().empty());
  options.min_bytes_per_second = int64_t{1} << 40;
  const auto hasty = NewExecutor(options);
  const Answer answer = Run(*hasty, 120, 60);
  EXPECT_EQ(answer.last.snapshot_id(), "");
  EXPECT_THAT(answer.receipt().not_persisted_reason(), HasSubstr("too long"));
}

TEST_P(SessionMemoryTest, WithoutAMemoryServiceOrALeaseTheReceiptSaysSo) {
  Executor executor(nullptr);
  const Answer answer = executor.Generate(Turn(20, 3));
  EXPECT_THAT(answer.receipt().not_persisted_reason(), HasSubstr("no key/value snapshots"));
  const auto other = NewExecutor();
  v1::GenerateRequest request = Turn(20, 3);
  request.set_lease_token(0);
  EXPECT_THAT(other->Generate(request).receipt().not_persisted_reason(), HasSubstr("lease"));
}

TEST_P(SessionMemoryTest, AStopStringEndsTheAnswerAndItsMemoryThere) {
  // The engine keeps so close to its reader that a window can still go back.
  std::atomic<bool> is_paced = false;
  std::atomic<bool> is_ending = false;
  std::atomic<int64_t> seen = 0;
  std::atomic<int64_t> steps = 0;
  const auto executor = NewExecutor(Patient(), int64_t{256} * 300, [&] {
    while (is_paced && !is_ending && steps > seen + 1) absl::SleepFor(absl::Microseconds(100));
    if (is_ending) absl::SleepFor(absl::Milliseconds(100));
    ++steps;
    return absl::OkStatus();
  });
  Run(*executor, 100, 10);
  const v1::GenerateRequest request = Turn(100, 400);
  steps = 0;
  is_paced = true;
  grpc::Status finished = grpc::Status::OK;
  executor->on_message = [&](const v1::GenerateResponse& response) {
    const int64_t before = seen;
    seen += response.token_ids_size();
    if (before >= 17 || seen < 17) return;
    v1::FinishGenerationRequest finish;
    finish.set_tenant("t");
    finish.set_session_id("s");
    finish.set_lease_token(request.lease_token());
    finish.set_num_tokens(17);
    grpc::ClientContext context;
    v1::FinishGenerationResponse response_of_finish;
    is_ending = true;
    finished = executor->stub->FinishGeneration(&context, finish, &response_of_finish);
    is_paced = is_ending = false;
  };
  Answer answer = executor->Generate(request);
  executor->on_message = nullptr;
  ASSERT_TRUE(finished.ok()) << finished.error_message();
  EXPECT_LT(answer.ids.size(), 400U);
  EXPECT_EQ(answer.last.finish_reason(), inference::v1::FINISH_REASON_STOP);
  EXPECT_EQ(answer.last.usage().completion_tokens(), 17);
  ASSERT_FALSE(answer.last.snapshot_id().empty()) << answer.receipt().not_persisted_reason();
  answer.ids.resize(17);
  Commit(answer);
  EXPECT_EQ(memory_.Committed("t", "s", 2).num_tokens(), log_.size() - 1);
  const Answer hot = Run(*executor, 10, 10);
  EXPECT_EQ(hot.receipt().reused_tokens(), 226);
  const auto other = NewExecutor();
  EXPECT_EQ(Run(*other, 10, 10).receipt().restored_tokens(), 246);

  v1::FinishGenerationRequest finish;
  finish.set_tenant("t");
  finish.set_session_id("s");
  finish.set_num_tokens(1);
  grpc::ClientContext context;
  v1::FinishGenerationResponse response;
  EXPECT_EQ(executor->stub->FinishGeneration(&context, finish, &response).error_code(),
            grpc::StatusCode::NOT_FOUND);
}

TEST_P(SessionMemoryTest, OthersGoOnWhileASessionIsRestored) {
  Run(*NewExecutor(), 150, 40);
  Gate gate;
  memory_.at_fetched_chunk = [&] { return gate.Pass(); };
  const auto executor = NewExecutor();
  const v1::GenerateRequest request = Turn(20, 20);
  Answer answer;
  std::jthread caller([&] { answer = executor->Generate(request); });
  ASSERT_TRUE(gate.BecomesUsed());
  v1::GenerateRequest other = request;
  other.clear_session_id();
  EXPECT_EQ(executor->Generate(other).ids, Undisturbed(request));
  gate.Open();
  caller.join();
  EXPECT_EQ(answer.ids, Undisturbed(request));
  EXPECT_EQ(answer.receipt().restored_tokens(), 189);
}

TEST_P(SessionMemoryTest, CancellingARestoreFreesItsPages) {
  Run(*NewExecutor(), 150, 40);
  Gate gate;
  std::atomic<int> sent = 0;
  memory_.at_fetched_chunk = [&] { return ++sent > 1 ? gate.Pass() : grpc::Status::OK; };
  const auto executor = NewExecutor();
  executor->expects_ok = false;
  grpc::ClientContext context;
  Answer answer;
  std::jthread caller([&] { answer = executor->Generate(Turn(20, 20), &context); });
  ASSERT_TRUE(gate.BecomesUsed());
  EXPECT_TRUE(Becomes([&] { return executor->pages_used() > 0; }));
  context.TryCancel();
  caller.join();
  EXPECT_EQ(answer.status.code(), absl::StatusCode::kCancelled);
  EXPECT_TRUE(Becomes([&] { return executor->pages_used() == 0; }));
  gate.Open();
  memory_.at_fetched_chunk = nullptr;
}

TEST_P(SessionMemoryTest, AnEvictedSessionComesBackFromHostMemory) {
  // Pages for one session only: another pushes it out.
  const auto executor = NewExecutor(Patient(), int64_t{256} * 20);
  Run(*executor, 150, 40);
  v1::GenerateRequest other;
  for (int i = 0; i < 250; ++i) other.add_prompt_ids(1 + i % 50);
  other.mutable_sampling()->set_max_tokens(5);
  other.set_tenant("u");
  executor->Generate(other);
  const Answer answer = Run(*executor, 20, 10);
  EXPECT_EQ(answer.receipt().restored_tokens(), 189);
  EXPECT_EQ(answer.receipt().tier(), "host");
  EXPECT_EQ(answer.receipt().bytes_moved(), 30 * kTokenBytes);
  EXPECT_EQ(memory_.num_chunks_sent(), 0);
}

TEST_P(SessionMemoryTest, ForgottenMemoryIsNowhere) {
  const auto executor = NewExecutor();
  Run(*executor, 150, 40);
  executor->Forget("t", "s");
  const Answer answer = Run(*executor, 20, 10);
  EXPECT_EQ(answer.receipt().tier(), "redis") << "neither hot nor in host memory";
  executor->Forget("u", "");
  EXPECT_EQ(Run(*executor, 20, 10).receipt().tier(), "hot");
  executor->Forget("t", "other");
  EXPECT_EQ(Run(*executor, 20, 10).receipt().tier(), "hot");
  executor->Forget("t", "");
  EXPECT_EQ(Run(*executor, 20, 10).receipt().tier(), "redis");
}

TEST_P(SessionMemoryTest, WhatIsForgottenWhileItRunsIsNotKept) {
  const auto executor = NewExecutor();
  executor->on_message = [&](const v1::GenerateResponse& response) {
    if (response.finish_reason() == inference::v1::FINISH_REASON_UNSPECIFIED) {
      executor->Forget("t", "s");
    }
  };
  const Answer answer = executor->Generate(Turn(150, 100));
  EXPECT_EQ(answer.last.snapshot_id(), "");
  executor->on_message = nullptr;
  EXPECT_EQ(executor->Generate(Turn(1, 5)).receipt().reused_tokens(), 0);
}

TEST_P(SessionMemoryTest, AForkSharesHotMemoryAndStoredChunks) {
  if (GetParam()) GTEST_SKIP() << "a window is shared with nobody";
  const auto executor = NewExecutor();
  Run(*executor, 150, 40);
  memory_.Fork("t", "s", "fork");
  v1::GenerateRequest request = Turn(20, 10);
  request.set_session_id("fork");
  const Answer answer = executor->Generate(request);
  EXPECT_EQ(answer.ids, Undisturbed(request));
  EXPECT_EQ(answer.receipt().tier(), "hot");
  EXPECT_EQ(answer.receipt().reused_tokens(), 189);
  EXPECT_EQ(answer.receipt().bytes_moved(), 30 * kTokenBytes);
  // The parent goes on without noticing.
  EXPECT_EQ(Run(*executor, 20, 10).receipt().reused_tokens(), 189);
}

TEST_P(SessionMemoryTest, AReplacedLogIsStoredFromWhereItDiffers) {
  const auto executor = NewExecutor();
  Run(*executor, 400, 10);
  log_.resize(370);
  log_[365] = 59;
  const Answer answer = Run(*executor, 10, 10);
  EXPECT_EQ(answer.receipt().reused_tokens(), GetParam() ? 0 : 365);
  EXPECT_FALSE(answer.last.snapshot_id().empty()) << answer.receipt().not_persisted_reason();
  // Chunks up to 320 stay.
  if (!GetParam()) {
    EXPECT_EQ(answer.receipt().bytes_moved(), (389 - 320) * kTokenBytes);
  }
  const auto other = NewExecutor();
  EXPECT_EQ(Run(*other, 10, 10).receipt().restored_tokens(), 389);
}

// Two executors, and a store that fails at random: every text is that of an undisturbed session.
class SessionSoakTest : public SessionMemoryTest {};

TEST_P(SessionSoakTest, RandomFailuresNeverChangeAText) {
  std::mt19937_64 random(GetParam() ? 1 : 2);
  sync::Mutex mutex;
  bool is_faulty = false;
  std::mt19937_64 dice(3);  // under the mutex, as is_faulty
  const auto fail = [&]() -> grpc::Status {
    sync::MutexLock lock(mutex);
    if (!is_faulty || dice() % 3 != 0) return grpc::Status::OK;
    return {grpc::StatusCode::UNAVAILABLE, "soak"};
  };
  for (Hook<grpc::Status>* const hook :
       {&memory_.at_stage, &memory_.at_staged_chunk, &memory_.at_manifest, &memory_.at_look,
        &memory_.at_fetch, &memory_.at_fetched_chunk}) {
    *hook = fail;
  }
  std::unique_ptr<Executor> executors[2] = {NewExecutor(Patient(), int64_t{256} * 50),
                                            NewExecutor()};
  v1::GenerateRequest other;
  for (int i = 0; i < 300; ++i) other.add_prompt_ids(1 + i % 50);
  other.mutable_sampling()->set_max_tokens(3);
  other.set_tenant("u");
  std::set<std::string> tiers;
  for (int turn = 0; turn < 40; ++turn) {
    {
      sync::MutexLock lock(mutex);
      is_faulty = random() % 2 == 0;
    }
    if (random() % 8 == 0) executors[1] = NewExecutor();   // it died
    if (random() % 6 == 0) executors[0]->Generate(other);  // pushes the session out
    const int num_new = 1 + static_cast<int>(random() % 20);
    Executor& executor = *executors[random() % 2];
    tiers.insert(Run(executor, num_new, 1 + static_cast<int>(random() % 9)).receipt().tier());
    EXPECT_EQ(executor.pages_used(), 0);
  }
  EXPECT_TRUE(tiers.contains("hot"));
  EXPECT_TRUE(tiers.contains("redis"));
  EXPECT_TRUE(tiers.contains("rebuilt"));
}

INSTANTIATE_TEST_SUITE_P(Policies, SessionSoakTest, ::testing::Bool(),
                         [](const ::testing::TestParamInfo<bool>& info) {
                           return info.param ? "Window" : "Full";
                         });

TEST(HostCacheTest, HoldsWhatWasUsedLastAndNothingOfOthers) {
  HostCache cache(100);
  const auto payload = [](char c) { return std::make_shared<const std::string>(40, c); };
  cache.Put("t", "s", "one", payload('1'));
  cache.Put("t", "s", "two", payload('2'));
  EXPECT_EQ(*cache.Get("t", "one"), std::string(40, '1'));
  EXPECT_EQ(cache.Get("u", "one"), nullptr);
  cache.Put("t", "s", "three", payload('3'));
  EXPECT_EQ(cache.Get("t", "two"), nullptr) << "the one used longest ago";
  EXPECT_EQ(cache.num_bytes(), 80);
  cache.Put("t", "s2", "one", payload('1'));
  EXPECT_EQ(cache.num_bytes(), 80) << "equal ones are one";
  cache.Forget("t", "s");
  EXPECT_NE(cache.Get("t", "one"), nullptr) << "another session has it";
  EXPECT_EQ(cache.Get("t", "three"), nullptr);
  cache.Forget("t", "");
  EXPECT_EQ(cache.num_bytes(), 0);
  cache.Put("t", "s", "huge", std::make_shared<const std::string>(101, 'x'));
  EXPECT_EQ(cache.num_bytes(), 0);
}

TEST(HostCacheTest, APayloadIsFoundWhenItHasItsName) {
  HostCache cache(100);
  const auto payload = [](char c) { return std::make_shared<const std::string>(40, c); };
  const uint64_t first = cache.PutUnnamed("t", "s", payload('1'));
  const uint64_t second = cache.PutUnnamed("t", "s", payload('2'));
  EXPECT_EQ(cache.num_bytes(), 80) << "it counts already";
  EXPECT_EQ(cache.Get("t", ""), nullptr);
  cache.Name(first, "one");
  EXPECT_EQ(*cache.Get("t", "one"), std::string(40, '1'));
  EXPECT_EQ(cache.Get("u", "one"), nullptr);
  cache.DropUnnamed(first);
  EXPECT_NE(cache.Get("t", "one"), nullptr) << "it has a name now";

  cache.Put("t", "s", "three", payload('3'));
  cache.Name(second, "two");
  EXPECT_EQ(cache.Get("t", "two"), nullptr) << "it had to go: it was used longest ago";

  EXPECT_NE(cache.Get("t", "one"), nullptr);
  const uint64_t again = cache.PutUnnamed("t", "s2", payload('1'));
  EXPECT_EQ(cache.Get("t", "three"), nullptr) << "there was no room for it";
  cache.Name(again, "one");
  EXPECT_EQ(cache.num_bytes(), 40) << "equal ones are one";
  cache.Forget("t", "s");
  EXPECT_NE(cache.Get("t", "one"), nullptr) << "another session has it";

  const uint64_t dropped = cache.PutUnnamed("t", "s2", payload('4'));
  cache.DropUnnamed(dropped);
  cache.Name(dropped, "four");
  EXPECT_EQ(cache.Get("t", "four"), nullptr);
  cache.PutUnnamed("t", "s2", payload('5'));
  cache.Forget("t", "s2");
  EXPECT_EQ(cache.num_bytes(), 0) << "unnamed ones go with their session";
}

}  // namespace
}  // namespace mneme::executor
