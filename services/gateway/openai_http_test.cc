// What OpenAI's clients see: shapes, streams, errors. Real fronts and core, scripted upstreams.
#include "services/gateway/gateway_fixture.h"

namespace mneme::gateway {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::MatchesRegex;
using ::testing::StartsWith;

using OpenAiHttpTest = GatewayTest;

TEST_F(OpenAiHttpTest, ChatAnswersOneObject) {
  Start();
  const auto result = Post("/v1/chat/completions", Chat("hi"));
  const Json json = Parse(result);
  ASSERT_TRUE(json.is_object()) << result->body;
  EXPECT_EQ(result->status, 200);
  EXPECT_EQ(result->get_header_value("Content-Type"), "application/json");
  EXPECT_THAT(json["id"].get<std::string>(), MatchesRegex("chatcmpl-[0-9a-f]{24}"));
  EXPECT_EQ(json["object"], "chat.completion");
  EXPECT_GT(json["created"], 1'700'000'000);
  EXPECT_EQ(json["model"], "script");
  EXPECT_EQ(json["system_fingerprint"], "fp_0123456789ab");
  const Json choice = {
      {"index", 0},
      {"message", {{"role", "assistant"}, {"content", "Hello, world"}, {"refusal", nullptr}}},
      {"logprobs", nullptr},
      {"finish_reason", "stop"}};
  EXPECT_EQ(json["choices"], Json::array({choice}));
  // <s> user:hi <end> assistant: and 12 letters with their end.
  EXPECT_EQ(json["usage"], (Json{{"prompt_tokens", 19},
                                 {"completion_tokens", 13},
                                 {"total_tokens", 32},
                                 {"prompt_tokens_details", {{"cached_tokens", 3}}}}));
  EXPECT_EQ(json["mneme"]["tier"], "hot");
  EXPECT_EQ(json["mneme"]["prefilled_tokens"], 19);
  EXPECT_TRUE(json["mneme"]["ms"].contains("total"));
}

TEST_F(OpenAiHttpTest, StreamIsByteForByteWhatClientsParse) {
  executor_->Say("é\"\n");
  Start();
  const auto result = Post("/v1/chat/completions", Chat("hi", {{"stream", true}}),
                           {{"Accept-Encoding", "gzip, deflate"}});
  ASSERT_TRUE(result);
  EXPECT_EQ(result->status, 200);
  EXPECT_THAT(result->get_header_value("Content-Type"), StartsWith("text/event-stream"));
  EXPECT_FALSE(result->has_header("Content-Encoding"));
  const std::vector<Json> events = Events(result->body);
  ASSERT_GE(events.size(), 3U);
  const std::string id = events[0]["id"];
  const std::string head = absl::StrCat(
      "data: {\"id\":\"", id,
      "\",\"object\":\"chat.completion.chunk\",\"created\":", events[0]["created"].get<int64_t>(),
      ",\"model\":\"script\",\"system_fingerprint\":\"fp_0123456789ab\",\"choices\":[{\"index\":0,"
      "\"delta\":");
  EXPECT_THAT(result->body,
              StartsWith(head +
                         "{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,"
                         "\"finish_reason\":null}]}\n\n" +
                         head + "{\"content\":\"é"));
  EXPECT_THAT(result->body,
              HasSubstr(head + "{},\"logprobs\":null,\"finish_reason\":\"stop\"}],\"mneme\":{"));
  EXPECT_EQ(TextOf(events), "é\"\n");
}

TEST_F(OpenAiHttpTest, UsageComesInALastChunkOnlyWhenAskedFor) {
  Start();
  auto events =
      Events(Post("/v1/chat/completions",
                  Chat("hi", {{"stream", true}, {"stream_options", {{"include_usage", true}}}}))
                 ->body);
  for (size_t i = 0; i + 1 < events.size(); ++i) EXPECT_TRUE(events[i]["usage"].is_null());
  EXPECT_EQ(events.back()["choices"], Json::array());
  EXPECT_EQ(events.back()["usage"]["completion_tokens"], 13);
  EXPECT_TRUE(events.back().contains("mneme"));
  EXPECT_EQ(events[events.size() - 2]["choices"][0]["finish_reason"], "stop");
  events = Events(Post("/v1/chat/completions", Chat("hi", {{"stream", true}}))->body);
  for (const Json& event : events) EXPECT_FALSE(event.contains("usage"));
}

TEST_F(OpenAiHttpTest, SeveralAnswersHaveTheirOwnIndex) {
  Start();
  const Json json = Parse(Post("/v1/chat/completions", Chat("hi", {{"n", 3}})));
  ASSERT_EQ(json["choices"].size(), 3U);
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(json["choices"][i]["index"], i);
    EXPECT_EQ(json["choices"][i]["message"]["content"], "Hello, world");
  }
  EXPECT_EQ(json["usage"]["prompt_tokens"], 19);
  EXPECT_EQ(json["usage"]["completion_tokens"], 39);
  const auto events =
      Events(Post("/v1/chat/completions", Chat("hi", {{"n", 2}, {"stream", true}}))->body);
  std::map<int, std::string> texts;
  std::map<int, int> ends;
  for (const Json& event : events) {
    const Json& choice = event["choices"][0];
    texts[choice["index"]] += choice["delta"].value("content", "");
    ends[choice["index"]] += choice["finish_reason"] == "stop";
  }
  EXPECT_THAT(texts, ElementsAre(std::pair(0, "Hello, world"), std::pair(1, "Hello, world")));
  EXPECT_THAT(ends, ElementsAre(std::pair(0, 1), std::pair(1, 1)));
}

TEST_F(OpenAiHttpTest, StopStringEndsTheAnswerBeforeItAndStopsTheExecutor) {
  executor_->token_ms = 5;
  Start();
  const auto result =
      Post("/v1/chat/completions", Chat("hi", {{"stop", {"zz", "o, w"}}, {"ignore_eos", true}}));
  const Json json = Parse(result);
  EXPECT_EQ(json["choices"][0]["message"]["content"], "Hell") << result->body;
  EXPECT_EQ(json["choices"][0]["finish_reason"], "stop");
  EXPECT_TRUE(Eventually([&] { return executor_->cancelled == 1; }));
  // The executor never hears of stop strings.
  EXPECT_EQ(executor_->requests()[0].sampling().stop_size(), 0);
}

TEST_F(OpenAiHttpTest, ChatLogprobsNameTokensAndBytes) {
  executor_->Say("hé");
  Start();
  const Json json =
      Parse(Post("/v1/chat/completions", Chat("hi", {{"logprobs", true}, {"top_logprobs", 2}})));
  const Json& content = json["choices"][0]["logprobs"]["content"];
  ASSERT_EQ(content.size(), 3U) << json;  // h and the two bytes of é; the end token is no text
  EXPECT_EQ(content[0]["token"], "h");
  EXPECT_EQ(content[0]["bytes"], Json::array({104}));
  EXPECT_EQ(content[0]["logprob"], -0.25);
  EXPECT_EQ(content[0]["top_logprobs"].size(), 2U);
  EXPECT_EQ(content[0]["top_logprobs"][1]["token"], "b");
  EXPECT_EQ(content[1]["bytes"], Json::array({0xC3}));
  const auto events = Events(
      Post("/v1/chat/completions", Chat("hi", {{"logprobs", true}, {"stream", true}}))->body);
  size_t tokens = 0;
  for (const Json& event : events) {
    for (const Json& choice : event["choices"]) {
      if (!choice["logprobs"].is_null()) tokens += choice["logprobs"]["content"].size();
    }
  }
  EXPECT_EQ(tokens, 3U);
}

TEST_F(OpenAiHttpTest, CompletionTakesEveryFormOfPrompt) {
  Start();
  for (const Json& prompt : {Json("ab"), Json({"ab", "cd"}), Json({97, 98}),
                             Json({Json::array({97}), Json::array({98, 99})})}) {
    const Json body = {{"model", "script"}, {"prompt", prompt}, {"max_tokens", 5}};
    const Json json = Parse(Post("/v1/completions", body.dump()));
    const size_t count = prompt.is_array() && !prompt[0].is_number() ? 2 : 1;
    ASSERT_EQ(json["choices"].size(), count) << json;
    EXPECT_EQ(json["object"], "text_completion");
    for (size_t i = 0; i < count; ++i) {
      EXPECT_EQ(json["choices"][i]["index"], i);
      EXPECT_EQ(json["choices"][i]["text"], "Hello");
      EXPECT_EQ(json["choices"][i]["finish_reason"], "length");
    }
    EXPECT_EQ(json["usage"]["completion_tokens"], 5 * count);
  }
}

TEST_F(OpenAiHttpTest, CompletionEchoesThePromptWithItsLogprobs) {
  Start();
  const Json body = {{"prompt", "ab"}, {"max_tokens", 2}, {"echo", true}, {"logprobs", 1}};
  const Json json = Parse(Post("/v1/completions", body.dump()));
  const Json& choice = json["choices"][0];
  EXPECT_EQ(choice["text"], "abHe");
  const Json& logprobs = choice["logprobs"];
  EXPECT_EQ(logprobs["tokens"], Json({"<s>", "a", "b", "H", "e"}));
  EXPECT_EQ(logprobs["token_logprobs"], Json({nullptr, -0.5, -0.5, -0.25, -0.25}));
  EXPECT_EQ(logprobs["text_offset"], Json({0, 3, 4, 5, 6}));
  EXPECT_EQ(logprobs["top_logprobs"][3], (Json{{"a", -1.0}, {"H", -0.25}}));
  const Json only = {{"prompt", "ab"}, {"max_tokens", 0}, {"echo", true}, {"logprobs", 0}};
  const Json scored = Parse(Post("/v1/completions", only.dump()));
  EXPECT_EQ(scored["choices"][0]["text"], "ab");
  EXPECT_EQ(scored["choices"][0]["logprobs"]["tokens"].size(), 3U);
  EXPECT_EQ(scored["usage"]["completion_tokens"], 0);
  Json streamed = body;
  streamed["stream"] = true;
  std::string text;
  for (const Json& event : Events(Post("/v1/completions", streamed.dump())->body)) {
    for (const Json& each : event["choices"]) text += each["text"];
  }
  EXPECT_EQ(text, "abHe");
}

TEST_F(OpenAiHttpTest, ModelsAreListedAndFound) {
  Start();
  const Json list = Parse(Http().Get("/v1/models"));
  ASSERT_EQ(list["data"].size(), 1U);
  EXPECT_EQ(list["data"][0]["id"], "script");
  EXPECT_EQ(list["data"][0]["object"], "model");
  EXPECT_EQ(Parse(Http().Get("/v1/models/script"))["id"], "script");
  const auto unknown = Http().Get("/v1/models/org/none");
  EXPECT_THAT(ErrorOf(unknown, 404, "invalid_request_error"), HasSubstr("org/none"));
  EXPECT_EQ(Parse(unknown)["error"]["code"], "model_not_found");
}

TEST_F(OpenAiHttpTest, TextIsTokenized) {
  Start();
  const auto post = [&](const char* body) {
    return Http().Post("/tokenize", body, "application/json");
  };
  const Json told = Parse(post(R"({"prompt": "Hi"})"));
  EXPECT_EQ(told["model"], "script");
  EXPECT_EQ(told["count"], 3) << "what goes before a prompt comes with it";
  ASSERT_EQ(told["tokens"].size(), 3U);
  EXPECT_EQ(told["tokens"][1], 'H');
  EXPECT_GT(told["max_model_len"], 0);
  EXPECT_EQ(Parse(post(R"({"prompt": "Hi", "add_special_tokens": false})"))["count"], 2);
  EXPECT_EQ(Parse(post(R"({"prompt": "", "add_special_tokens": false})"))["tokens"].size(), 0U);
  auto refused = post(R"({"model": "script"})");
  EXPECT_EQ(refused->status, 400);
  EXPECT_EQ(Parse(refused)["error"]["param"], "prompt");
  EXPECT_EQ(post(R"({"model": "none", "prompt": "Hi"})")->status, 404);
}

TEST_F(OpenAiHttpTest, MemoryIsEstimatedByTheExecutor) {
  Start();
  const auto post = [&](const char* body) {
    return Http().Post("/v1/memory/estimate", body, "application/json");
  };
  const Json told = Parse(
      post(R"({"tokens": 1000, "memory_policy": {"type": "window", "sinks": 4, "recent": 60}})"));
  EXPECT_EQ(told["object"], "memory_estimate");
  EXPECT_EQ(told["model"], "script");
  EXPECT_EQ(told["tokens"], 1000);
  EXPECT_EQ(told["resident_pages"], 64) << "the fake executor's answer: sinks and recent";
  EXPECT_EQ(told["peak_bytes"], 1000);
  EXPECT_EQ(told["fits"], true);
  for (const char* const body : {R"({})", R"({"tokens": 0})", R"({"tokens": "many"})",
                                 R"({"tokens": 10, "memory_policy": {"type": "none"}})"}) {
    EXPECT_EQ(post(body)->status, 400) << body;
  }
  EXPECT_EQ(post(R"({"model": "none", "tokens": 10})")->status, 404);
}

TEST_F(OpenAiHttpTest, EmbeddingsAndUnknownRoutesAreRefusedClearly) {
  Start();
  ErrorOf(Post("/v1/embeddings", R"({"input":"a"})"), 404, "invalid_request_error");
  EXPECT_THAT(ErrorOf(Http().Get("/v2/nothing"), 404, "invalid_request_error"),
              HasSubstr("GET /v2/nothing"));
}

TEST_F(OpenAiHttpTest, PageHealthAndRequestIdAreServed) {
  Start();
  const auto page = Http().Get("/");
  ASSERT_TRUE(page);
  EXPECT_THAT(page->body, StartsWith("<!doctype html>"));
  EXPECT_THAT(page->body, ::testing::EndsWith("</html>\n"));
  EXPECT_EQ(page->body.find("http"), std::string::npos)
      << "the page must need nothing from outside";
  EXPECT_EQ(Http().Get("/healthz")->status, 200);
  const std::string traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
  const auto result = Post("/v1/chat/completions", Chat("hi"),
                           {{"X-Request-Id", "mine-1"}, {"traceparent", traceparent}});
  EXPECT_EQ(result->get_header_value("x-request-id"), "mine-1");
  EXPECT_EQ(executor_->requests()[0].request_id(), "mine-1");
  EXPECT_THAT(tokenizer_->request_ids(), ElementsAre("mine-1"));
  EXPECT_THAT(tokenizer_->traceparents(), ElementsAre(StartsWith(traceparent.substr(0, 35))));
  EXPECT_THAT(Http().Get("/healthz")->get_header_value("x-request-id"), StartsWith("req-"));
}

TEST_F(OpenAiHttpTest, FieldsReachTheExecutor) {
  Start();
  const Json more = {{"temperature", 0.5},
                     {"top_p", 0.9},
                     {"top_k", 7},
                     {"min_p", 0.1},
                     {"presence_penalty", 1},
                     {"frequency_penalty", -1},
                     {"repetition_penalty", 1.1},
                     {"logit_bias", {{"97", 5}}},
                     {"seed", 42},
                     {"max_completion_tokens", 3},
                     {"min_tokens", 1},
                     {"stop_token_ids", {10}},
                     {"memory_policy", {{"type", "window"}, {"recent", 64}}},
                     {"an_unknown_field", {{"a", 1}}}};
  const Json json = Parse(Post("/v1/chat/completions", Chat("hi", more)));
  EXPECT_EQ(json["choices"][0]["message"]["content"], "Hel");
  EXPECT_EQ(json["mneme"]["seed"], 42);
  const auto request = executor_->requests()[0];
  const auto& sampling = request.sampling();
  EXPECT_FLOAT_EQ(sampling.temperature(), 0.5);
  EXPECT_FLOAT_EQ(sampling.top_p(), 0.9);
  EXPECT_EQ(sampling.top_k(), 7);
  EXPECT_FLOAT_EQ(sampling.min_p(), 0.1);
  EXPECT_FLOAT_EQ(sampling.frequency_penalty(), -1);
  EXPECT_FLOAT_EQ(sampling.repetition_penalty(), 1.1);
  EXPECT_FLOAT_EQ(sampling.logit_bias().at(97), 5);
  EXPECT_EQ(sampling.seed(), 42U);
  EXPECT_EQ(sampling.max_tokens(), 3);
  EXPECT_EQ(sampling.min_tokens(), 1);
  EXPECT_THAT(sampling.stop_token_ids(), ElementsAre(10));
  EXPECT_EQ(request.memory_policy().window().sinks(), 4);
  EXPECT_EQ(request.memory_policy().window().recent(), 64);
  EXPECT_EQ(request.tenant(), "default");
}

TEST_F(OpenAiHttpTest, TextPartsAreJoinedAndTheVocabularyIsFetchedOnce) {
  Start();
  const Json body = {
      {"messages",
       {{{"role", "user"},
         {"content", {{{"type", "text"}, {"text", "a"}}, {{"type", "text"}, {"text", "b"}}}}}}}};
  for (int i = 0; i < 3; ++i) ASSERT_EQ(Post("/v1/chat/completions", body.dump())->status, 200);
  const auto ids = executor_->requests()[0].prompt_ids();
  std::vector<int32_t> expected = {kBos};
  for (const int32_t id : IdsOf("user:ab")) expected.push_back(id);
  expected.push_back(kEnd);
  for (const int32_t id : IdsOf("assistant:")) expected.push_back(id);
  EXPECT_THAT(ids, ::testing::ElementsAreArray(expected));
  EXPECT_EQ(tokenizer_->num_tables, 1);
}

}  // namespace
}  // namespace mneme::gateway
