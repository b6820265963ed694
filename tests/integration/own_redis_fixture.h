// A whole Mneme on a Redis of the test's own, for tests that break one of its parts at a chosen
// moment. The model runs on its exact path: whatever breaks, a session's texts are those of one
// that was never disturbed.
#pragma once

#include <csignal>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/redis/client.h"
#include "common/rpc/client.h"
#include "common/rpc/grpc_status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "mneme/executor/v1/executor.grpc.pb.h"
#include "tests/support/chat_client.h"
#include "tests/support/mneme_up.h"
#include "tests/support/redis_server.h"
#include "tests/support/time_limit.h"

namespace mneme::testing {

// Waits until the condition is true; false after `limit`.
inline bool Becomes(const std::function<bool()>& condition,
                    absl::Duration limit = absl::Seconds(20)) {
  const absl::Time give_up = absl::Now() + TimeLimit(limit);
  while (!condition()) {
    if (absl::Now() > give_up) return false;
    absl::SleepFor(absl::Milliseconds(1));
  }
  return true;
}

// Started once for a suite's tests.
class OwnRedisTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    absl::StatusOr<std::unique_ptr<RedisServer>> redis =
        RedisServer::Start({.append_fsync = "always"});
    ASSERT_TRUE(redis.ok()) << redis.status();
    redis_ = *std::move(redis);
    StartUp(absl::StrCat(R"({"redis":{"address":")", redis_->address(), R"("}})"));
  }
  static void StartUp(const std::string& config_json) {
    absl::StatusOr<std::unique_ptr<MnemeUp>> up =
        MnemeUp::Start({.config_json = config_json, .arguments = {"--compute", "float32"}});
    ASSERT_TRUE(up.ok()) << up.status();
    up_ = *std::move(up);
    client_ = std::make_unique<ChatClient>(up_->grpc());
  }
  static void TearDownTestSuite() {
    client_.reset();
    up_.reset();
    redis_.reset();
  }
  void SetUp() override { ASSERT_NE(up_, nullptr); }

  // A session's name that no other test of the suite uses.
  static std::string NewSession() { return absl::StrCat("session-", num_sessions_++); }

  // The texts of a conversation that nobody disturbs, made once. Answers have `max_tokens` tokens.
  static std::vector<std::string> Undisturbed(const std::vector<std::string>& questions,
                                              int max_tokens = 16) {
    std::vector<std::string>& texts = undisturbed_[{questions, max_tokens}];
    if (!texts.empty()) return texts;
    const std::string session = NewSession();
    for (const std::string& question : questions) {
      const ChatReply reply = client_->Chat(Turn(session, question, max_tokens));
      EXPECT_TRUE(reply.is_committed()) << reply.status << reply.receipt.not_persisted_reason();
      texts.push_back(reply.text);
    }
    return texts;
  }
  static gateway::v1::ChatRequest Turn(const std::string& session, const std::string& question,
                                       int max_tokens = 16) {
    gateway::v1::ChatRequest request = TurnOf(session, question, max_tokens);
    request.mutable_sampling()->set_min_tokens(max_tokens);
    return request;
  }

  // What the store has: each committed turn once, in their order.
  static void ExpectStored(const std::string& session, const std::vector<std::string>& questions,
                           const std::vector<std::string>& answers) {
    const auto stored = StoredSession(*up_, session);
    ASSERT_TRUE(stored.ok()) << stored.status();
    std::vector<std::string> expected, actual;
    for (size_t i = 0; i < answers.size(); ++i) {
      expected.push_back(questions[i]);
      expected.push_back(answers[i]);
    }
    for (const auto& message : stored->messages()) actual.push_back(message.content());
    EXPECT_EQ(actual, expected);
    EXPECT_EQ(stored->session().version(), answers.size());
  }
  static uint64_t VersionOf(const std::string& session) {
    const auto stored = StoredSession(*up_, session);
    return stored.ok() ? stored->session().version() : 0;
  }

  static std::unique_ptr<executor::v1::ExecutorService::Stub> Executor() {
    return executor::v1::ExecutorService::NewStub(
        rpc::ConnectTo(up_->ServiceOf("executor")->address()));
  }
  // From now on nothing is hot: sessions come from the store.
  static void ForgetHotMemory() {
    executor::v1::ForgetMemoryRequest request;
    request.set_tenant("default");
    executor::v1::ForgetMemoryResponse response;
    grpc::ClientContext context;
    context.set_wait_for_ready(true);
    const grpc::Status status = Executor()->ForgetMemory(&context, request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
  }
  static redis::Client RedisClient() { return redis::Client({.address = redis_->address()}); }
  static std::vector<std::string> KeysLike(const std::string& pattern) {
    redis::Client client = RedisClient();
    const absl::StatusOr<redis::Reply> reply = client.Run({"KEYS", pattern});
    std::vector<std::string> keys;
    if (!reply.ok()) return keys;
    for (const redis::Reply& key : reply->elements()) keys.push_back(key.text());
    return keys;
  }

  static inline std::unique_ptr<RedisServer> redis_;
  static inline std::unique_ptr<MnemeUp> up_;
  static inline std::unique_ptr<ChatClient> client_;
  static inline int num_sessions_ = 0;
  static inline std::map<std::pair<std::vector<std::string>, int>, std::vector<std::string>>
      undisturbed_;
};

}  // namespace mneme::testing
