// Keys, quotas, overload, shutdown and TLS.
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>

#include <thread>

#include "common/auth/api_keys.h"
#include "common/config/config.h"
#include "services/gateway/gateway_fixture.h"
#include "tests/support/time_limit.h"

namespace mneme::gateway {
namespace {

using ::testing::HasSubstr;

class LimitsTest : public GatewayTest {
 protected:
  // Writes a key file with one key of a tenant.
  std::string AddKey(const std::string& id, const std::string& tenant,
                     auth::KeyLimits limits = {}) {
    auth::NewKey made = auth::GenerateKey(id, tenant).value();
    made.entry.limits = limits;
    entries_.push_back(made.entry);
    const std::string path = absl::StrCat(::testing::TempDir(), "gateway_keys.", getpid(), ".json");
    EXPECT_TRUE(auth::SaveKeys(path, entries_).ok());
    config_.set_keys_file(path);
    return made.key;
  }
  static httplib::Headers Bearer(const std::string& key) {
    return {{"Authorization", "Bearer " + key}};
  }
  std::vector<auth::KeyEntry> entries_;
};

TEST_F(LimitsTest, KeyNamesTheTenantAndNoOtherSeesItsSessions) {
  const std::string one = AddKey("one", "acme");
  const std::string two = AddKey("two", "other");
  Start();
  ErrorOf(Post("/v1/chat/completions", Chat("hi")), 401, "authentication_error");
  const auto wrong = Post("/v1/chat/completions", Chat("hi"), Bearer(one + "0"));
  ErrorOf(wrong, 401, "authentication_error");
  EXPECT_EQ(Parse(wrong)["error"]["code"], "invalid_api_key");
  EXPECT_EQ(wrong->get_header_value("WWW-Authenticate"), "Bearer");
  ASSERT_EQ(Post("/v1/chat/completions", Chat("hi", {{"session_id", "s"}}), Bearer(one))->status,
            200);
  EXPECT_EQ(executor_->requests()[0].tenant(), "acme");
  EXPECT_EQ(Http().Get("/v1/sessions/s", Bearer(one))->status, 200);
  EXPECT_EQ(Http().Get("/v1/sessions/s", Bearer(two))->status, 404);
  EXPECT_EQ(GrpcChat(GrpcRequest("hi")).status.error_code(), grpc::StatusCode::UNAUTHENTICATED);
  EXPECT_EQ(Http().Get("/healthz")->status, 200);
}

TEST_F(LimitsTest, ConcurrencyOfATenantIsBounded) {
  const std::string key = AddKey("one", "acme", {.max_concurrent = 1});
  const std::string free = AddKey("two", "other");
  executor_->token_ms = 40;
  Start();
  std::jthread slow([&] { Post("/v1/chat/completions", Chat("hi"), Bearer(key)); });
  ASSERT_TRUE(Eventually([&] { return executor_->running == 1; }));
  const auto refused = Post("/v1/chat/completions", Chat("hi"), Bearer(key));
  EXPECT_THAT(ErrorOf(refused, 429, "rate_limit_error"), HasSubstr("concurrent"));
  EXPECT_EQ(refused->get_header_value("Retry-After"), "1");
  EXPECT_EQ(Post("/v1/chat/completions", Chat("hi"), Bearer(free))->status, 200);
  slow.join();
  EXPECT_EQ(Post("/v1/chat/completions", Chat("hi"), Bearer(key))->status, 200);
}

TEST_F(LimitsTest, TokenRateOfATenantIsBoundedAndNamedOverGrpc) {
  config_.mutable_default_limits()->set_tokens_per_minute(40);
  Start();
  // Each chat takes 19 + 13 tokens: the second still begins, the third does not.
  EXPECT_EQ(Post("/v1/chat/completions", Chat("hi"))->status, 200);
  EXPECT_EQ(Post("/v1/chat/completions", Chat("hi"))->status, 200);
  const auto refused = Post("/v1/chat/completions", Chat("hi"));
  EXPECT_THAT(ErrorOf(refused, 429, "rate_limit_error"), HasSubstr("per minute"));
  const int wait = std::stoi(refused->get_header_value("Retry-After"));
  EXPECT_GE(wait, 30);
  EXPECT_LE(wait, 40);
  const GrpcAnswer answer = GrpcChat(GrpcRequest("hi"));
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  const absl::Status status = rpc::FromGrpc(answer.status);
  EXPECT_EQ(status::PayloadOf(status, status::kQuotaPayload), "tokens_per_minute");
  EXPECT_NE(status::PayloadOf(status, status::kRetryAfterPayload), "");
  EXPECT_THAT(registry_.Text(),
              HasSubstr("mneme_gateway_rejections_total{reason=\"tokens_per_minute\"} 2"));
}

TEST_F(LimitsTest, OverloadIsRefusedQuicklyWhileHealthIsAnswered) {
  config_.set_max_streams(2);
  executor_->token_ms = 40;
  Start();
  std::vector<std::jthread> slow;
  for (int i = 0; i < 2; ++i) {
    slow.emplace_back([&] { Post("/v1/chat/completions", Chat("hi", {{"stream", true}})); });
  }
  ASSERT_TRUE(Eventually([&] { return executor_->running == 2; }));
  for (int i = 0; i < 20; ++i) {
    const absl::Time begun = absl::Now();
    const auto refused = Post("/v1/chat/completions", Chat("hi"));
    ErrorOf(refused, 429, "rate_limit_error");
    EXPECT_EQ(refused->get_header_value("Retry-After"), "1");
    EXPECT_LT(absl::Now() - begun, testing::TimeLimit(absl::Milliseconds(500)));
  }
  EXPECT_EQ(Http().Get("/healthz")->status, 200);
}

TEST_F(LimitsTest, ConnectionsBeyondTheThreadsAreToldAtOnce) {
  config_.set_max_streams(1);  // and 64 spare connections
  Start();
  std::vector<std::unique_ptr<httplib::Client>> idle;
  int refused = 0;
  for (int i = 0; i < 80; ++i) {
    const std::string& address = gateway_->http_address();
    idle.push_back(std::make_unique<httplib::Client>(
        "127.0.0.1", std::stoi(address.substr(address.rfind(':') + 1))));
    idle.back()->set_keep_alive(true);
    const auto result = idle.back()->Get("/healthz");
    ASSERT_TRUE(result) << i;
    refused += result->status == 503;
  }
  // Crowded connections are not kept, so that everybody gets an answer.
  EXPECT_EQ(refused, 0);
  // Connections that hold a thread without asking anything: the next one is told.
  std::vector<int> holders;
  const std::string& address = gateway_->http_address();
  sockaddr_in server{};
  server.sin_family = AF_INET;
  server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  server.sin_port = htons(std::stoi(address.substr(address.rfind(':') + 1)));
  idle.clear();
  httplib::Result told(nullptr, httplib::Error::Unknown);
  // Some of the threads may still be at the connections from before.
  ASSERT_TRUE(Eventually([&] {
    holders.push_back(socket(AF_INET, SOCK_STREAM, 0));
    EXPECT_EQ(connect(holders.back(), reinterpret_cast<sockaddr*>(&server), sizeof(server)), 0);
    told = Http().Get("/healthz");
    return told && told->status == 503;
  }));
  EXPECT_EQ(told->get_header_value("Retry-After"), "1");
  EXPECT_THAT(told->body, HasSubstr("overloaded"));
  for (const int fd : holders) close(fd);
  EXPECT_TRUE(Eventually([&] {
    const auto result = Http().Get("/healthz");
    return result && result->status == 200;
  }));
}

TEST_F(LimitsTest, DrainLetsStreamsFinishAndRefusesNewWork) {
  executor_->token_ms = 40;
  Start();
  std::string body;
  std::jthread client([&] {
    body = Post("/v1/chat/completions", Chat("hi", {{"stream", true}}))->body;
  });
  ASSERT_TRUE(Eventually([&] { return executor_->running == 1; }));
  std::jthread shutdown([&] { gateway_->Shutdown(absl::Seconds(10)); });
  absl::SleepFor(absl::Milliseconds(50));
  const auto refused = Post("/v1/chat/completions", Chat("hi"));
  EXPECT_THAT(ErrorOf(refused, 503, "server_error"), HasSubstr("shutting down"));
  client.join();
  EXPECT_EQ(TextOf(Events(body)), "Hello, world");
  shutdown.join();
  EXPECT_FALSE(Http().Get("/healthz"));
}

TEST_F(LimitsTest, StreamsThatOutlastTheGraceAreEndedWithAnError) {
  executor_->token_ms = 20;
  Start();
  std::string body;
  std::jthread client([&] {
    body = Post("/v1/chat/completions", Chat("hi", {{"stream", true}, {"ignore_eos", true}}))->body;
  });
  ASSERT_TRUE(Eventually([&] { return executor_->running == 1; }));
  gateway_->Shutdown(absl::Milliseconds(100));
  client.join();
  EXPECT_THAT(Events(body).back()["error"]["message"].get<std::string>(),
              HasSubstr("shutting down"));
  EXPECT_TRUE(Eventually([&] { return executor_->cancelled == 1; }));
}

TEST_F(LimitsTest, RequestOverItsTimeIsEnded) {
  config_.set_request_timeout_ms(300);
  executor_->token_ms = 20;
  Start();
  ErrorOf(Post("/v1/chat/completions", Chat("hi", {{"ignore_eos", true}})), 504, "timeout_error");
  EXPECT_TRUE(Eventually([&] { return executor_->cancelled == 1; }));
}

// Makes a key and a certificate for 127.0.0.1, signed by itself.
void WriteCertificate(const std::string& certificate_path, const std::string& key_path) {
  EVP_PKEY* key = EVP_EC_gen("P-256");
  X509* certificate = X509_new();
  X509_set_version(certificate, 2);
  ASN1_INTEGER_set(X509_get_serialNumber(certificate), 1);
  X509_gmtime_adj(X509_getm_notBefore(certificate), -60);
  X509_gmtime_adj(X509_getm_notAfter(certificate), 3600);
  X509_set_pubkey(certificate, key);
  X509_NAME* name = X509_get_subject_name(certificate);
  X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_ASC,
                             reinterpret_cast<const unsigned char*>("localhost"), -1, -1, 0);
  X509_set_issuer_name(certificate, name);
  X509_sign(certificate, key, EVP_sha256());
  FILE* file = fopen(certificate_path.c_str(), "w");
  PEM_write_X509(file, certificate);
  fclose(file);
  file = fopen(key_path.c_str(), "w");
  PEM_write_PrivateKey(file, key, nullptr, nullptr, 0, nullptr, nullptr);
  fclose(file);
  X509_free(certificate);
  EVP_PKEY_free(key);
}

TEST_F(LimitsTest, BothFrontsSpeakTls) {
  const std::string base = absl::StrCat(::testing::TempDir(), "gateway_tls.", getpid());
  WriteCertificate(base + ".crt", base + ".key");
  config_.set_tls_certificate(base + ".crt");
  config_.set_tls_key(base + ".key");
  Start();
  const std::string& address = gateway_->http_address();
  httplib::SSLClient client("127.0.0.1", std::stoi(address.substr(address.rfind(':') + 1)));
  client.enable_server_certificate_verification(false);
  const auto streamed =
      client.Post("/v1/chat/completions", Chat("hi", {{"stream", true}}), "application/json");
  ASSERT_TRUE(streamed) << to_string(streamed.error());
  EXPECT_EQ(TextOf(Events(streamed->body)), "Hello, world");
  // Plain text to the TLS port is no request.
  EXPECT_FALSE(Http().Get("/healthz"));
  grpc::SslCredentialsOptions ssl;
  ssl.pem_root_certs = config::ReadFile(base + ".crt").value();
  grpc::ChannelArguments arguments;
  arguments.SetSslTargetNameOverride("localhost");
  const auto channel = grpc::CreateCustomChannel(gateway_->grpc_server().address(),
                                                 grpc::SslCredentials(ssl), arguments);
  const auto models = v1::ModelService::NewStub(channel);
  grpc::ClientContext context;
  v1::ListModelsResponse list;
  const grpc::Status status = models->ListModels(&context, {}, &list);
  EXPECT_TRUE(status.ok()) << status.error_message();
  unlink((base + ".crt").c_str());
  unlink((base + ".key").c_str());
}

}  // namespace
}  // namespace mneme::gateway
