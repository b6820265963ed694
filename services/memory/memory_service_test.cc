// The service through its real stub: bad requests, error details, metrics.
#include "services/memory/memory_service.h"

#include "common/clock/clock.h"
#include "common/rpc/client.h"
#include "common/rpc/grpc_status.h"
#include "common/rpc/server.h"
#include "common/status/annotate.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "services/memory/store_fixture.h"

namespace mneme::memory {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

class MemoryServiceTest : public ::testing::Test {
 protected:
  MemoryServiceTest() {
    auto started = rpc::Server::Start({}, {&service_});
    EXPECT_TRUE(started.ok()) << started.status();
    server_ = *std::move(started);
    stub_ = v1::MemoryService::NewStub(server_->InProcessChannel());
  }

  template <typename Request, typename Response>
  absl::StatusOr<Response> Call(grpc::Status (v1::MemoryService::StubInterface::*method)(
                                    grpc::ClientContext*, const Request&, Response*),
                                const Request& request) {
    grpc::ClientContext context;
    rpc::Prepare(trace::ContextFrom("", ""), Soon(), &context);
    Response response;
    const absl::Status status =
        rpc::FromGrpc((static_cast<v1::MemoryService::StubInterface*>(stub_.get())->*method)(
            &context, request, &response));
    if (!status.ok()) return status;
    return response;
  }

  absl::StatusOr<v1::CreateSessionResponse> Create(const v1::CreateSessionRequest& request) {
    return Call(&v1::MemoryService::StubInterface::CreateSession, request);
  }
  absl::StatusOr<v1::AcquireLeaseResponse> Acquire(const v1::AcquireLeaseRequest& request) {
    return Call(&v1::MemoryService::StubInterface::AcquireLease, request);
  }
  absl::StatusOr<v1::CommitTurnResponse> Commit(const v1::CommitTurnRequest& request) {
    return Call(&v1::MemoryService::StubInterface::CommitTurn, request);
  }

  // Expects INVALID_ARGUMENT about that field.
  template <typename Response>
  void ExpectInvalid(const absl::StatusOr<Response>& response, const std::string& field) {
    EXPECT_EQ(response.status().code(), absl::StatusCode::kInvalidArgument) << field;
    EXPECT_EQ(status::PayloadOf(response.status(), status::kFieldPayload), field);
  }

  clock::FakeClock clock_;
  metrics::Registry registry_;
  MemoryMetrics metrics_{registry_};
  InMemorySessionStore store_{clock_, 0};
  MemoryServiceImpl service_{store_, metrics_};
  std::unique_ptr<rpc::Server> server_;
  std::unique_ptr<v1::MemoryService::Stub> stub_;
};

TEST_F(MemoryServiceTest, SessionLivesFromCreationToDeletion) {
  ASSERT_TRUE(Create(CreateOf("s")).ok());
  const auto lease = Acquire(AcquireOf("s"));
  ASSERT_TRUE(lease.ok()) << lease.status();
  v1::RenewLeaseRequest renew;
  renew.set_tenant("t");
  renew.set_session_id("s");
  renew.set_lease_token(lease->lease_token());
  EXPECT_TRUE(Call(&v1::MemoryService::StubInterface::RenewLease, renew).ok());
  EXPECT_EQ(Commit(CommitOf("s", lease->lease_token(), 0, "hello"))->version(), 1u);
  v1::ReleaseLeaseRequest release;
  release.set_tenant("t");
  release.set_session_id("s");
  release.set_lease_token(lease->lease_token());
  EXPECT_TRUE(Call(&v1::MemoryService::StubInterface::ReleaseLease, release).ok());
  EXPECT_EQ(Call(&v1::MemoryService::StubInterface::GetSession, GetOf("s"))->messages_size(), 2);
  v1::ListSessionsRequest list;
  list.set_tenant("t");
  EXPECT_EQ(Call(&v1::MemoryService::StubInterface::ListSessions, list)->sessions_size(), 1);
  v1::DeleteSessionRequest remove;
  remove.set_tenant("t");
  remove.set_session_id("s");
  EXPECT_TRUE(Call(&v1::MemoryService::StubInterface::DeleteSession, remove).ok());
  EXPECT_TRUE(
      absl::IsNotFound(Call(&v1::MemoryService::StubInterface::GetSession, GetOf("s")).status()));
}

TEST_F(MemoryServiceTest, BadFieldsAreRefusedByName) {
  const std::string longest(128, 'x');
  EXPECT_TRUE(Create(CreateOf(longest)).ok());
  for (const std::string& id : {longest + "x", std::string("a/b"), std::string("a b"),
                                std::string("a\nb"), std::string("é"), std::string("a{b}")}) {
    ExpectInvalid(Create(CreateOf(id)), "session_id");
    ExpectInvalid(Create(CreateOf("s", id)), "tenant");
    ExpectInvalid(Acquire(AcquireOf(id)), "session_id");
    ExpectInvalid(Commit(CommitOf(id, 1, 0, "x")), "session_id");
    ExpectInvalid(Call(&v1::MemoryService::StubInterface::GetSession, GetOf("s", id)), "tenant");
  }
  ExpectInvalid(Create(CreateOf("s", "")), "tenant");
  v1::CreateSessionRequest create = CreateOf("s");
  create.set_ttl_seconds(-1);
  ExpectInvalid(Create(create), "ttl_seconds");
  create = CreateOf("s");
  create.clear_model();
  ExpectInvalid(Create(create), "model");
  create = CreateOf("s");
  create.set_title(std::string(1025, 'x'));
  ExpectInvalid(Create(create), "title");
  v1::AcquireLeaseRequest acquire = AcquireOf("s");
  for (const int64_t ttl_ms : {int64_t{-1}, int64_t{999}, int64_t{600'001}}) {
    acquire.set_ttl_ms(ttl_ms);
    ExpectInvalid(Acquire(acquire), "ttl_ms");
  }
  acquire = AcquireOf("s");
  acquire.set_request_id("a b");
  ExpectInvalid(Acquire(acquire), "request_id");
  v1::CommitTurnRequest commit = CommitOf("s", 0, 0, "x");
  ExpectInvalid(Commit(commit), "lease_token");
  commit.set_lease_token(1);
  commit.clear_turn();
  ExpectInvalid(Commit(commit), "turn");
  v1::ListSessionsRequest list;
  list.set_tenant("t");
  for (const int32_t page_size : {-1, 1001}) {
    list.set_page_size(page_size);
    ExpectInvalid(Call(&v1::MemoryService::StubInterface::ListSessions, list), "page_size");
  }
  list.set_page_size(1);
  list.set_page_token("mine");
  ExpectInvalid(Call(&v1::MemoryService::StubInterface::ListSessions, list), "page_token");
}

TEST_F(MemoryServiceTest, MadeUpIdIsNewEachTimeUnlessTheRequestIsTheSame) {
  v1::CreateSessionRequest request = CreateOf("");
  const std::string first = Create(request)->session().session_id();
  const std::string second = Create(request)->session().session_id();
  EXPECT_THAT(first, StartsWith("s-"));
  EXPECT_NE(first, second);
  request.set_request_id("r");
  const std::string third = Create(request)->session().session_id();
  EXPECT_EQ(Create(request)->session().session_id(), third);
  request.set_tenant("other");
  EXPECT_NE(Create(request)->session().session_id(), third);
}

TEST_F(MemoryServiceTest, LeaseWithoutATimeLastsThirtySeconds) {
  v1::AcquireLeaseRequest request = AcquireOf("s");
  request.clear_ttl_ms();
  ASSERT_TRUE(Acquire(request).ok());
  clock_.Advance(absl::Milliseconds(29'999));
  const absl::Status busy = Acquire(request).status();
  EXPECT_EQ(status::PayloadOf(busy, status::kReasonPayload), "SESSION_BUSY");
  EXPECT_EQ(status::PayloadOf(busy, status::kRetryAfterPayload), "1");
  clock_.Advance(absl::Milliseconds(1));
  EXPECT_TRUE(Acquire(request).ok());
}

TEST_F(MemoryServiceTest, CallsLeasesAndCommitsAreCounted) {
  const auto lease = Acquire(AcquireOf("s"));
  EXPECT_FALSE(Acquire(AcquireOf("s")).ok());
  EXPECT_TRUE(Commit(CommitOf("s", lease->lease_token(), 0, "x")).ok());
  EXPECT_FALSE(Commit(CommitOf("s", lease->lease_token(), 7, "y")).ok());
  const std::string text = registry_.Text();
  EXPECT_THAT(text, HasSubstr("mneme_memory_leases_total{outcome=\"granted\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("mneme_memory_leases_total{outcome=\"session_busy\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("mneme_memory_commits_total{outcome=\"committed\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("mneme_memory_commits_total{outcome=\"stale_version\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("code=\"FAILED_PRECONDITION\",method=\"AcquireLease\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("mneme_memory_call_seconds_count{method=\"CommitTurn\"} 2\n"));
}

}  // namespace
}  // namespace mneme::memory
