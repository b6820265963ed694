// Against a real redis-server that speaks TLS only, with certificates made here.
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/redis/client.h"
#include "common/redis/socket.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/certificates.h"
#include "tests/support/redis_server.h"
#include "tests/support/time_limit.h"

namespace mneme::redis {
namespace {

using ::mneme::testing::CertificateAuthority;
using ::mneme::testing::CertificateFiles;
using ::mneme::testing::RedisServer;
using ::testing::HasSubstr;

constexpr char kNames[] = "DNS:redis.internal,DNS:localhost,IP:127.0.0.1";

std::unique_ptr<RedisServer> StartServer(CertificateAuthority& authority, absl::string_view names,
                                         absl::Duration valid_for = absl::Hours(1),
                                         bool wants_client_certificate = false,
                                         std::vector<std::string> config_lines = {}) {
  const CertificateFiles files = authority.Issue(names, valid_for);
  auto server = RedisServer::Start({.append_fsync = "no",
                                    .tls = {{.ca_file = authority.certificate_file(),
                                             .certificate = files.certificate,
                                             .key = files.key,
                                             .wants_client_certificate = wants_client_certificate}},
                                    .config_lines = std::move(config_lines)});
  EXPECT_TRUE(server.ok()) << server.status();
  return *std::move(server);
}

class TlsTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    authority_ = std::make_unique<CertificateAuthority>();
    server_ = StartServer(*authority_, kNames);
  }
  static void TearDownTestSuite() {
    server_.reset();
    authority_.reset();
  }

  static TlsOptions Trusting() {
    return {.enabled = true, .ca_file = authority_->certificate_file()};
  }
  static absl::Status PingOf(const std::string& address, TlsOptions tls) {
    return Client({.address = address, .tls = std::move(tls)}).Ping();
  }
  static void ExpectRefused(const absl::Status& status, const char* words) {
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(words));
  }

  static inline std::unique_ptr<CertificateAuthority> authority_;
  static inline std::unique_ptr<RedisServer> server_;
};

TEST_F(TlsTest, EverythingWorksAsWithoutIt) {
  Client client({.address = server_->address(), .pool_size = 2, .tls = Trusting()});
  std::string bytes;
  for (int i = 0; i < 3'000'001; ++i) bytes.push_back(static_cast<char>(i * 7));
  const auto replies = client.RunPipeline({{"SET", "small", "1"},
                                           {"SET", "large", Argument::Borrow(bytes)},
                                           {"INCR", "small"},
                                           {"GET", "large"},
                                           {"GET", "small"}});
  ASSERT_TRUE(replies.ok()) << replies.status();
  EXPECT_EQ((*replies)[3].text(), bytes);
  EXPECT_EQ((*replies)[4].text(), "2");
  std::vector<std::jthread> threads;
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&client, t] {
      for (int i = 0; i < 50; ++i) {
        const std::string text = absl::StrCat(t, "-", i);
        EXPECT_EQ(client.Run({"ECHO", text})->text(), text);
      }
    });
  }
  threads.clear();
  // The connections were kept: a session ticket is not mistaken for a stray reply.
  const std::string clients = client.Run({"CLIENT", "LIST"})->text();
  EXPECT_LE(std::count(clients.begin(), clients.end(), '\n'), 2);
  const auto made = client.Run({"INFO", "stats"});
  EXPECT_THAT(made->text(), ::testing::ContainsRegex("total_connections_received:[12]\r"));
}

TEST_F(TlsTest, CallsEndByTheirDeadlineAndTheNextOneWorks) {
  Client client({.address = server_->address(), .tls = Trusting()});
  const absl::Time start = absl::Now();
  EXPECT_EQ(client.Run({"BLPOP", "none", "0"}, start + absl::Milliseconds(60)).status().code(),
            absl::StatusCode::kDeadlineExceeded);
  EXPECT_LT(absl::Now() - start, testing::TimeLimit(absl::Milliseconds(500)));
  EXPECT_EQ(client.Run({"ECHO", "next"})->text(), "next");
}

TEST_F(TlsTest, StoppedServerEndsTheHandshakeAndAWriteInTime) {
  const auto server = StartServer(*authority_, kNames);
  Client client({.address = server->address(),
                 .connect_timeout = absl::Milliseconds(200),
                 .command_timeout = absl::Milliseconds(400),
                 .tls = Trusting()});
  ASSERT_TRUE(client.Ping().ok());
  server->Pause();
  // More than the socket's buffers take.
  const std::string bytes(64 << 20, 'x');
  absl::Time start = absl::Now();
  EXPECT_EQ(client.Run({"SET", "k", Argument::Borrow(bytes)}).status().code(),
            absl::StatusCode::kUnavailable);
  EXPECT_LT(absl::Now() - start, testing::TimeLimit(absl::Milliseconds(1200)));
  Client other({.address = server->address(),
                .connect_timeout = absl::Milliseconds(200),
                .tls = Trusting()});
  start = absl::Now();
  EXPECT_EQ(other.Ping().code(), absl::StatusCode::kUnavailable);
  EXPECT_LT(absl::Now() - start, testing::TimeLimit(absl::Milliseconds(800)));
  server->Resume();
}

TEST_F(TlsTest, ServerThatGoesAwayIsUnavailableAndFoundAgain) {
  const auto server = StartServer(*authority_, kNames);
  Client client({.address = server->address(), .tls = Trusting()});
  ASSERT_TRUE(client.Ping().ok());
  server->Kill();
  EXPECT_EQ(client.Ping().code(), absl::StatusCode::kUnavailable);
  ASSERT_TRUE(server->Restart().ok());
  const absl::Time start = absl::Now();
  while (!client.Ping().ok() && absl::Now() - start < absl::Seconds(5)) {
    absl::SleepFor(absl::Milliseconds(5));
  }
  EXPECT_TRUE(client.Ping().ok());
}

TEST_F(TlsTest, UnknownAuthorityIsRefusedWithTheFieldToSet) {
  CertificateAuthority other;
  ExpectRefused(PingOf(server_->address(), {.enabled = true, .ca_file = other.certificate_file()}),
                "redis.tls_ca_file");
  ExpectRefused(PingOf(server_->address(), {.enabled = true}), "what the system trusts");
}

TEST_F(TlsTest, CertificateForAnotherHostIsRefusedUnlessItsNameIsGiven) {
  const auto server = StartServer(*authority_, "DNS:redis.internal,IP:10.1.2.3");
  ExpectRefused(PingOf(server->address(), Trusting()), "another host than 127.0.0.1");
  TlsOptions tls = Trusting();
  tls.server_name = "redis.internal";
  EXPECT_TRUE(PingOf(server->address(), tls).ok());
  tls.server_name = "10.1.2.3";
  EXPECT_TRUE(PingOf(server->address(), tls).ok());
  for (const char* name : {"redis.external", "internal", "10.1.2.4"}) {
    tls.server_name = name;
    ExpectRefused(PingOf(server->address(), tls), "redis.tls_server_name");
  }
}

TEST_F(TlsTest, NameOfTheAddressIsVerified) {
  EXPECT_TRUE(PingOf(absl::StrCat("localhost:", server_->port()), Trusting()).ok());
}

TEST_F(TlsTest, ExpiredCertificateIsRefused) {
  const auto server = StartServer(*authority_, kNames, -absl::Hours(1));
  ExpectRefused(PingOf(server->address(), Trusting()), "expired");
}

TEST_F(TlsTest, ClientCertificateIsSentWhereOneIsWanted) {
  const auto server = StartServer(*authority_, kNames, absl::Hours(1), true);
  const CertificateFiles own = authority_->Issue("DNS:client");
  TlsOptions tls = Trusting();
  tls.certificate = own.certificate;
  tls.key = own.key;
  EXPECT_TRUE(PingOf(server->address(), tls).ok());
  for (int i = 0; i < 20; ++i) {  // the alert and the end of the connection race
    ExpectRefused(PingOf(server->address(), Trusting()), "set redis.tls_certificate");
  }
  CertificateAuthority other;
  const CertificateFiles foreign = other.Issue("DNS:client");
  tls.certificate = foreign.certificate;
  tls.key = foreign.key;
  for (int i = 0; i < 20; ++i) {
    ExpectRefused(PingOf(server->address(), tls), "redis.tls_certificate");
  }
}

TEST_F(TlsTest, ClientCertificateIsSentByTls12Too) {
  const auto server =
      StartServer(*authority_, kNames, absl::Hours(1), true, {"tls-protocols TLSv1.2"});
  const CertificateFiles own = authority_->Issue("DNS:client");
  TlsOptions tls = Trusting();
  ExpectRefused(PingOf(server->address(), tls), "set redis.tls_certificate");
  tls.certificate = own.certificate;
  tls.key = own.key;
  EXPECT_TRUE(PingOf(server->address(), tls).ok());
}

TEST_F(TlsTest, TlsOlderThan12IsRefused) {
  const auto server = StartServer(*authority_, kNames, absl::Hours(1), false,
                                  {"tls-protocols TLSv1.1", "tls-ciphers DEFAULT:@SECLEVEL=0"});
  ExpectRefused(PingOf(server->address(), Trusting()), "TLS of version 1.2");
}

TEST_F(TlsTest, FilesThatCannotBeUsedAreNamed) {
  TlsOptions tls = Trusting();
  tls.ca_file = "/nonexistent.pem";
  ExpectRefused(PingOf(server_->address(), tls), "redis.tls_ca_file cannot be used");
  tls = Trusting();
  const CertificateFiles own = authority_->Issue("DNS:client");
  const CertificateFiles other = authority_->Issue("DNS:client");
  tls.certificate = own.certificate;
  ExpectRefused(PingOf(server_->address(), tls), "go together");
  tls.key = other.key;
  ExpectRefused(PingOf(server_->address(), tls), "redis.tls_key cannot be used");
}

TEST_F(TlsTest, PlainClientOfATlsServerAndTheOtherWayAreUnavailableInTime) {
  const absl::Status plain = PingOf(server_->address(), {});
  EXPECT_EQ(plain.code(), absl::StatusCode::kUnavailable) << plain;
  EXPECT_THAT(std::string(plain.message()), HasSubstr("redis.tls"));
  const auto server = RedisServer::Start({.append_fsync = "no"});
  ASSERT_TRUE(server.ok()) << server.status();
  const absl::Time start = absl::Now();
  const absl::Status encrypted = PingOf((*server)->address(), Trusting());
  EXPECT_FALSE(encrypted.ok());
  EXPECT_THAT(std::string(encrypted.message()), HasSubstr("redis.tls"));
  EXPECT_LT(absl::Now() - start, testing::TimeLimit(absl::Milliseconds(1500)));
}

}  // namespace
}  // namespace mneme::redis
