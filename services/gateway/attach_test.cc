// Answers whose clients go away and come back, or ask for the same turn twice.
#include <thread>

#include "absl/strings/numbers.h"
#include "common/auth/api_keys.h"
#include "services/gateway/gateway_fixture.h"

namespace mneme::gateway {
namespace {

using ::testing::HasSubstr;

class AttachTest : public GatewayTest {
 protected:
  MapMemory::Stored Stored() { return memory_->Look("default/s"); }

  // Reads so many events of a gRPC chat and then hangs up. Returns what was read.
  std::vector<v1::ChatResponse> ReadSome(const v1::ChatRequest& request, size_t count) {
    const auto stub = v1::ChatService::NewStub(Channel());
    grpc::ClientContext context;
    const auto reader = stub->Chat(&context, request);
    std::vector<v1::ChatResponse> events;
    v1::ChatResponse event;
    while (events.size() < count && reader->Read(&event)) events.push_back(event);
    context.TryCancel();
    while (reader->Read(&event)) {
    }
    reader->Finish();
    return events;
  }
  struct Attached {
    std::vector<v1::ChatResponse> events;
    grpc::Status status;
  };
  Attached Attach(const std::string& id, uint64_t after, const std::string& key = "") {
    const auto stub = v1::ChatService::NewStub(Channel());
    grpc::ClientContext context;
    if (!key.empty()) context.AddMetadata("authorization", "Bearer " + key);
    v1::AttachRequest request;
    request.set_id(id);
    request.set_after(after);
    const auto reader = stub->Attach(&context, request);
    Attached attached;
    v1::AttachResponse response;
    while (reader->Read(&response)) attached.events.push_back(response.event());
    attached.status = reader->Finish();
    return attached;
  }
  grpc::Status Cancel(const std::string& id) {
    const auto stub = v1::ChatService::NewStub(Channel());
    grpc::ClientContext context;
    v1::CancelRequest request;
    request.set_id(id);
    v1::CancelResponse response;
    return stub->Cancel(&context, request, &response);
  }
  static std::string TextOf(const std::vector<v1::ChatResponse>& events) {
    std::string text;
    for (const v1::ChatResponse& event : events) text += event.text_delta();
    return text;
  }
  v1::ChatRequest SessionRequest() {
    v1::ChatRequest request = GrpcRequest("one");
    request.set_session_id("s");
    return request;
  }
  // The events of a stream that may have broken off, with their numbers.
  static std::vector<std::pair<uint64_t, Json>> NumberedEvents(const std::string& stream) {
    std::vector<std::pair<uint64_t, Json>> events;
    for (const absl::string_view event : absl::StrSplit(stream, "\n\n", absl::SkipEmpty())) {
      const size_t at = event.find("\nid: ");
      uint64_t id = 0;
      if (at == absl::string_view::npos || !absl::SimpleAtoi(event.substr(at + 5), &id)) continue;
      events.emplace_back(id, Json::parse(event.substr(6, at - 6), nullptr, false));
    }
    return events;
  }
};

TEST_F(AttachTest, ClientThatComesBackMissesNothing) {
  executor_->token_ms = 15;
  Start();
  v1::ChatRequest request = SessionRequest();
  request.mutable_sampling()->set_logprobs(1);
  const auto first = ReadSome(request, 6);
  ASSERT_EQ(first.size(), 6U);
  for (size_t i = 0; i < first.size(); ++i) EXPECT_EQ(first[i].sequence(), i + 1);
  const std::string id = first[0].started().id();
  const Attached rest = Attach(id, first.back().sequence());
  ASSERT_TRUE(rest.status.ok()) << rest.status.error_message();
  EXPECT_EQ(rest.events.front().sequence(), first.back().sequence() + 1);
  for (size_t i = 1; i < rest.events.size(); ++i) {
    EXPECT_EQ(rest.events[i].sequence(), rest.events[i - 1].sequence() + 1);
  }
  EXPECT_EQ(TextOf(first) + TextOf(rest.events), "Hello, world");
  EXPECT_EQ(rest.events.back().done().version(), 1U);
  EXPECT_TRUE(rest.events[rest.events.size() - 2].receipt().persisted());
  EXPECT_EQ(executor_->cancelled, 0);
  EXPECT_EQ(executor_->calls, 1);
  EXPECT_EQ(Stored().messages.size(), 2U);
  // Also what has ended is there for a while, from any place.
  const Attached again = Attach(id, 0);
  ASSERT_TRUE(again.status.ok());
  EXPECT_EQ(TextOf(again.events), "Hello, world");
  EXPECT_TRUE(again.events.front().has_started());
  const Attached nothing = Attach(id, again.events.back().sequence());
  EXPECT_TRUE(nothing.status.ok());
  EXPECT_EQ(nothing.events.size(), 0U);
}

TEST_F(AttachTest, EventStreamGoesOnAfterItsLastEventId) {
  executor_->token_ms = 15;
  Start();
  std::string received;
  auto client = Http();
  httplib::Request request;
  request.method = "POST";
  request.path = "/v1/chat/completions";
  request.body = Chat("one", {{"session_id", "s"}, {"stream", true}});
  request.content_receiver = [&](const char* data, size_t size, uint64_t, uint64_t) {
    received.append(data, size);
    return received.size() < 800;
  };
  client.send(request);
  client.stop();
  // What was cut in the middle of an event is none.
  received.resize(received.rfind("\n\n") + 2);
  const auto first = NumberedEvents(received);
  ASSERT_GT(first.size(), 1U);
  const std::string id = first[0].second["id"];
  const auto result =
      Http().Get("/v1/streams/" + id, {{"Last-Event-ID", absl::StrCat(first.back().first)}});
  ASSERT_EQ(result->status, 200);
  EXPECT_TRUE(absl::EndsWith(result->body, "data: [DONE]\n\n"));
  const auto rest = NumberedEvents(result->body);
  ASSERT_FALSE(rest.empty());
  EXPECT_GT(rest.front().first, first.back().first);
  std::string text;
  for (const auto* part : {&first, &rest}) {
    for (const auto& [number, event] : *part) {
      EXPECT_EQ(event["id"], id);
      text += event["choices"][0]["delta"].value("content", "");
    }
  }
  EXPECT_EQ(text, "Hello, world");
  EXPECT_EQ(rest.back().second["mneme"]["committed_version"], 1);
  EXPECT_EQ(rest.back().second["choices"][0]["finish_reason"], "stop");
  const auto whole = NumberedEvents(Http().Get("/v1/streams/" + id + "?after=0")->body);
  EXPECT_EQ(whole.front().second["choices"][0]["delta"]["role"], "assistant");
}

TEST_F(AttachTest, NumberingChangesNothingForOthers) {
  Start();
  const auto plain = Post("/v1/chat/completions", Chat("one", {{"stream", true}}));
  EXPECT_THAT(plain->body, ::testing::Not(HasSubstr("\nid: ")));
  const GrpcAnswer answer = GrpcChat(GrpcRequest("one"));
  for (const auto& event : answer.events) EXPECT_EQ(event.sequence(), 0U);
  EXPECT_EQ(Attach(answer.events[0].started().id(), 0).status.error_code(),
            grpc::StatusCode::NOT_FOUND);
  ErrorOf(Post("/v1/chat/completions", Chat("one", {{"resumable", true}, {"n", 2}})), 400,
          "invalid_request_error");
  ErrorOf(Http().Get("/v1/streams/none"), 404, "invalid_request_error");
  ErrorOf(Http().Get("/v1/streams/none?after=x"), 400, "invalid_request_error");
  ErrorOf(Post("/v1/streams/none/cancel", ""), 404, "invalid_request_error");
}

TEST_F(AttachTest, StatelessAnswerIsResumableWhereAskedFor) {
  executor_->token_ms = 15;
  Start();
  v1::ChatRequest request = GrpcRequest("one");
  request.set_resumable(true);
  const auto first = ReadSome(request, 3);
  ASSERT_EQ(first.size(), 3U);
  const Attached rest = Attach(first[0].started().id(), 3);
  EXPECT_EQ(TextOf(first) + TextOf(rest.events), "Hello, world");
}

TEST_F(AttachTest, AbandonedAnswerEndsAfterItsTime) {
  executor_->token_ms = 15;
  config_.set_detached_ms(200);
  Start();
  v1::ChatRequest request = SessionRequest();
  request.mutable_sampling()->set_ignore_eos(true);
  const absl::Time begun = absl::Now();
  const auto first = ReadSome(request, 3);
  EXPECT_TRUE(Eventually([&] { return executor_->cancelled == 1; }));
  EXPECT_GE(absl::Now() - begun, absl::Milliseconds(200));
  EXPECT_TRUE(Eventually([&] { return Stored().lease == 0; }));
  EXPECT_EQ(Stored().messages.size(), 0U);
  EXPECT_EQ(Attach(first[0].started().id(), 3).status.error_code(), grpc::StatusCode::CANCELLED);
}

TEST_F(AttachTest, ReaderKeepsAnAnswerAlive) {
  executor_->token_ms = 150;  // some 2 s in all
  config_.set_detached_ms(1000);
  Start();
  const auto first = ReadSome(SessionRequest(), 3);
  ASSERT_EQ(first.size(), 3U);
  const Attached rest = Attach(first[0].started().id(), 3);
  EXPECT_EQ(TextOf(first) + TextOf(rest.events), "Hello, world");
}

TEST_F(AttachTest, CancelEndsTheAnswerForEverybody) {
  executor_->token_ms = 15;
  Start();
  v1::ChatRequest request = SessionRequest();
  request.mutable_sampling()->set_ignore_eos(true);
  const auto first = ReadSome(request, 3);
  const std::string id = first[0].started().id();
  Attached attached;
  std::jthread reader([&] { attached = Attach(id, 3); });
  EXPECT_TRUE(Cancel(id).ok());
  reader.join();
  EXPECT_EQ(attached.status.error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_TRUE(Eventually([&] { return executor_->cancelled == 1; }));
  EXPECT_TRUE(Eventually([&] { return Stored().lease == 0; }));
  EXPECT_EQ(Stored().messages.size(), 0U);
  // Over HTTP, while the first client is still there: its stream ends with an error.
  std::string body;
  std::jthread client([&] {
    body = Post("/v1/chat/completions", Chat("one", {{"session_id", "s"},
                                                     {"stream", true},
                                                     {"ignore_eos", true},
                                                     {"request_id", "c"}}))
               ->body;
  });
  ASSERT_TRUE(Eventually([&] { return executor_->running == 1; }));
  // Its id is learnt from a second stream of the same request.
  const auto second = ReadSome(
      [&] {
        v1::ChatRequest same = request;
        same.set_request_id("c");
        return same;
      }(),
      1);
  ASSERT_EQ(second.size(), 1U);
  const auto told = Post("/v1/streams/" + second[0].started().id() + "/cancel", "");
  EXPECT_EQ(Parse(told)["cancelled"], true);
  client.join();
  EXPECT_THAT(body, HasSubstr("the answer was cancelled"));
}

TEST_F(AttachTest, RepeatedRequestJoinsTheRunningTurn) {
  executor_->token_ms = 15;
  Start();
  std::vector<Json> replies(4);
  {
    std::vector<std::jthread> clients;
    for (Json& reply : replies) {
      clients.emplace_back([&] {
        reply = Parse(Post("/v1/chat/completions", Chat("one", {{"session_id", "s"}}),
                           {{"Idempotency-Key", "r-1"}}));
      });
    }
  }
  for (const Json& reply : replies) {
    EXPECT_EQ(reply["choices"][0]["message"]["content"], "Hello, world") << reply;
    EXPECT_EQ(reply["id"], replies[0]["id"]);
    EXPECT_EQ(reply["usage"], replies[0]["usage"]);
    EXPECT_EQ(reply["mneme"], replies[0]["mneme"]);
  }
  EXPECT_EQ(executor_->calls, 1);
  EXPECT_EQ(Stored().messages.size(), 2U);
}

TEST_F(AttachTest, RepeatedRequestEqualsTheFirstAlsoFromTheStore) {
  config_.set_ended_answer_ms(1);  // nothing is kept but what is committed
  Start();
  const std::string body =
      Chat("one", {{"session_id", "s"}, {"request_id", "r-1"}, {"max_tokens", 5}});
  const Json first = Parse(Post("/v1/chat/completions", body));
  executor_->Say("something else");
  // The first look sees that it has ended, the second that this was a while ago.
  for (int i = 0; i < 2; ++i) {
    Http().Get("/v1/streams/none");
    absl::SleepFor(absl::Milliseconds(10));
  }
  const Json again = Parse(Post("/v1/chat/completions", body));
  EXPECT_NE(again["id"], first["id"]);
  EXPECT_EQ(again["choices"], first["choices"]);
  EXPECT_EQ(again["choices"][0]["finish_reason"], "length");
  EXPECT_EQ(again["usage"], first["usage"]);
  EXPECT_EQ(again["mneme"]["committed_version"], first["mneme"]["committed_version"]);
  EXPECT_EQ(executor_->calls, 1);
}

TEST_F(AttachTest, RepeatedRequestOfAFailedTurnIsTriedAnew) {
  timing_.generation.failover_wait = absl::Milliseconds(100);
  Start();
  const std::string body = Chat("one", {{"session_id", "s"}, {"request_id", "r-1"}});
  executor_.Kill();
  ErrorOf(Post("/v1/chat/completions", body), 503, "server_error");
  executor_.Restart();
  ASSERT_TRUE(Eventually([&] { return Http().Get("/healthz")->status == 200; }));
  EXPECT_EQ(Parse(Post("/v1/chat/completions", body))["mneme"]["committed_version"], 1);
}

TEST_F(AttachTest, LogsAreBoundedAndSayWhatTheyDropped) {
  config_.set_answer_buffer_bytes(600);
  Start();
  v1::ChatRequest request = SessionRequest();
  request.set_request_id("r-1");
  request.mutable_sampling()->set_ignore_eos(true);
  request.mutable_sampling()->set_max_tokens(200);
  const GrpcAnswer whole = GrpcChat(request);
  ASSERT_TRUE(whole.status.ok());
  ASSERT_EQ(whole.text.size(), 200U);
  const std::string id = whole.events[0].started().id();
  EXPECT_EQ(Attach(id, 0).status.error_code(), grpc::StatusCode::OUT_OF_RANGE);
  const auto gone = Http().Get("/v1/streams/" + id);
  EXPECT_EQ(Parse(gone)["error"]["code"], "events_dropped");
  const uint64_t last = whole.events.back().sequence();
  EXPECT_EQ(Attach(id, last - 3).events.size(), 3U);
  // A repeated request gets the answer from the store instead.
  const GrpcAnswer again = GrpcChat(request);
  EXPECT_EQ(again.text, whole.text);
  EXPECT_EQ(executor_->calls, 1);
}

TEST_F(AttachTest, AllLogsTogetherAreBounded) {
  config_.set_answer_buffers_bytes(8000);
  Start();
  std::vector<std::string> ids;
  for (int i = 0; i < 20; ++i) {
    v1::ChatRequest request = GrpcRequest("one");
    request.set_resumable(true);
    ids.push_back(GrpcChat(request).events[0].started().id());
  }
  EXPECT_EQ(Attach(ids.front(), 0).status.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_TRUE(Attach(ids.back(), 0).status.ok());
}

TEST_F(AttachTest, NoOtherTenantAttachesOrCancels) {
  executor_->token_ms = 15;
  const auto add = [&](const std::string& id, std::vector<auth::KeyEntry>* entries) {
    auth::NewKey made = auth::GenerateKey(id, id).value();
    entries->push_back(made.entry);
    return made.key;
  };
  std::vector<auth::KeyEntry> entries;
  const std::string ada = add("ada", &entries);
  const std::string eve = add("eve", &entries);
  const std::string path = absl::StrCat(::testing::TempDir(), "attach_keys.", getpid(), ".json");
  ASSERT_TRUE(auth::SaveKeys(path, entries).ok());
  config_.set_keys_file(path);
  Start();
  const auto stub = v1::ChatService::NewStub(Channel());
  grpc::ClientContext context;
  context.AddMetadata("authorization", "Bearer " + ada);
  const auto reader = stub->Chat(&context, SessionRequest());
  v1::ChatResponse event;
  ASSERT_TRUE(reader->Read(&event));
  const std::string id = event.started().id();
  EXPECT_EQ(Attach(id, 0, eve).status.error_code(), grpc::StatusCode::NOT_FOUND);
  ErrorOf(
      Http().Post("/v1/streams/" + id + "/cancel", {{"Authorization", "Bearer " + eve}}, "", ""),
      404, "invalid_request_error");
  std::string text;
  while (reader->Read(&event)) text += event.text_delta();
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(text, "Hello, world");
  EXPECT_TRUE(Attach(id, 0, ada).status.ok());
}

}  // namespace
}  // namespace mneme::gateway
