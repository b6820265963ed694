// The service through its real stub: bad requests, error details, metrics.
#include "services/memory/memory_service.h"

#include "absl/strings/str_cat.h"
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

  absl::StatusOr<v1::StageSnapshotResponse> Send(
      const std::vector<v1::StageSnapshotRequest>& parts) {
    grpc::ClientContext context;
    rpc::Prepare(trace::ContextFrom("", ""), Soon(), &context);
    v1::StageSnapshotResponse response;
    const auto writer = stub_->StageSnapshot(&context, &response);
    for (const v1::StageSnapshotRequest& part : parts) {
      if (!writer->Write(part)) break;
    }
    writer->WritesDone();
    const absl::Status status = rpc::FromGrpc(writer->Finish());
    if (!status.ok()) return status;
    return response;
  }

  absl::StatusOr<v1::StageSnapshotResponse> Stage(const std::string& session_id,
                                                  uint64_t lease_token,
                                                  const std::vector<std::string>& payloads) {
    std::vector<v1::StageSnapshotRequest> parts(1);
    parts[0].mutable_header()->set_tenant("t");
    parts[0].mutable_header()->set_session_id(session_id);
    parts[0].mutable_header()->set_lease_token(lease_token);
    snapshot::v1::Manifest manifest;
    manifest.set_format_version(1);
    manifest.set_num_tokens(10);
    for (const std::string& payload : payloads) {
      v1::ChunkPayload& chunk = *parts.emplace_back().mutable_chunk();
      chunk = ChunkOf(payload, 10 * parts.size());
      *manifest.add_chunks() = chunk.chunk();
    }
    *parts.emplace_back().mutable_manifest() = manifest;
    return Send(parts);
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
  InMemorySessionStore store_{clock_, {}};
  MemoryServiceImpl service_{store_, MemoryPlans({}), metrics_};
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

TEST_F(MemoryServiceTest, SnapshotGoesThroughTheStubAndBack) {
  const auto lease = Acquire(AcquireOf("s"));
  ASSERT_TRUE(lease.ok()) << lease.status();
  const auto staged = Stage("s", lease->lease_token(), {PayloadOf("a"), PayloadOf("b", 1 << 20)});
  ASSERT_TRUE(staged.ok()) << staged.status();
  EXPECT_EQ(staged->bytes_stored(), 1000 + (1 << 20));
  v1::CommitTurnRequest commit = CommitOf("s", lease->lease_token(), 0, "x");
  commit.set_snapshot_id(staged->snapshot_id());
  ASSERT_EQ(Commit(commit)->snapshot_lost_reason(), "");
  v1::FetchSnapshotRequest request;
  request.set_tenant("t");
  request.set_session_id("s");
  grpc::ClientContext context;
  rpc::Prepare(trace::ContextFrom("", ""), Soon(), &context);
  const auto reader = stub_->FetchSnapshot(&context, request);
  std::vector<v1::FetchSnapshotResponse> parts;
  for (v1::FetchSnapshotResponse part; reader->Read(&part);) parts.push_back(part);
  ASSERT_TRUE(reader->Finish().ok());
  ASSERT_EQ(parts.size(), 3u);
  EXPECT_EQ(parts[0].found().version(), 1u);
  EXPECT_EQ(parts[1].chunk().payload(), PayloadOf("a"));
  EXPECT_EQ(parts[1].chunk().tier(), "redis");
  EXPECT_EQ(parts[2].chunk().payload(), PayloadOf("b", 1 << 20));
  const std::string text = registry_.Text();
  EXPECT_THAT(text, HasSubstr(absl::StrCat("mneme_memory_staged_bytes_total ", 1000 + (1 << 20))));
  EXPECT_THAT(text, HasSubstr(absl::StrCat("mneme_memory_fetched_bytes_total ", 1000 + (1 << 20))));
}

TEST_F(MemoryServiceTest, CompactionGoesThroughTheStubAndIsCounted) {
  const auto lease = Acquire(AcquireOf("s"));
  std::vector<v1::StageSnapshotRequest> parts(3);
  parts[0].mutable_header()->set_tenant("t");
  parts[0].mutable_header()->set_session_id("s");
  parts[0].mutable_header()->set_lease_token(lease->lease_token());
  // Ten entries of one head of 8 numbers.
  constexpr size_t kBytes = size_t{10} * 2 * 8 * 4;
  v1::ChunkPayload& chunk = *parts[1].mutable_chunk();
  chunk = ChunkOf(PayloadOf("a", kBytes), 0);
  chunk.mutable_chunk()->set_encoding(snapshot::v1::ENCODING_FLOAT32);
  snapshot::v1::Manifest& manifest = *parts[2].mutable_manifest();
  manifest.set_format_version(1);
  manifest.mutable_lineage()->set_policy("full");
  manifest.mutable_shape()->set_num_layers(1);
  manifest.mutable_shape()->set_num_kv_heads(1);
  manifest.mutable_shape()->set_head_size(8);
  manifest.set_num_tokens(10);
  manifest.add_held()->add_lengths(0);
  manifest.mutable_held(0)->add_lengths(10);
  *manifest.add_chunks() = chunk.chunk();
  const auto staged = Send(parts);
  ASSERT_TRUE(staged.ok()) << staged.status();
  v1::CommitTurnRequest commit = CommitOf("s", lease->lease_token(), 0, "one");
  commit.set_snapshot_id(staged->snapshot_id());
  commit.set_release(true);
  ASSERT_TRUE(Commit(commit).ok());

  v1::CompactSessionRequest request;
  request.set_tenant("t");
  request.set_session_id("s");
  request.set_encoding(snapshot::v1::ENCODING_INT8);
  const auto compacted = Call(&v1::MemoryService::StubInterface::CompactSession, request);
  ASSERT_TRUE(compacted.ok()) << compacted.status();
  EXPECT_EQ(compacted->kv_bytes_before(), static_cast<int64_t>(kBytes));
  EXPECT_EQ(compacted->kv_bytes_after(), 10 * 2 * (8 + 4));
  EXPECT_EQ(compacted->session().version(), 1u);
  EXPECT_THAT(registry_.Text(), HasSubstr("mneme_memory_compacted_bytes_total 400\n"));
}

TEST_F(MemoryServiceTest, StagingThatIsNotAsItMustBeIsRefused) {
  const uint64_t token = Acquire(AcquireOf("s"))->lease_token();
  v1::StageSnapshotRequest header;
  header.mutable_header()->set_tenant("t");
  header.mutable_header()->set_session_id("s");
  header.mutable_header()->set_lease_token(token);
  v1::StageSnapshotRequest chunk;
  *chunk.mutable_chunk() = ChunkOf(PayloadOf("a"), 0);
  v1::StageSnapshotRequest bad = header;
  bad.mutable_header()->set_session_id("a/b");
  EXPECT_EQ(Send({chunk}).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Send({}).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Send({bad}).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Send({header, header}).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Send({header, chunk}).status().code(), absl::StatusCode::kCancelled);
  bad = header;
  bad.mutable_header()->set_lease_token(token + 1);
  EXPECT_EQ(status::PayloadOf(Send({bad}).status(), status::kReasonPayload), "LEASE_LOST");
}

TEST_F(MemoryServiceTest, SessionGoesThroughTheStubAsAFileAndBack) {
  const auto lease = Acquire(AcquireOf("s"));
  const auto staged = Stage("s", lease->lease_token(), {PayloadOf("a", 900'000)});
  v1::CommitTurnRequest commit = CommitOf("s", lease->lease_token(), 0, "hello");
  commit.set_snapshot_id(staged->snapshot_id());
  ASSERT_TRUE(Commit(commit).ok());
  v1::ExportSessionRequest request;
  request.set_tenant("t");
  request.set_session_id("s");
  grpc::ClientContext context;
  rpc::Prepare(trace::ContextFrom("", ""), Soon(), &context);
  const auto reader = stub_->ExportSession(&context, request);
  std::string file;
  for (v1::ExportSessionResponse part; reader->Read(&part);) file += part.piece();
  ASSERT_TRUE(reader->Finish().ok());
  EXPECT_GT(file.size(), 900'000u);
  for (const bool is_damaged : {true, false}) {
    if (is_damaged) file[5000] ^= 1;
    grpc::ClientContext import_context;
    rpc::Prepare(trace::ContextFrom("", ""), Soon(), &import_context);
    v1::ImportSessionResponse response;
    const auto writer = stub_->ImportSession(&import_context, &response);
    v1::ImportSessionRequest part;
    part.mutable_header()->set_tenant("t");
    part.mutable_header()->set_session_id("copy");
    writer->Write(part);
    for (size_t at = 0; at < file.size(); at += 300'000) {
      part.set_piece(file.substr(at, 300'000));
      if (!writer->Write(part)) break;
    }
    writer->WritesDone();
    const absl::Status status = rpc::FromGrpc(writer->Finish());
    if (is_damaged) {
      EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;
      file[5000] ^= 1;
    } else {
      ASSERT_TRUE(status.ok()) << status;
      EXPECT_EQ(response.session().session_id(), "copy");
    }
  }
  EXPECT_EQ(Call(&v1::MemoryService::StubInterface::GetSession, GetOf("copy"))->messages_size(), 2);
}

TEST_F(MemoryServiceTest, PlanComesFromTheRequestElseTheSessionElseTheDefaults) {
  v1::PlanDefault other;
  other.set_tenant("t2");
  other.mutable_policy()->mutable_full();
  v1::PlanDefault fits;
  fits.set_model("m");
  fits.mutable_policy()->mutable_window()->set_recent(10);
  fits.set_encoding(snapshot::v1::ENCODING_INT8);
  fits.set_elastic(true);
  v1::PlanDefault late;
  late.mutable_policy()->mutable_window()->set_recent(20);
  const MemoryPlans plans({other, fits, late});
  v1::AcquireLeaseRequest request = AcquireOf("s");
  v1::Session session;
  session.set_model("m");
  EXPECT_EQ(plans.Of(request, session).policy().window().recent(), 10);
  EXPECT_EQ(plans.Of(request, session).encoding(), snapshot::v1::ENCODING_INT8);
  EXPECT_TRUE(plans.Of(request, session).elastic());
  // The executor is told with the policy.
  EXPECT_TRUE(plans.Of(request, session).policy().elastic());
  EXPECT_TRUE(plans.IsElastic("t", session));
  EXPECT_FALSE(plans.IsElastic("t2", session));
  v1::Session own = session;
  own.mutable_memory_policy()->mutable_full();
  EXPECT_TRUE(plans.Of(request, own).policy().elastic());
  own.mutable_memory_policy()->set_elastic(false);
  EXPECT_FALSE(plans.IsElastic("t", own));
  EXPECT_FALSE(plans.Of(request, own).elastic());
  EXPECT_FALSE(plans.Of(request, own).policy().elastic());
  own.mutable_memory_policy()->mutable_h2o()->mutable_budget()->set_tokens(64);
  own.mutable_memory_policy()->clear_elastic();
  EXPECT_TRUE(plans.Of(request, own).elastic()) << "what is stored may be rounded";
  EXPECT_FALSE(plans.Of(request, own).policy().has_elastic());
  own.set_model("another");
  EXPECT_FALSE(plans.IsElastic("t", own));
  session.set_model("another");
  EXPECT_EQ(plans.Of(request, session).policy().window().recent(), 20);
  session.mutable_memory_policy()->mutable_window()->set_recent(30);
  EXPECT_EQ(plans.Of(request, session).policy().window().recent(), 30);
  request.mutable_memory_policy()->mutable_window()->set_recent(40);
  EXPECT_EQ(plans.Of(request, session).policy().window().recent(), 40);
  request.set_tenant("t2");
  request.clear_memory_policy();
  session.clear_memory_policy();
  EXPECT_TRUE(plans.Of(request, session).policy().has_full());
  EXPECT_FALSE(MemoryPlans({}).Of(request, session).has_policy());
  // The lease brings it.
  v1::AcquireLeaseRequest acquire = AcquireOf("planned");
  acquire.mutable_memory_policy()->mutable_window()->set_recent(50);
  EXPECT_EQ(Acquire(acquire)->plan().policy().window().recent(), 50);
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
  commit = CommitOf("s", 1, 0, "x");
  commit.set_snapshot_id("not one");
  ExpectInvalid(Commit(commit), "snapshot_id");
  v1::ForkSessionRequest fork;
  fork.set_tenant("t");
  fork.set_session_id("s");
  fork.set_new_session_id("a/b");
  ExpectInvalid(Call(&v1::MemoryService::StubInterface::ForkSession, fork), "new_session_id");
  v1::UpdateSessionRequest update;
  update.set_tenant("t");
  update.set_session_id("s");
  update.set_ttl_seconds(-1);
  ExpectInvalid(Call(&v1::MemoryService::StubInterface::UpdateSession, update), "ttl_seconds");
  v1::ListSessionsRequest list;
  list.set_tenant("t");
  for (const int32_t page_size : {-1, 1001}) {
    list.set_page_size(page_size);
    ExpectInvalid(Call(&v1::MemoryService::StubInterface::ListSessions, list), "page_size");
  }
  list.set_page_size(1);
  list.set_page_token("mine");
  ExpectInvalid(Call(&v1::MemoryService::StubInterface::ListSessions, list), "page_token");

  const auto compact = [this](const v1::CompactSessionRequest& request) {
    return Call(&v1::MemoryService::StubInterface::CompactSession, request);
  };
  v1::CompactSessionRequest request;
  request.set_tenant("t");
  request.set_session_id("s");
  ExpectInvalid(compact(request), "memory_policy");
  for (const int wrong : {1, 2, 5, -1}) {
    request.set_encoding(static_cast<snapshot::v1::Encoding>(wrong));
    ExpectInvalid(compact(request), "encoding");
  }
  request.clear_encoding();
  request.mutable_memory_policy();
  ExpectInvalid(compact(request), "memory_policy");
  request.mutable_memory_policy()->mutable_window();
  ExpectInvalid(compact(request), "memory_policy.window.recent");
  request.mutable_memory_policy()->mutable_window()->set_recent(1);
  request.mutable_memory_policy()->mutable_window()->set_sinks(-1);
  ExpectInvalid(compact(request), "memory_policy.window.sinks");
  request.mutable_memory_policy()->mutable_window()->set_sinks(0);
  EXPECT_TRUE(absl::IsNotFound(compact(request).status()));
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
