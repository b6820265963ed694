// Sessions through the gateway: what is committed, when, and what is not.
#include <thread>

#include "services/gateway/gateway_fixture.h"

namespace mneme::gateway {
namespace {

using ::testing::ElementsAreArray;
using ::testing::HasSubstr;
using ::testing::Not;

class SessionTurnTest : public GatewayTest {
 protected:
  Json Turn(const std::string& content, Json more = Json::object()) {
    more["session_id"] = "s";
    return Parse(Post("/v1/chat/completions", Chat(content, more)));
  }
  MapMemory::Stored Stored() { return memory_->Look("default/s"); }
};

TEST_F(SessionTurnTest, TurnsAreCommittedWithMessagesAndTokens) {
  Start();
  const Json first = Turn("one");
  EXPECT_EQ(first["mneme"]["session_id"], "s");
  EXPECT_EQ(first["mneme"]["committed_version"], 1);
  EXPECT_EQ(first["mneme"]["persisted"], true);
  auto stored = Stored();
  ASSERT_EQ(stored.messages.size(), 2U);
  EXPECT_EQ(stored.messages[0].content(), "one");
  EXPECT_EQ(stored.messages[1].role(), "assistant");
  EXPECT_EQ(stored.messages[1].content(), "Hello, world");
  EXPECT_EQ(stored.lease, 0U);
  EXPECT_FALSE(stored.turns[0].replaces_tokens());

  const Json second = Turn("two");
  EXPECT_EQ(second["mneme"]["committed_version"], 2);
  const auto requests = executor_->requests();
  // The second prompt begins with everything that the first turn left in the log.
  ASSERT_GT(requests[1].prompt_ids_size(), static_cast<int>(stored.log.size()));
  EXPECT_TRUE(std::equal(stored.log.begin(), stored.log.end(), requests[1].prompt_ids().begin()));
  EXPECT_EQ(requests[1].session_id(), "s");
  EXPECT_EQ(requests[1].parent_version(), 1U);
  EXPECT_GT(requests[1].lease_token(), requests[0].lease_token());
  stored = Stored();
  EXPECT_EQ(stored.messages.size(), 4U);
  EXPECT_FALSE(stored.turns[1].replaces_tokens());
  EXPECT_EQ(stored.log.back(), kEnd);
}

TEST_F(SessionTurnTest, StopStringLeavesALogThatTheNextTurnContinues) {
  Start();
  const Json first = Turn("one", {{"stop", ", "}});
  EXPECT_EQ(first["choices"][0]["message"]["content"], "Hello");
  const auto log = Stored().log;
  const std::vector<int32_t> tail = IdsOf("assistant:Hello");
  ASSERT_GE(log.size(), tail.size());
  EXPECT_THAT(std::vector<int32_t>(log.end() - tail.size(), log.end()), ElementsAreArray(tail));
  Turn("two");
  EXPECT_FALSE(Stored().turns[1].replaces_tokens());
  EXPECT_TRUE(std::equal(log.begin(), log.end(), executor_->requests()[1].prompt_ids().begin()));
}

TEST_F(SessionTurnTest, CutCharacterStaysOutOfTheLog) {
  executor_->Say("aé");
  Start();
  const Json first = Turn("one", {{"max_tokens", 2}});
  EXPECT_EQ(first["choices"][0]["message"]["content"], "a\xef\xbf\xbd");
  EXPECT_EQ(Stored().log.back(), 'a');
  Turn("two");
  // The next prompt has U+FFFD where the log has nothing: it is continued all the same.
  EXPECT_FALSE(Stored().turns[1].replaces_tokens());
}

TEST_F(SessionTurnTest, AnswerCutByLengthIsContinued) {
  Start();
  Turn("one", {{"max_tokens", 3}});
  EXPECT_EQ(Stored().messages[1].content(), "Hel");
  EXPECT_EQ(Stored().log.back(), 'l');
  Turn("two");
  EXPECT_FALSE(Stored().turns[1].replaces_tokens());
}

TEST_F(SessionTurnTest, PromptThatDoesNotContinueTheLogReplacesIt) {
  Start();
  Turn("one");
  memory_->SetLog("default/s", IdsOf("what no template says"));
  EXPECT_EQ(Turn("two")["mneme"]["persisted"], true);
  const auto stored = Stored();
  EXPECT_TRUE(stored.turns[1].replaces_tokens());
  // The whole conversation was encoded anew and is the log now, with the answer.
  const auto prompt = executor_->requests()[1].prompt_ids();
  ASSERT_EQ(stored.log.size(), prompt.size() + 13U);
  EXPECT_TRUE(std::equal(prompt.begin(), prompt.end(), stored.log.begin()));
  EXPECT_EQ(stored.log[0], kBos);
}

TEST_F(SessionTurnTest, RepeatedRequestIdAnswersTheCommittedTurn) {
  Start();
  const Json first = Turn("one", {{"request_id", "r-1"}});
  executor_->Say("something else");
  const Json again = Turn("one", {{"request_id", "r-1"}});
  EXPECT_EQ(again["choices"][0]["message"]["content"], "Hello, world");
  EXPECT_EQ(again["mneme"]["committed_version"], 1);
  EXPECT_EQ(executor_->calls, 1);
  EXPECT_EQ(Stored().messages.size(), 2U);
  const auto header = Post("/v1/chat/completions", Chat("one", {{"session_id", "s"}}),
                           {{"Idempotency-Key", "r-1"}});
  EXPECT_EQ(Parse(header)["mneme"]["committed_version"], 1);
}

TEST_F(SessionTurnTest, BusySessionAndStaleVersionAreConflicts) {
  executor_->token_ms = 50;
  Start();
  std::jthread slow([&] { Turn("one"); });
  ASSERT_TRUE(Eventually([&] { return executor_->running == 1; }));
  const auto busy = Post("/v1/chat/completions", Chat("two", {{"session_id", "s"}}));
  ErrorOf(busy, 409, "conflict_error");
  EXPECT_EQ(Parse(busy)["error"]["code"], "session_busy");
  EXPECT_TRUE(busy->has_header("Retry-After"));
  slow.join();
  const auto stale =
      Post("/v1/chat/completions", Chat("two", {{"session_id", "s"}, {"parent_version", 0}}));
  ErrorOf(stale, 409, "conflict_error");
  EXPECT_EQ(Parse(stale)["error"]["code"], "stale_version");
}

TEST_F(SessionTurnTest, LeaseIsRenewedAndASecondTurnWaitsForTheFirst) {
  executor_->token_ms = 20;
  timing_.sessions.busy_patience = absl::Seconds(10);
  Start();
  std::jthread slow([&] { Turn("one"); });
  ASSERT_TRUE(Eventually([&] { return executor_->running == 1; }));
  const Json second = Turn("two");
  slow.join();
  EXPECT_EQ(second["mneme"]["committed_version"], 2);
  EXPECT_GT(memory_->renewals, 2);
  EXPECT_EQ(Stored().messages[2].content(), "two");
}

TEST_F(SessionTurnTest, ClientGoneCancelsAndCommitsNothing) {
  executor_->token_ms = 20;
  Start();
  auto client = Http();
  size_t received = 0;
  const std::string body = Chat(
      "one", {{"session_id", "s"}, {"stream", true}, {"ignore_eos", true}, {"resumable", false}});
  httplib::Request request;
  request.method = "POST";
  request.path = "/v1/chat/completions";
  request.body = body;
  request.content_receiver = [&](const char*, size_t size, uint64_t, uint64_t) {
    received += size;
    return received < 1000;  // then the client hangs up
  };
  client.send(request);
  client.stop();
  EXPECT_TRUE(Eventually([&] { return executor_->cancelled == 1; }));
  EXPECT_TRUE(Eventually([&] { return Stored().lease == 0; }));
  EXPECT_EQ(Stored().messages.size(), 0U);
  executor_->token_ms = 0;
  EXPECT_EQ(Turn("two")["mneme"]["committed_version"], 1);
}

TEST_F(SessionTurnTest, GrpcCancelReachesTheExecutor) {
  executor_->token_ms = 20;
  Start();
  const auto stub = v1::ChatService::NewStub(Channel());
  grpc::ClientContext context;
  v1::ChatRequest request = GrpcRequest("one");
  request.set_session_id("s");
  request.set_resumable(false);
  request.mutable_sampling()->set_ignore_eos(true);
  const auto reader = stub->Chat(&context, request);
  v1::ChatResponse event;
  ASSERT_TRUE(reader->Read(&event));
  context.TryCancel();
  while (reader->Read(&event)) {
  }
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_TRUE(Eventually([&] { return executor_->cancelled == 1; }));
  EXPECT_TRUE(Eventually([&] { return Stored().lease == 0; }));
  EXPECT_EQ(Stored().messages.size(), 0U);
}

TEST_F(SessionTurnTest, LostLeaseEndsTheTurn) {
  executor_->token_ms = 20;
  Start();
  httplib::Result result(nullptr, httplib::Error::Unknown);
  std::jthread turn([&] {
    result = Post("/v1/chat/completions", Chat("one", {{"session_id", "s"}, {"ignore_eos", true}}));
  });
  ASSERT_TRUE(Eventually([&] { return executor_->running == 1; }));
  memory_->TakeOver("default/s");
  turn.join();
  ErrorOf(result, 409, "conflict_error");
  EXPECT_EQ(Parse(result)["error"]["code"], "lease_lost");
  EXPECT_TRUE(Eventually([&] { return executor_->cancelled == 1; }));
}

TEST_F(SessionTurnTest, CommitIsTriedAgainAndItsFailureIsSaid) {
  Start();
  memory_->fail_commits = 2;
  EXPECT_EQ(Turn("one")["mneme"]["persisted"], true);
  EXPECT_EQ(Stored().messages.size(), 2U);
  memory_->fail_commits = 1000;
  const Json lost = Turn("two");
  EXPECT_EQ(lost["choices"][0]["message"]["content"], "Hello, world");
  EXPECT_EQ(lost["mneme"]["persisted"], false);
  EXPECT_THAT(lost["mneme"]["not_persisted_reason"].get<std::string>(),
              HasSubstr("memory service does not answer"));
  EXPECT_THAT(lost["mneme"]["not_persisted_reason"].get<std::string>(),
              HasSubstr("committed as soon as it does"));
  EXPECT_EQ(lost["mneme"]["version"], 1);
  memory_->fail_commits = 0;
  EXPECT_TRUE(Eventually([&] { return Stored().messages.size() == 4; }));
  EXPECT_EQ(Stored().messages[2].content(), "two");
  EXPECT_EQ(Stored().lease, 0U);
  EXPECT_EQ(Turn("three")["mneme"]["committed_version"], 3);
}

TEST_F(SessionTurnTest, LeaseThatRanOutWhileTheStoreWasAwayIsTakenUpAgain) {
  executor_->token_ms = 20;
  timing_.sessions.renew_interval = absl::Minutes(1);  // nobody else renews it
  Start();
  Json reply;
  std::jthread turn([&] { reply = Turn("one"); });
  ASSERT_TRUE(Eventually([&] { return Stored().lease != 0; }));
  memory_->LetLeaseRunOut("default/s");
  turn.join();
  EXPECT_EQ(reply["mneme"]["persisted"], true);
  EXPECT_EQ(Stored().messages.size(), 2U);
  EXPECT_EQ(memory_->renewals, 1);
}

TEST_F(SessionTurnTest, RepeatedRequestOfATurnThatWaitsForTheStoreIsThatTurn) {
  timing_.sessions.unavailable_patience = absl::Seconds(5);
  timing_.sessions.late_commit_interval = absl::Milliseconds(50);
  Start();
  const std::string body = Chat("one", {{"session_id", "s"}, {"request_id", "r-1"}});
  memory_->fail_commits = 1'000'000;
  const Json first = Parse(Post("/v1/chat/completions", body));
  EXPECT_EQ(first["mneme"]["persisted"], false);
  memory_->fail_commits = 0;
  executor_->Say("something else");
  const Json again = Parse(Post("/v1/chat/completions", body));
  EXPECT_EQ(again["mneme"]["persisted"], true);
  EXPECT_EQ(again["mneme"]["committed_version"], 1);
  EXPECT_EQ(again["choices"], first["choices"]);
  EXPECT_EQ(Stored().messages.size(), 2U);
  EXPECT_EQ(executor_->calls, 1);
}

TEST_F(SessionTurnTest, LateCommitGivesWayToAnotherTurn) {
  Start();
  memory_->fail_commits = 1'000'000;
  EXPECT_EQ(Turn("one")["mneme"]["persisted"], false);
  memory_->TakeOver("default/s");
  memory_->fail_commits = 0;
  // It gives up where renewing is refused, and where committing is. Had it not, it would be
  // committed once the other holder is gone.
  EXPECT_TRUE(Eventually([&] { return memory_->refused_renewals + memory_->releases > 0; }));
  memory_->SetLease("default/s", 0);
  EXPECT_EQ(Turn("two")["mneme"]["committed_version"], 1);
  EXPECT_EQ(Stored().messages.size(), 2U);
  EXPECT_EQ(Stored().messages[0].content(), "two");
}

TEST_F(SessionTurnTest, LateCommitsAreBounded) {
  timing_.sessions.max_late_commits = 0;
  Start();
  memory_->fail_commits = 1'000'000;
  EXPECT_THAT(Turn("one")["mneme"]["not_persisted_reason"].get<std::string>(),
              Not(HasSubstr("committed as soon")));
  EXPECT_TRUE(Eventually([&] { return Stored().lease == 0; }));
}

TEST_F(SessionTurnTest, WithoutMemoryOnlySessionsFail) {
  Start();
  memory_.Kill();
  const auto refused = Post("/v1/chat/completions", Chat("one", {{"session_id", "s"}}));
  EXPECT_THAT(ErrorOf(refused, 503, "server_error"), HasSubstr("memory service does not answer"));
  EXPECT_EQ(executor_->calls, 0);
  EXPECT_EQ(Post("/v1/chat/completions", Chat("one"))->status, 200);
  memory_.Restart();
  EXPECT_TRUE(Eventually([&] {
    return Post("/v1/chat/completions", Chat("one", {{"session_id", "s"}}))->status == 200;
  }));
}

TEST_F(SessionTurnTest, SessionsAreListedShownAndDeletedOverHttp) {
  Start();
  const auto named =
      Post("/v1/chat/completions", Chat("one"), {{"X-Mneme-Session", "from-header"}});
  ASSERT_EQ(named->status, 200);
  const Json list = Parse(Http().Get("/v1/sessions?limit=10"));
  ASSERT_EQ(list["data"].size(), 1U);
  EXPECT_EQ(list["data"][0]["id"], "from-header");
  EXPECT_EQ(Parse(Http().Get("/v1/sessions/from-header"))["num_messages"], 2);
  EXPECT_EQ(Parse(Http().Get("/v1/sessions/from-header/messages"))["data"],
            Json({{{"role", "user"}, {"content", "one"}},
                  {{"role", "assistant"}, {"content", "Hello, world"}}}));
  EXPECT_EQ(Parse(Http().Delete("/v1/sessions/from-header"))["deleted"], true);
  ErrorOf(Http().Get("/v1/sessions/from-header"), 404, "invalid_request_error");
  ErrorOf(Http().Get("/v1/sessions?limit=0"), 400, "invalid_request_error");
}

TEST_F(SessionTurnTest, GrpcEventsComeInTheirDocumentedOrder) {
  Start();
  v1::ChatRequest request = GrpcRequest("one");
  request.set_session_id("s");
  request.mutable_sampling()->set_logprobs(1);
  const GrpcAnswer answer = GrpcChat(request);
  ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_EQ(answer.text, "Hello, world");
  ASSERT_GE(answer.events.size(), 6U);
  EXPECT_TRUE(answer.events[0].has_started());
  EXPECT_EQ(answer.events[0].started().role(), "assistant");
  const size_t end = answer.events.size();
  EXPECT_EQ(answer.events[end - 4].finish_reason(), inference::v1::FINISH_REASON_STOP);
  EXPECT_EQ(answer.events[end - 3].usage().completion_tokens(), 13);
  EXPECT_TRUE(answer.events[end - 2].receipt().persisted());
  EXPECT_EQ(answer.events[end - 1].done().version(), 1U);
  int tokens = 0;
  for (const auto& event : answer.events) tokens += event.logprobs().tokens_size();
  EXPECT_EQ(tokens, 12);
}

TEST_F(SessionTurnTest, GrpcSessionAndModelServices) {
  Start();
  const auto sessions = v1::SessionService::NewStub(Channel());
  v1::CreateSessionRequest create;
  create.set_session_id("made");
  create.set_title("A title");
  v1::CreateSessionResponse made;
  {
    grpc::ClientContext context;
    ASSERT_TRUE(sessions->CreateSession(&context, create, &made).ok());
    EXPECT_EQ(made.session().model(), "script");
    EXPECT_EQ(made.session().title(), "A title");
  }
  {
    grpc::ClientContext context;
    EXPECT_EQ(sessions->CreateSession(&context, create, &made).error_code(),
              grpc::StatusCode::ALREADY_EXISTS);
  }
  {
    grpc::ClientContext context;
    v1::GetSessionRequest get;
    get.set_session_id("none");
    v1::GetSessionResponse found;
    EXPECT_EQ(sessions->GetSession(&context, get, &found).error_code(),
              grpc::StatusCode::NOT_FOUND);
  }
  const auto models = v1::ModelService::NewStub(Channel());
  {
    grpc::ClientContext context;
    v1::ListModelsResponse list;
    ASSERT_TRUE(models->ListModels(&context, {}, &list).ok());
    ASSERT_EQ(list.models_size(), 1);
    EXPECT_EQ(list.models(0).executors(), 1);
  }
  {
    grpc::ClientContext context;
    v1::CountTokensRequest count;
    count.set_text("four");
    v1::CountTokensResponse counted;
    ASSERT_TRUE(models->CountTokens(&context, count, &counted).ok());
    EXPECT_EQ(counted.tokens(), 4);
  }
}

}  // namespace
}  // namespace mneme::gateway
