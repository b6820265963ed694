// What callers see while a real Redis is killed, stopped still and started again.
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <functional>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/redis/client.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/free_port.h"
#include "tests/support/redis_server.h"
#include "tests/support/time_limit.h"

namespace mneme::redis {
namespace {

using ::mneme::testing::FreePort;
using ::mneme::testing::RedisServer;
using ::testing::HasSubstr;

std::unique_ptr<RedisServer> StartServer() {
  auto server = RedisServer::Start({.append_fsync = "always"});
  EXPECT_TRUE(server.ok()) << server.status();
  return *std::move(server);
}

absl::Duration TimeOf(const std::function<void()>& call) {
  const absl::Time start = absl::Now();
  call();
  return absl::Now() - start;
}

// Pings until it works; returns how long that took.
absl::Duration TimeToRecovery(Client& client) {
  const absl::Time start = absl::Now();
  while (!client.Ping().ok()) {
    if (absl::Now() - start > absl::Seconds(10)) return absl::InfiniteDuration();
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  return absl::Now() - start;
}

TEST(ClientFaultTest, UnreachableServerFailsAtOnceAndNamesItsAddress) {
  const auto port = FreePort();
  ASSERT_TRUE(port.ok());
  Client client({.address = absl::StrCat("127.0.0.1:", *port)});
  for (int i = 0; i < 30; ++i) {
    absl::Status status;
    EXPECT_LT(TimeOf([&] { status = client.Ping(); }), testing::TimeLimit(absl::Milliseconds(200)));
    ASSERT_EQ(status.code(), absl::StatusCode::kUnavailable);
    ASSERT_THAT(std::string(status.message()), HasSubstr(client.address()));
    ASSERT_THAT(std::string(status.message()), HasSubstr("start it"));
  }
}

TEST(ClientFaultTest, KilledServerIsUnavailableAndFoundAgainAfterRestart) {
  const auto server = StartServer();
  Client client({.address = server->address()});
  ASSERT_TRUE(client.Run({"SET", "k", "v"}).ok());
  server->Kill();
  for (int i = 0; i < 20; ++i) {
    EXPECT_EQ(client.Run({"GET", "k"}).status().code(), absl::StatusCode::kUnavailable);
  }
  ASSERT_TRUE(server->Restart().ok());
  EXPECT_LT(TimeToRecovery(client), testing::TimeLimit(absl::Milliseconds(1500)));
  EXPECT_EQ(client.Run({"GET", "k"})->text(), "v");
}

TEST(ClientFaultTest, FirstCallAfterTheServerIsBackSucceeds) {
  const auto server = StartServer();
  Client client({.address = server->address()});
  ASSERT_TRUE(client.Run({"SET", "k", "v"}).ok());
  for (int round = 0; round < 3; ++round) {
    server->Kill();
    // It is found down many times in a row.
    for (int i = 0; i < 10; ++i) EXPECT_FALSE(client.Ping().ok());
    ASSERT_TRUE(server->Restart().ok());
    const auto reply = client.Run({"GET", "k"});
    ASSERT_TRUE(reply.ok()) << reply.status();
    EXPECT_EQ(reply->text(), "v");
  }
}

TEST(ClientFaultTest, RestartBetweenTwoCallsIsNotSeen) {
  const auto server = StartServer();
  Client client({.address = server->address()});
  ASSERT_TRUE(client.Run({"SET", "k", "v"}).ok());
  ASSERT_TRUE(server->Restart().ok());
  const auto reply = client.Run({"GET", "k"});
  ASSERT_TRUE(reply.ok()) << reply.status();
  EXPECT_EQ(reply->text(), "v");
}

TEST(ClientFaultTest, StoppedServerCostsEachCallerABoundedTimeOnce) {
  const auto server = StartServer();
  Client client({.address = server->address(),
                 .connect_timeout = absl::Milliseconds(200),
                 .command_timeout = absl::Milliseconds(400)});
  ASSERT_TRUE(client.Ping().ok());
  server->Pause();
  absl::Status status;
  const absl::Duration first = TimeOf([&] { status = client.Ping(); });
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  EXPECT_GE(first, absl::Milliseconds(350));
  EXPECT_LT(first, testing::TimeLimit(absl::Milliseconds(900)));
  // From now on only the probes wait, and those for connect_timeout.
  int num_slow = 0;
  const absl::Time end = absl::Now() + testing::TimeLimit(absl::Seconds(2));
  while (absl::Now() < end) {
    const absl::Duration time = TimeOf([&] { status = client.Ping(); });
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
    EXPECT_LT(time, testing::TimeLimit(absl::Milliseconds(500)));
    if (time > absl::Milliseconds(100)) ++num_slow;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  EXPECT_GE(num_slow, 1);
  EXPECT_LE(num_slow, 6);
  server->Resume();
  EXPECT_LT(TimeToRecovery(client), testing::TimeLimit(absl::Milliseconds(2000)));
}

TEST(ClientFaultTest, CallersInAHurryDoNotDeclareASlowServerDown) {
  const auto server = StartServer();
  Client client({.address = server->address()});
  ASSERT_TRUE(client.Ping().ok());
  server->Pause();
  for (int i = 0; i < 5; ++i) {
    EXPECT_EQ(client.Ping(absl::Now() + absl::Milliseconds(20)).code(),
              absl::StatusCode::kDeadlineExceeded);
  }
  server->Resume();
  EXPECT_TRUE(client.Ping().ok());
}

TEST(ClientFaultTest, ManyCallersOfAStoppedServerAllEndInTime) {
  const auto server = StartServer();
  Client client({.address = server->address(),
                 .pool_size = 2,
                 .connect_timeout = absl::Milliseconds(200),
                 .command_timeout = absl::Milliseconds(400)});
  server->Pause();
  const absl::Duration time = TimeOf([&] {
    std::vector<std::jthread> threads;
    for (int t = 0; t < 16; ++t) {
      threads.emplace_back(
          [&] { EXPECT_EQ(client.Ping().code(), absl::StatusCode::kUnavailable); });
    }
  });
  EXPECT_LT(time, testing::TimeLimit(absl::Milliseconds(1500)));
  server->Resume();
  EXPECT_LT(TimeToRecovery(client), testing::TimeLimit(absl::Milliseconds(2000)));
}

TEST(ClientFaultTest, ServerThatIsNoRedisIsUnavailable) {
  const int listener = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  ASSERT_EQ(bind(listener, reinterpret_cast<sockaddr*>(&address), size), 0);
  ASSERT_EQ(getsockname(listener, reinterpret_cast<sockaddr*>(&address), &size), 0);
  ASSERT_EQ(listen(listener, 1), 0);
  std::jthread web_server([listener] {
    const int connection = accept(listener, nullptr, nullptr);
    const char answer[] = "HTTP/1.1 400 Bad Request\r\n\r\n";
    EXPECT_GT(send(connection, answer, sizeof(answer), MSG_NOSIGNAL), 0);
    close(connection);
  });
  Client client({.address = absl::StrCat("127.0.0.1:", ntohs(address.sin_port))});
  const absl::Status status = client.Ping();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr("no Redis"));
  web_server.join();
  close(listener);
}

}  // namespace
}  // namespace mneme::redis
