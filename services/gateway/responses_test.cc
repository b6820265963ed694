// OpenAI's responses and conversations on sessions.
#include "absl/strings/strip.h"
#include "common/auth/api_keys.h"
#include "services/gateway/gateway_fixture.h"
#include "services/gateway/response_id.h"

namespace mneme::gateway {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class ResponsesTest : public GatewayTest {
 protected:
  Json Create(const Json& body, const httplib::Headers& headers = {}) {
    const auto result = Post("/v1/responses", body.dump(), headers);
    EXPECT_TRUE(result && result->status == 200) << (result ? result->body : "no answer");
    return Parse(result);
  }
  static std::string TextOf(const Json& response) {
    return response["output"][0]["content"][0]["text"];
  }
  // The prompt that the executor got last, as text.
  std::string LastPrompt() {
    std::string text;
    const auto requests = executor_->requests();
    for (const int32_t id : requests.back().prompt_ids()) {
      if (id < 256) text += static_cast<char>(id);
      if (id == kEnd) text += '|';
    }
    return text;
  }
  Json Delete(const std::string& path) { return Parse(Http().Delete(path)); }
};

TEST_F(ResponsesTest, NameOfAResponseIsOneTurnAndNothingElse) {
  const std::string name = FormatResponseId({"ada-1", 7});
  const auto id = ParseResponseId(name);
  ASSERT_TRUE(id.has_value());
  EXPECT_EQ(id->session_id, "ada-1");
  EXPECT_EQ(id->version, 7U);
  for (std::string wrong : {std::string("resp_"), std::string(), std::string("resp_!"), name + "A",
                            name.substr(0, name.size() - 1), name.substr(5)}) {
    EXPECT_FALSE(ParseResponseId(wrong).has_value()) << wrong;
  }
  for (size_t i = 5; i < name.size(); ++i) {
    std::string changed = name;
    changed[i] = changed[i] == 'A' ? 'B' : 'A';
    EXPECT_FALSE(ParseResponseId(changed).has_value()) << changed;
  }
}

TEST_F(ResponsesTest, ResponseIsStoredAndFoundAgain) {
  Start();
  const Json made = Create({{"model", "script"},
                            {"input", "one"},
                            {"instructions", "Be kind."},
                            {"metadata", {{"a", "b"}}},
                            {"temperature", 0.5}});
  EXPECT_EQ(made["object"], "response");
  EXPECT_EQ(made["status"], "completed");
  EXPECT_EQ(TextOf(made), "Hello, world");
  EXPECT_EQ(made["output"][0]["role"], "assistant");
  EXPECT_EQ(made["usage"]["output_tokens"], 13);
  EXPECT_EQ(made["usage"]["input_tokens_details"]["cached_tokens"], 3);
  EXPECT_EQ(made["instructions"], "Be kind.");
  EXPECT_EQ(made["metadata"], Json({{"a", "b"}}));
  EXPECT_EQ(made["temperature"], 0.5);
  EXPECT_EQ(made["mneme"]["persisted"], true);
  EXPECT_EQ(LastPrompt(), "system:Be kind.|user:one|assistant:");
  const std::string id = made["id"];
  const Json found = Parse(Http().Get("/v1/responses/" + id));
  EXPECT_EQ(found["id"], id);
  EXPECT_EQ(found["output"], made["output"]);
  EXPECT_EQ(found["usage"], made["usage"]);
  EXPECT_EQ(found["status"], "completed");
  const Json input = Parse(Http().Get("/v1/responses/" + id + "/input_items?order=asc"));
  ASSERT_EQ(input["data"].size(), 2U);
  EXPECT_EQ(input["data"][1]["role"], "user");
  EXPECT_EQ(input["data"][1]["content"][0], Json({{"type", "input_text"}, {"text", "one"}}));
  EXPECT_EQ(Delete("/v1/responses/" + id)["deleted"], true);
  ErrorOf(Http().Get("/v1/responses/" + id), 404, "invalid_request_error");
  EXPECT_EQ(Parse(Http().Get("/v1/sessions"))["data"].size(), 0U);
}

TEST_F(ResponsesTest, PreviousResponseIsContinuedOrForked) {
  Start();
  const Json first = Create({{"input", "one"}, {"instructions", "Be kind."}});
  const Json second = Create(
      {{"input", "two"}, {"instructions", "Be kind."}, {"previous_response_id", first["id"]}});
  EXPECT_EQ(second["previous_response_id"], first["id"]);
  // The same instructions are not said again.
  EXPECT_EQ(LastPrompt(), "system:Be kind.|user:one|assistant:Hello, world|user:two|assistant:");
  EXPECT_EQ(second["mneme"]["session_id"], first["mneme"]["session_id"]);
  // From the first one again: another branch, which the second does not see.
  executor_->Say("Elsewhere");
  const Json branch = Create(
      {{"input", "three"}, {"instructions", "Be brief."}, {"previous_response_id", first["id"]}});
  EXPECT_NE(branch["mneme"]["session_id"], first["mneme"]["session_id"]);
  EXPECT_EQ(LastPrompt(),
            "system:Be kind.|user:one|assistant:Hello, world|system:Be brief.|"
            "user:three|assistant:");
  const Json third = Create({{"input", "four"}, {"previous_response_id", second["id"]}});
  EXPECT_THAT(LastPrompt(), HasSubstr("two|assistant:Hello, world|user:four"));
  EXPECT_EQ(
      Parse(Http().Get("/v1/responses/" + third["id"].get<std::string>()))["previous_response_id"],
      second["id"]);
  EXPECT_EQ(
      Parse(Http().Get("/v1/responses/" + branch["id"].get<std::string>()))["previous_response_id"],
      first["id"]);
  // What others are built on stays.
  const auto kept = Http().Delete("/v1/responses/" + second["id"].get<std::string>());
  ErrorOf(kept, 409, "conflict_error");
  EXPECT_EQ(Delete("/v1/responses/" + third["id"].get<std::string>())["deleted"], true);
  EXPECT_EQ(Delete("/v1/responses/" + branch["id"].get<std::string>())["deleted"], true);
  EXPECT_EQ(Delete("/v1/responses/" + second["id"].get<std::string>())["deleted"], true);
  EXPECT_EQ(Http().Get("/v1/responses/" + first["id"].get<std::string>())->status, 200);
}

TEST_F(ResponsesTest, UnstoredResponseLeavesNothingBehind) {
  Start();
  const Json first = Create({{"input", "one"}});
  const Json loose =
      Create({{"input", "two"}, {"store", false}, {"previous_response_id", first["id"]}});
  EXPECT_EQ(LastPrompt(), "user:one|assistant:Hello, world|user:two|assistant:");
  EXPECT_EQ(loose["store"], false);
  EXPECT_EQ(executor_->requests().back().session_id(), "");
  ErrorOf(Http().Get("/v1/responses/" + loose["id"].get<std::string>()), 404,
          "invalid_request_error");
  EXPECT_EQ(Parse(Http().Get("/v1/sessions"))["data"].size(), 1U);
}

TEST_F(ResponsesTest, StreamHasTheOfficialEvents) {
  Start();
  const auto result = Post("/v1/responses", R"({"input":"one","stream":true})");
  ASSERT_EQ(result->status, 200);
  std::vector<std::string> types;
  std::string text;
  Json last;
  int sequence = 0;
  for (const absl::string_view event : absl::StrSplit(result->body, "\n\n", absl::SkipEmpty())) {
    const std::vector<absl::string_view> lines = absl::StrSplit(event, '\n');
    ASSERT_EQ(lines.size(), 2U) << event;
    last = Json::parse(absl::StripPrefix(lines[1], "data: "), nullptr, false);
    const std::string type = last["type"];
    EXPECT_EQ(lines[0], "event: " + type);
    EXPECT_EQ(last["sequence_number"], sequence++);
    if (type == "response.output_text.delta") text += last["delta"];
    if (types.empty() || types.back() != type) types.push_back(type);
  }
  EXPECT_THAT(types,
              ElementsAre("response.created", "response.in_progress", "response.output_item.added",
                          "response.content_part.added", "response.output_text.delta",
                          "response.output_text.done", "response.content_part.done",
                          "response.output_item.done", "response.completed"));
  EXPECT_EQ(text, "Hello, world");
  EXPECT_EQ(TextOf(last["response"]), "Hello, world");
  const Json found =
      Parse(Http().Get("/v1/responses/" + last["response"]["id"].get<std::string>()));
  EXPECT_EQ(TextOf(found), "Hello, world");
}

TEST_F(ResponsesTest, CutAnswerIsIncomplete) {
  Start();
  const Json cut = Create({{"input", "one"}, {"max_output_tokens", 5}});
  EXPECT_EQ(cut["status"], "incomplete");
  EXPECT_EQ(cut["incomplete_details"]["reason"], "max_output_tokens");
  EXPECT_EQ(TextOf(cut), "Hello");
  const auto stream =
      Post("/v1/responses", R"({"input":"one","max_output_tokens":5,"stream":true})");
  EXPECT_THAT(stream->body, HasSubstr("event: response.incomplete\n"));
}

TEST_F(ResponsesTest, ErrorInTheMiddleIsAnEvent) {
  timing_.generation.failover_wait = absl::Milliseconds(100);
  executor_->token_ms = 30;
  Start();
  std::string body;
  std::jthread client(
      [&] { body = Post("/v1/responses", R"({"input":"one","stream":true})")->body; });
  ASSERT_TRUE(Eventually([&] { return executor_->running == 1; }));
  absl::SleepFor(absl::Milliseconds(150));
  executor_.Kill();
  client.join();
  EXPECT_THAT(body, HasSubstr("event: error\n"));
  EXPECT_THAT(body, HasSubstr("\"code\":\"unavailable\""));
}

TEST_F(ResponsesTest, IdempotencyKeyMakesOneResponse) {
  Start();
  const httplib::Headers key = {{"Idempotency-Key", "k-1"}};
  const Json first = Create({{"input", "one"}}, key);
  executor_->Say("something else");
  const Json again = Create({{"input", "one"}}, key);
  EXPECT_EQ(again["id"], first["id"]);
  EXPECT_EQ(again["output"], first["output"]);
  EXPECT_EQ(executor_->calls, 1);
  const Json body = {{"input", "two"}, {"previous_response_id", first["id"]}};
  const httplib::Headers next = {{"Idempotency-Key", "k-2"}};
  const Json second = Create(body, next);
  Create({{"input", "three"}, {"previous_response_id", second["id"]}});
  EXPECT_EQ(Create(body, next)["id"], second["id"]);
  // The same for a fork.
  const httplib::Headers fork = {{"Idempotency-Key", "k-3"}};
  const Json forked = Create(body, fork);
  EXPECT_EQ(Create(body, fork)["id"], forked["id"]);
  EXPECT_EQ(executor_->calls, 4);
}

TEST_F(ResponsesTest, BadRequestsAreRefusedByName) {
  Start();
  const auto refused = [&](const Json& body, const std::string& param) {
    const auto result = Post("/v1/responses", body.dump());
    ErrorOf(result, 400, "invalid_request_error");
    EXPECT_EQ(Parse(result)["error"]["param"], param) << body;
  };
  refused(Json::object(), "input");
  refused({{"input", 7}}, "input");
  refused({{"input", Json::array()}}, "input");
  refused({{"input", {{{"role", "user"}}}}}, "input[0].content");
  refused({{"input", {{{"type", "item_reference"}, {"id", "x"}}}}}, "input[0].type");
  refused({{"input", {{{"role", "wizard"}, {"content", "x"}}}}}, "messages[0].role");
  refused({{"input", "x"}, {"background", true}}, "background");
  refused({{"input", "x"}, {"truncation", "auto"}}, "truncation");
  refused({{"input", "x"}, {"max_output_tokens", 0}}, "max_output_tokens");
  refused({{"input", "x"}, {"conversation", 3}}, "conversation");
  refused({{"input", "x"}, {"conversation", "c"}, {"store", false}}, "store");
  refused({{"input", "x"}, {"conversation", "c"}, {"previous_response_id", "r"}},
          "previous_response_id");
  refused({{"input", "x"}, {"text", {{"format", {{"type", "json_schema"}}}}}}, "text.format");
  refused({{"input", "x"}, {"tools", {{{"type", "web_search"}}}}}, "tools[0].type");
  for (const std::string& id :
       {std::string("nonsense"), FormatResponseId({"none", 1}), FormatResponseId({"none", 0})}) {
    const auto result =
        Post("/v1/responses", Json({{"input", "x"}, {"previous_response_id", id}}).dump());
    ErrorOf(result, 404, "invalid_request_error");
    EXPECT_EQ(Parse(result)["error"]["code"], "previous_response_not_found");
    ErrorOf(Http().Get("/v1/responses/" + id), 404, "invalid_request_error");
    ErrorOf(Http().Delete("/v1/responses/" + id), 404, "invalid_request_error");
  }
  ErrorOf(Post("/v1/responses", R"({"input":"x","conversation":"none"})"), 404,
          "invalid_request_error");
  EXPECT_EQ(executor_->calls, 0);
  EXPECT_EQ(Parse(Http().Get("/v1/sessions"))["data"].size(), 0U);
}

TEST_F(ResponsesTest, ItemsOfAllKindsReachTheTemplate) {
  Start();
  Create({{"input",
           {{{"type", "message"},
             {"role", "user"},
             {"content",
              {{{"type", "input_text"}, {"text", "a"}}, {{"type", "input_text"}, {"text", "b"}}}}},
            {{"role", "assistant"}, {"content", {{{"type", "output_text"}, {"text", "c"}}}}},
            {{"type", "function_call_output"}, {"call_id", "1"}, {"output", "d"}}}}});
  EXPECT_EQ(LastPrompt(), "user:ab|assistant:c|tool:d|assistant:");
}

TEST_F(ResponsesTest, ConversationIsASession) {
  Start();
  const Json made =
      Parse(Post("/v1/conversations",
                 Json({{"metadata", {{"topic", "demo"}}},
                       {"items", {{{"type", "message"}, {"role", "user"}, {"content", "one"}}}}})
                     .dump()));
  const std::string id = made["id"];
  EXPECT_EQ(made["object"], "conversation");
  EXPECT_EQ(made["metadata"], Json({{"topic", "demo"}}));
  const Json reply = Create({{"input", "two"}, {"conversation", id}});
  EXPECT_EQ(reply["conversation"]["id"], id);
  EXPECT_EQ(LastPrompt(), "user:one|user:two|assistant:");
  Create({{"input", "three"}, {"conversation", {{"id", id}}}});
  EXPECT_THAT(LastPrompt(), HasSubstr("two|assistant:Hello, world|user:three"));

  const Json added = Parse(Post("/v1/conversations/" + id + "/items",
                                R"({"items":[{"role":"user","content":"four"}]})"));
  ASSERT_EQ(added["data"].size(), 1U);
  const std::string item = added["data"][0]["id"];
  EXPECT_EQ(Parse(Http().Get("/v1/conversations/" + id + "/items/" + item))["content"][0]["text"],
            "four");
  const Json newest = Parse(Http().Get("/v1/conversations/" + id + "/items?limit=2"));
  ASSERT_EQ(newest["data"].size(), 2U);
  EXPECT_EQ(newest["data"][0]["id"], item);
  EXPECT_EQ(newest["has_more"], true);
  const Json rest = Parse(Http().Get("/v1/conversations/" + id +
                                     "/items?after=" + newest["last_id"].get<std::string>()));
  EXPECT_EQ(rest["data"].size(), 4U);
  EXPECT_EQ(rest["has_more"], false);
  // A response of a conversation is found, and is deleted with it only.
  const std::string response = "/v1/responses/" + reply["id"].get<std::string>();
  EXPECT_EQ(Parse(Http().Get(response))["conversation"]["id"], id);
  ErrorOf(Http().Delete(response), 409, "conflict_error");

  const Json updated = Parse(Post("/v1/conversations/" + id, R"({"metadata":{"title":"Plain"}})"));
  EXPECT_EQ(updated["metadata"], Json({{"title", "Plain"}}));
  EXPECT_EQ(Parse(Http().Get("/v1/sessions/" + id))["title"], "Plain");
  EXPECT_EQ(Parse(Http().Get("/v1/conversations/" + id))["metadata"]["title"], "Plain");
  EXPECT_EQ(Delete("/v1/conversations/" + id)["object"], "conversation.deleted");
  ErrorOf(Http().Get("/v1/conversations/" + id), 404, "invalid_request_error");
  ErrorOf(Http().Get(response), 404, "invalid_request_error");
}

TEST_F(ResponsesTest, BadConversationsAreRefusedByName) {
  Start();
  const auto refused = [&](const std::string& path, const std::string& body,
                           const std::string& param) {
    const auto result = Post(path, body);
    ErrorOf(result, 400, "invalid_request_error");
    EXPECT_EQ(Parse(result)["error"]["param"], param) << body;
  };
  refused("/v1/conversations", R"({"metadata":{"a":1}})", "metadata");
  refused("/v1/conversations", R"({"metadata":{"a":")" + std::string(2000, 'x') + R"("}})",
          "metadata");
  refused("/v1/conversations", R"({"items":[{"type":"x"}]})", "items[0].type");
  const std::string id = Parse(Post("/v1/conversations", ""))["id"];
  refused("/v1/conversations/" + id, "{}", "metadata");
  refused("/v1/conversations/" + id + "/items", "{}", "items");
  ErrorOf(Post("/v1/conversations/none/items", R"({"items":[{"role":"user","content":"x"}]})"), 404,
          "invalid_request_error");
  ErrorOf(Http().Get("/v1/conversations/" + id + "/items?limit=0"), 400, "invalid_request_error");
  ErrorOf(Http().Get("/v1/conversations/" + id + "/items?order=up"), 400, "invalid_request_error");
  ErrorOf(Http().Get("/v1/conversations/" + id + "/items?after=x"), 400, "invalid_request_error");
  ErrorOf(Http().Get("/v1/conversations/" + id + "/items/x"), 404, "invalid_request_error");
}

TEST_F(ResponsesTest, NoOtherTenantFindsAResponse) {
  std::vector<auth::KeyEntry> entries;
  std::vector<std::string> keys;
  for (const char* name : {"ada", "eve"}) {
    auth::NewKey made = auth::GenerateKey(name, name).value();
    entries.push_back(made.entry);
    keys.push_back(made.key);
  }
  const std::string path = absl::StrCat(::testing::TempDir(), "resp_keys.", getpid(), ".json");
  ASSERT_TRUE(auth::SaveKeys(path, entries).ok());
  config_.set_keys_file(path);
  Start();
  const httplib::Headers ada = {{"Authorization", "Bearer " + keys[0]}};
  const httplib::Headers eve = {{"Authorization", "Bearer " + keys[1]}};
  const std::string id = Create({{"input", "one"}}, ada)["id"];
  EXPECT_EQ(Http().Get("/v1/responses/" + id, ada)->status, 200);
  ErrorOf(Http().Get("/v1/responses/" + id, eve), 404, "invalid_request_error");
  ErrorOf(Http().Delete("/v1/responses/" + id, eve), 404, "invalid_request_error");
  ErrorOf(Post("/v1/responses", Json({{"input", "x"}, {"previous_response_id", id}}).dump(), eve),
          404, "invalid_request_error");
}

}  // namespace
}  // namespace mneme::gateway
