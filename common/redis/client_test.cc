#include "common/redis/client.h"

#include <atomic>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/redis_server.h"
#include "tests/support/time_limit.h"

namespace mneme::redis {
namespace {

using ::mneme::testing::RedisServer;
using ::testing::HasSubstr;
using ::testing::Not;

class ClientTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    auto started = RedisServer::Start({.append_fsync = "no"});
    ASSERT_TRUE(started.ok()) << started.status();
    server_ = *std::move(started);
  }
  static void TearDownTestSuite() { server_.reset(); }

  void SetUp() override { ASSERT_TRUE(client_.Run({"FLUSHALL"}).ok()); }

  static inline std::unique_ptr<RedisServer> server_;
  Client client_{{.address = server_->address()}};
};

TEST_F(ClientTest, StringsOfAnyBytesComeBack) {
  std::string bytes;
  for (int i = 0; i < 1 << 20; ++i) bytes.push_back(static_cast<char>(i * 7));
  ASSERT_TRUE(client_.Run({"SET", std::string("k\0\r\n", 4), bytes}).ok());
  const auto reply = client_.Run({"GET", std::string("k\0\r\n", 4)});
  ASSERT_TRUE(reply.ok()) << reply.status();
  EXPECT_EQ(reply->text(), bytes);
  EXPECT_TRUE(client_.Run({"GET", "k"})->is_nil());
}

TEST_F(ClientTest, PipelineKeepsOrderAndErrors) {
  const auto replies =
      client_.RunPipeline({{"SET", "a", "1"}, {"LPUSH", "a", "x"}, {"INCR", "a"}, {"GET", "a"}});
  ASSERT_TRUE(replies.ok()) << replies.status();
  ASSERT_EQ(replies->size(), 4u);
  EXPECT_EQ((*replies)[0].text(), "OK");
  EXPECT_EQ((*replies)[1].status().code(), absl::StatusCode::kInternal);
  EXPECT_EQ(*(*replies)[2].Integer(), 2);
  EXPECT_EQ(*(*replies)[3].Integer(), 2);
}

TEST_F(ClientTest, EmptyPipelineSendsNothing) { EXPECT_TRUE(client_.RunPipeline({})->empty()); }

TEST_F(ClientTest, ScriptUnknownToTheServerIsSentWhole) {
  const Script script("return {KEYS[1], ARGV[1], 7, false}");
  EXPECT_EQ(script.sha1().size(), 40u);
  for (int i = 0; i < 2; ++i) {
    ASSERT_TRUE(client_.Run({"SCRIPT", "FLUSH"}).ok());
    for (int j = 0; j < 2; ++j) {
      const auto reply = client_.Eval(script, {"k"}, {std::string("\0v", 2)});
      ASSERT_TRUE(reply.ok()) << reply.status();
      ASSERT_EQ(reply->elements().size(), 4u);
      EXPECT_EQ(reply->elements()[0].text(), "k");
      EXPECT_EQ(reply->elements()[1].text(), std::string("\0v", 2));
      EXPECT_EQ(*reply->elements()[2].Integer(), 7);
      EXPECT_TRUE(reply->elements()[3].is_nil());
    }
  }
  EXPECT_EQ(client_.Run({"EXISTS", "k"})->Integer().value(), 0);
}

TEST_F(ClientTest, ManyThreadsShareFewConnections) {
  Client client({.address = server_->address(), .pool_size = 3});
  std::atomic<int> num_failed = 0;
  {
    std::vector<std::jthread> threads;
    for (int t = 0; t < 12; ++t) {
      threads.emplace_back([&client, &num_failed, t] {
        for (int i = 0; i < 200; ++i) {
          const std::string text = absl::StrCat(t, "-", i);
          const auto reply = client.Run({"ECHO", text});
          if (!reply.ok() || reply->text() != text) ++num_failed;
          if (!client.Run({"INCR", "n"}).ok()) ++num_failed;
        }
      });
    }
  }
  EXPECT_EQ(num_failed, 0);
  EXPECT_EQ(client.Run({"GET", "n"})->Integer().value(), 2400);
  const std::string clients = client.Run({"CLIENT", "LIST"})->text();
  EXPECT_LE(std::count(clients.begin(), clients.end(), '\n'), 4);  // and the fixture's client
}

TEST_F(ClientTest, DatabaseIsSelectedOnEveryConnection) {
  Client other({.address = server_->address(), .database = 3});
  ASSERT_TRUE(other.Run({"SET", "k", "v"}).ok());
  EXPECT_TRUE(client_.Run({"GET", "k"})->is_nil());
  EXPECT_EQ(other.Run({"GET", "k"})->text(), "v");
  Client wrong({.address = server_->address(), .database = 9999});
  const absl::Status status = wrong.Ping();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("redis.database"));
}

TEST_F(ClientTest, AclUserLogsInWithItsRightsOnly) {
  ASSERT_TRUE(client_.Run({"ACL", "SETUSER", "alice", "on", ">pw", "~a:*", "+get", "+set"}).ok());
  Client alice({.address = server_->address(), .username = "alice", .password = "pw"});
  EXPECT_TRUE(alice.Run({"SET", "a:1", "x"}).ok());
  const absl::Status status = alice.Run({"SET", "b:1", "x"}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("redis.username"));
}

TEST_F(ClientTest, OutOfMemoryIsResourceExhausted) {
  ASSERT_TRUE(client_.Run({"CONFIG", "SET", "maxmemory", "1"}).ok());
  EXPECT_EQ(client_.Run({"SET", "k", "v"}).status().code(), absl::StatusCode::kResourceExhausted);
  const Script write("return redis.call('SET', KEYS[1], 'v')");
  EXPECT_EQ(client_.Eval(write, {"k"}, {}).status().code(), absl::StatusCode::kResourceExhausted);
  ASSERT_TRUE(client_.Run({"CONFIG", "SET", "maxmemory", "0"}).ok());
  EXPECT_TRUE(client_.Run({"SET", "k", "v"}).ok());
}

TEST_F(ClientTest, CallersDeadlineEndsACallAndTheNextOneWorks) {
  const absl::Time start = absl::Now();
  const auto late = client_.Run({"BLPOP", "nothing", "0"}, start + absl::Milliseconds(60));
  EXPECT_EQ(late.status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_LT(absl::Now() - start, testing::TimeLimit(absl::Milliseconds(500)));
  // A reply that comes too late must not be taken for that of the next command.
  ASSERT_TRUE(client_.Run({"RPUSH", "nothing", "late"}).ok());
  EXPECT_EQ(client_.Run({"ECHO", "next"})->text(), "next");
}

TEST_F(ClientTest, FullPoolMakesACallerWaitItsTimeAndNoLonger) {
  Client client({.address = server_->address(), .pool_size = 1});
  std::jthread blocked([&client] {
    (void)client.Run({"BLPOP", "nothing", "0"}, absl::Now() + absl::Milliseconds(600));
  });
  while (client_.Run({"CLIENT", "LIST"})->text().find("cmd=blpop") == std::string::npos) {
  }
  const absl::Time start = absl::Now();
  EXPECT_EQ(client.Ping(start + absl::Milliseconds(50)).code(),
            absl::StatusCode::kDeadlineExceeded);
  EXPECT_LT(absl::Now() - start, testing::TimeLimit(absl::Milliseconds(400)));
  EXPECT_TRUE(client.Ping(absl::Now() + absl::Seconds(5)).ok());
}

TEST_F(ClientTest, ConnectionClosedByTheServerIsReplacedUnseen) {
  Client client({.address = server_->address()});
  ASSERT_TRUE(client.Ping().ok());
  ASSERT_TRUE(client_.Run({"CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"}).ok());
  EXPECT_TRUE(client.Ping().ok());
}

TEST(ClientLoginTest, WrongOrMissingPasswordNamesTheConfigurationField) {
  const auto server = RedisServer::Start({.append_fsync = "no", .password = "right"});
  ASSERT_TRUE(server.ok()) << server.status();
  EXPECT_TRUE(Client({.address = (*server)->address(), .password = "right"}).Ping().ok());
  for (const std::string password : {"", "wrong-secret"}) {
    Client client({.address = (*server)->address(), .password = password});
    const absl::Status status = client.Run({"SET", "k", "v"}).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("redis.password_file"));
    EXPECT_THAT(std::string(status.message()), Not(HasSubstr("wrong-secret")));
    EXPECT_EQ(client.Ping().code(), absl::StatusCode::kFailedPrecondition);
  }
}

TEST(ClientLoginTest, PasswordWhereNoneIsSetNamesTheConfigurationField) {
  const auto server = RedisServer::Start({.append_fsync = "no"});
  ASSERT_TRUE(server.ok()) << server.status();
  const absl::Status status = Client({.address = (*server)->address(), .password = "p"}).Ping();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("redis.password_file"));
}

TEST(ClientAddressTest, AddressWithoutPortIsRefused) {
  const absl::Status status = Client({.address = "localhost"}).Ping();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("redis.address"));
}

}  // namespace
}  // namespace mneme::redis
