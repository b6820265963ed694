// Two tenants on one server: nothing that A does tells it anything of B, not what there is, not
// what it says, and not, by the time that answers take, what B has asked before.
#include <httplib.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/time/clock.h"
#include "common/auth/api_keys.h"
#include "common/rpc/grpc_status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "services/cli/data_folder.h"
#include "tests/support/chat_client.h"
#include "tests/support/mneme_up.h"
#include "tests/support/temp_folder.h"

namespace mneme::testing {
namespace {

namespace gv1 = gateway::v1;
using Json = nlohmann::json;
using ::testing::HasSubstr;
using ::testing::Not;

// Ids of one length, so that not even that differs.
constexpr char kOfB[] = "kept-by-b-00000000";
constexpr char kRunning[] = "running-of-b-00000";
constexpr char kTimed[] = "asked-for-00000000";
constexpr char kUnknown[] = "unknown-0000000000";

// Measurements of two things, taken in turns.
class PairedTimes {
 public:
  void Add(absl::Duration a, absl::Duration b) {
    a_.push_back(absl::ToDoubleMilliseconds(a));
    b_.push_back(absl::ToDoubleMilliseconds(b));
  }

  // The two-sided sign test: how likely it is, if neither is the faster one, that one of them wins
  // so many pairs or more.
  double SignTest() const {
    const int n = static_cast<int>(a_.size());
    int wins = 0;
    for (int i = 0; i < n; ++i) wins += a_[i] < b_[i] ? 1 : 0;
    const int most = std::max(wins, n - wins);
    double tail = 0;
    for (int k = most; k <= n; ++k) {
      tail += std::exp(std::lgamma(n + 1) - std::lgamma(k + 1) - std::lgamma(n - k + 1) -
                       n * std::log(2.0));
    }
    return std::min(1.0, 2 * tail);
  }
  double MedianA() const { return Median(a_); }
  double MedianB() const { return Median(b_); }
  // Median over the pairs of a - b.
  double MedianDifference() const {
    std::vector<double> differences;
    for (size_t i = 0; i < a_.size(); ++i) differences.push_back(a_[i] - b_[i]);
    return Median(differences);
  }
  std::string Describe() const {
    return absl::StrCat(a_.size(), " pairs, medians ", MedianA(), " and ", MedianB(),
                        " ms, of the difference ", MedianDifference(), " ms, p ", SignTest());
  }

 private:
  static double Median(std::vector<double> values) {
    std::sort(values.begin(), values.end());
    const size_t half = values.size() / 2;
    return values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2;
  }

  std::vector<double> a_, b_;
};

// Below it a difference is one. Where there is none it is reported once in a thousand runs.
constexpr double kSignificance = 0.001;

// Who holds the data is faster with it, which shows that the method finds what there is to find;
// others are not, to within the significance and half of what the owner gains.
void ExpectHitsAreTheirOwnersAlone(const PairedTimes& others, const PairedTimes& own) {
  EXPECT_LT(own.SignTest(), kSignificance) << own.Describe();
  EXPECT_LT(own.MedianDifference(), 0) << own.Describe();
  EXPECT_GT(others.SignTest(), kSignificance) << others.Describe();
  EXPECT_LT(std::abs(others.MedianDifference()), 0.5 * std::abs(own.MedianDifference()))
      << others.Describe() << "; B itself: " << own.Describe();
  ::testing::Test::RecordProperty("other_tenant", others.Describe());
  ::testing::Test::RecordProperty("own", own.Describe());
}

class IsolationTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = std::make_unique<TempFolder>();
    const std::string data = folder_->File("data");
    const cli::DataFolder folder(data);
    ASSERT_TRUE(folder.Create().ok());
    const auth::NewKey a = auth::GenerateKey("a", "tenant-a").value();
    const auth::NewKey b = auth::GenerateKey("b", "tenant-b").value();
    ASSERT_TRUE(auth::SaveKeys(folder.keys_file(), {a.entry, b.entry}).ok());
    absl::StatusOr<std::unique_ptr<MnemeUp>> up = MnemeUp::Start({.data = data});
    ASSERT_TRUE(up.ok()) << up.status();
    up_ = *std::move(up);
    a_ = std::make_unique<ChatClient>(up_->grpc(), a.key);
    b_ = std::make_unique<ChatClient>(up_->grpc(), b.key);
    key_a_ = a.key;
    key_b_ = b.key;
  }
  static void TearDownTestSuite() {
    a_.reset();
    b_.reset();
    up_.reset();
    folder_.reset();
  }
  void SetUp() override { ASSERT_NE(b_, nullptr); }

  // What the HTTP front answers: status and body, ids made alike.
  std::string Ask(const std::string& key, const std::string& method, const std::string& path,
                  const std::string& body, const std::string& id) {
    httplib::Client http("http://" + up_->http());
    http.set_read_timeout(60);
    httplib::Request request;
    request.method = method;
    request.path = path;
    request.headers = {{"Authorization", "Bearer " + key}, {"Content-Type", "application/json"}};
    request.body = body;
    const httplib::Result result = http.send(request);
    if (!result) return "no answer";
    return absl::StrReplaceAll(absl::StrCat(result->status, " ", result->body), {{id, "ID"}});
  }

  absl::Status ForkAs(const ChatClient& client, const std::string& id) {
    gv1::ForkSessionRequest request;
    request.set_session_id(id);
    gv1::ForkSessionResponse response;
    return rpc::FromGrpc(client.sessions().ForkSession(client.Context().get(), request, &response));
  }

  // Started once for all tests.
  static inline std::unique_ptr<TempFolder> folder_;
  static inline std::unique_ptr<MnemeUp> up_;
  static inline std::unique_ptr<ChatClient> a_, b_;
  static inline std::string key_a_, key_b_;
  std::mt19937 random_{7};
};

TEST_F(IsolationTest, SessionOfAnotherTenantIsAnsweredLikeNone) {
  ASSERT_TRUE(b_->Chat(TurnOf(kOfB, "The safe opens with 4711.")).is_committed());
  ASSERT_TRUE(b_->Chat(TurnOf(kOfB, "Do you know it?")).is_committed());
  const auto before = StoredSession(*up_, kOfB, "tenant-b");
  ASSERT_TRUE(before.ok()) << before.status();

  struct Verb {
    const char* method;
    const char* path;  // $ is the id
    const char* body;
  };
  const Verb kVerbs[] = {
      {"GET", "/v1/sessions/$", ""},
      {"POST", "/v1/sessions/$", R"({"title":"mine"})"},
      {"PATCH", "/v1/sessions/$", R"({"pinned":true})"},
      {"GET", "/v1/sessions/$/messages", ""},
      {"GET", "/v1/sessions/$/versions", ""},
      {"POST", "/v1/sessions/$/fork", "{}"},
      {"POST", "/v1/sessions/$/fork", R"({"version":1,"id":"mine"})"},
      {"POST", "/v1/sessions/$/rewind", R"({"version":1})"},
      {"POST", "/v1/sessions/$/compact", R"({"encoding":"int8"})"},
      {"GET", "/v1/sessions/$/export", ""},
      {"DELETE", "/v1/sessions/$", ""},
      {"GET", "/v1/conversations/$", ""},
      {"POST", "/v1/conversations/$", R"({"metadata":{"k":"v"}})"},
      {"GET", "/v1/conversations/$/items", ""},
      {"DELETE", "/v1/conversations/$", ""},
  };
  for (const Verb& verb : kVerbs) {
    const auto ask = [&](const std::string& id) {
      return Ask(key_a_, verb.method, absl::StrReplaceAll(verb.path, {{"$", id}}), verb.body, id);
    };
    const std::string answer = ask(kOfB);
    EXPECT_EQ(answer, ask(kUnknown)) << verb.method << " " << verb.path;
    EXPECT_EQ(answer.substr(0, 3), "404") << verb.method << " " << verb.path << ": " << answer;
  }
  // A turn that claims to have seen B's version finds no such session either.
  for (const char* const id : {kOfB, kUnknown}) {
    gv1::ChatRequest turn = TurnOf(id, "Which number opens it?");
    turn.set_parent_version(2);
    EXPECT_EQ(a_->Chat(turn).status.code(), absl::StatusCode::kAborted);
  }
  EXPECT_TRUE(absl::IsNotFound(ForkAs(*a_, kOfB)));
  EXPECT_THAT(Ask(key_a_, "GET", "/v1/sessions", "", kOfB), Not(HasSubstr("ID")));
  EXPECT_THAT(Ask(key_b_, "GET", "/v1/sessions", "", kOfB), HasSubstr("ID"));

  // The same id is another session under another key, with a lease of its own.
  const ChatReply own = a_->Chat(TurnOf(kOfB, "Which number opens it?"));
  EXPECT_TRUE(own.is_committed()) << own.status;
  EXPECT_EQ(own.version, 1u);
  // Not even the template's beginning, which all prompts share, came from B.
  EXPECT_EQ(own.usage.cached_tokens(), 0);
  EXPECT_EQ(own.receipt.tier(), "none");
  const auto after = StoredSession(*up_, kOfB, "tenant-b");
  ASSERT_TRUE(after.ok()) << after.status();
  EXPECT_EQ(after->SerializeAsString(), before->SerializeAsString());
  EXPECT_EQ(b_->Chat(TurnOf(kOfB, "Say it again.")).version, 3u);
}

TEST_F(IsolationTest, RunningAnswersAndResponsesOfAnotherTenantAreAnsweredLikeNone) {
  gv1::ChatRequest request = TurnOf(kRunning, "Tell me a very long story.", 200);
  const std::unique_ptr<grpc::ClientContext> running = b_->Context();
  const auto reader = b_->chat().Chat(running.get(), request);
  gv1::ChatResponse event;
  ASSERT_TRUE(reader->Read(&event));
  const std::string id = event.started().id();
  ASSERT_NE(id, "");
  std::string unknown = id;
  unknown.back() = unknown.back() == 'x' ? 'y' : 'x';
  const auto attach = [&](const std::string& which) {
    gv1::AttachRequest request;
    request.set_id(which);
    const std::unique_ptr<grpc::ClientContext> context = a_->Context();
    const auto attached = a_->chat().Attach(context.get(), request);
    gv1::AttachResponse response;
    while (attached->Read(&response)) ADD_FAILURE() << "an event of another tenant's answer";
    return absl::StrReplaceAll(rpc::FromGrpc(attached->Finish()).ToString(), {{which, "ID"}});
  };
  EXPECT_EQ(attach(id), attach(unknown));
  EXPECT_THAT(attach(id), HasSubstr("NOT_FOUND"));
  for (const auto& [method, path] :
       {std::pair("GET", "/v1/streams/$"), std::pair("POST", "/v1/streams/$/cancel")}) {
    const auto ask = [&](const std::string& which) {
      return Ask(key_a_, method, absl::StrReplaceAll(path, {{"$", which}}), "", which);
    };
    EXPECT_EQ(ask(id), ask(unknown)) << path;
    EXPECT_EQ(ask(id).substr(0, 3), "404") << path;
  }
  while (reader->Read(&event)) {
  }
  EXPECT_TRUE(reader->Finish().ok()) << "nobody but B ends B's answer";

  const std::string made =
      Ask(key_b_, "POST", "/v1/responses", R"({"input":"Hi","max_output_tokens":4})", "-");
  const std::string response = Json::parse(made.substr(4)).value("id", "");
  ASSERT_NE(response, "") << made;
  const auto ask_all = [&] {
    std::vector<std::string> answers;
    const std::string path = absl::StrCat("/v1/responses/", response);
    answers.push_back(Ask(key_a_, "GET", path, "", response));
    answers.push_back(Ask(key_a_, "GET", path + "/input_items", "", response));
    answers.push_back(Ask(key_a_, "DELETE", path, "", response));
    answers.push_back(Ask(key_a_, "POST", "/v1/responses",
                          Json{{"input", "And?"}, {"previous_response_id", response}}.dump(),
                          response));
    return answers;
  };
  const std::vector<std::string> while_it_is_there = ask_all();
  for (const std::string& answer : while_it_is_there) {
    EXPECT_THAT(answer, ::testing::AnyOf(HasSubstr("404"), HasSubstr("not_found"))) << answer;
  }
  EXPECT_EQ(Ask(key_b_, "DELETE", "/v1/responses/" + response, "", "-").substr(0, 3), "200");
  EXPECT_EQ(ask_all(), while_it_is_there);
}

TEST_F(IsolationTest, TimeDoesNotTellWhatAnotherTenantHasAsked) {
  constexpr int kPairs = 20;
  constexpr int kPromptTokens = 112;
  const auto draw = [&] {
    std::vector<int32_t> ids;
    for (int i = 0; i < kPromptTokens; ++i)
      ids.push_back(200 + static_cast<int32_t>(random_() % 20000));
    return ids;
  };
  int32_t cached = 0;  // of the call that was made last
  const auto time = [&](const ChatClient& client, const std::vector<int32_t>& prompt) {
    gv1::CompleteRequest request;
    request.mutable_prompt_ids()->Assign(prompt.begin(), prompt.end());
    request.mutable_sampling()->set_max_tokens(1);
    request.mutable_sampling()->set_temperature(0);
    const std::unique_ptr<grpc::ClientContext> context = client.Context();
    const absl::Time start = absl::Now();
    const auto reader = client.chat().Complete(context.get(), request);
    gv1::CompleteResponse response;
    while (reader->Read(&response)) {
      if (response.event().has_usage()) cached = response.event().usage().cached_tokens();
    }
    const absl::Duration elapsed = absl::Now() - start;
    EXPECT_TRUE(reader->Finish().ok());
    return elapsed;
  };
  time(*a_, draw());
  time(*b_, draw());
  PairedTimes others;  // A: what B has asked, and what nobody has
  PairedTimes own;     // B: the first time, and again
  for (int i = 0; i < kPairs; ++i) {
    const std::vector<int32_t> asked = draw();
    const std::vector<int32_t> fresh = draw();
    const absl::Duration first = time(*b_, asked);
    absl::Duration of_asked, of_fresh;
    const bool asked_first = random_() % 2 == 0;
    for (const bool is_asked : {asked_first, !asked_first}) {
      (is_asked ? of_asked : of_fresh) = time(*a_, is_asked ? asked : fresh);
      EXPECT_EQ(cached, 0);
    }
    others.Add(of_asked, of_fresh);
    own.Add(time(*b_, asked), first);
    EXPECT_EQ(cached, kPromptTokens - 1);
  }
  ExpectHitsAreTheirOwnersAlone(others, own);
}

TEST_F(IsolationTest, TimeDoesNotTellWhatAnotherTenantsSessionsHold) {
  constexpr int kPairs = 12;
  std::vector<std::string> words;
  for (int i = 0; i < 8; ++i) {
    for (const char* const word : {"river", "table", "green", "winter", "house", "seven", "paper",
                                   "light", "horse", "music", "stone", "bread"}) {
      words.push_back(word);
    }
  }
  // The same words in another order are as many tokens.
  const auto draw = [&] {
    std::shuffle(words.begin(), words.end(), random_);
    std::string text = "Words:";
    for (const std::string& word : words) absl::StrAppend(&text, " ", word);
    return text;
  };
  int count = 0;
  const auto tell = [&](const ChatClient& client, const std::string& text) {
    ChatReply reply = client.Chat(TurnOf(absl::StrCat("session-", count++), text, 1));
    EXPECT_TRUE(reply.is_committed()) << reply.status;
    return reply;
  };
  tell(*b_, draw());
  tell(*a_, draw());
  PairedTimes others, own;
  for (int i = 0; i < kPairs; ++i) {
    const std::string held = draw();
    const std::string fresh = draw();
    const ChatReply first = tell(*b_, held);
    ChatReply of_held, of_fresh;
    const bool held_first = random_() % 2 == 0;
    for (const bool is_held : {held_first, !held_first}) {
      (is_held ? of_held : of_fresh) = tell(*a_, is_held ? held : fresh);
    }
    EXPECT_EQ(of_held.usage.prompt_tokens(), of_fresh.usage.prompt_tokens());
    EXPECT_LT(of_held.usage.cached_tokens(), 60) << "more than the template and a few words";
    EXPECT_LT(of_fresh.usage.cached_tokens(), 60);
    EXPECT_EQ(of_held.receipt.restored_tokens(), 0);
    others.Add(of_held.done, of_fresh.done);
    const ChatReply again = tell(*b_, held);
    EXPECT_EQ(again.usage.cached_tokens(), again.usage.prompt_tokens() - 1);
    own.Add(again.done, first.done);
  }
  ExpectHitsAreTheirOwnersAlone(others, own);
}

TEST_F(IsolationTest, TimeDoesNotTellWhichSessionsAnotherTenantHas) {
  constexpr int kPairs = 120;
  ASSERT_TRUE(b_->Chat(TurnOf(kTimed, "The safe opens with 4711.")).is_committed());
  const std::pair<const char*, std::function<absl::Status(const std::string&)>> kVerbs[] = {
      {"get",
       [&](const std::string& id) {
         gv1::GetSessionRequest request;
         request.set_session_id(id);
         request.set_with_messages(true);
         gv1::GetSessionResponse response;
         return rpc::FromGrpc(a_->sessions().GetSession(a_->Context().get(), request, &response));
       }},
      {"describe",
       [&](const std::string& id) {
         gv1::DescribeSessionRequest request;
         request.set_session_id(id);
         gv1::DescribeSessionResponse response;
         return rpc::FromGrpc(
             a_->sessions().DescribeSession(a_->Context().get(), request, &response));
       }},
      {"fork", [&](const std::string& id) { return ForkAs(*a_, id); }},
  };
  for (const auto& [name, call] : kVerbs) {
    PairedTimes times;
    for (int i = 0; i < kPairs; ++i) {
      absl::Duration of_b, of_unknown;
      const bool b_first = random_() % 2 == 0;
      for (const bool is_b : {b_first, !b_first}) {
        const absl::Time start = absl::Now();
        const absl::Status status = call(is_b ? kTimed : kUnknown);
        (is_b ? of_b : of_unknown) = absl::Now() - start;
        ASSERT_TRUE(absl::IsNotFound(status)) << status;
      }
      times.Add(of_b, of_unknown);
    }
    EXPECT_GT(times.SignTest(), kSignificance) << name << ": " << times.Describe();
    RecordProperty(name, times.Describe());
  }
}

}  // namespace
}  // namespace mneme::testing
