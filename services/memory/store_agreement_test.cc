// Random operations on both stores, step by step: each must answer what the other answers.
#include <algorithm>
#include <random>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/status/annotate.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "services/memory/store_fixture.h"

namespace mneme::memory {
namespace {

using ::mneme::testing::RedisServer;

// What two stores must agree on. Times and lease tokens are each store's own.
template <typename Response>
std::string Comparable(const absl::StatusOr<Response>& response) {
  if (!response.ok()) {
    return absl::StrCat(absl::StatusCodeToString(response.status().code()), " ",
                        status::PayloadOf(response.status(), status::kReasonPayload));
  }
  return response->ShortDebugString();
}

void ClearTimes(v1::Session* session) {
  session->clear_created_unix_ms();
  session->clear_used_unix_ms();
}

// Both stores and what they granted so far.
class Pair {
 public:
  Pair(const std::string& address, uint32_t seed) : redis_(address), random_(seed) {}

  // Does one random operation on both and compares the answers.
  void Step() {
    switch (Draw(21)) {
      case 0:
        return Create();
      case 1:
        return Get();
      case 2:
        return List();
      case 3:
        if (Draw(3) == 0) Delete();
        return;
      case 4:
      case 5:
      case 6:
        return Acquire();
      case 7:
        return Renew();
      case 8:
        return Release();
      case 9:
      case 10:
      case 11:
        return Stage();
      case 12:
        return Fetch();
      case 13:
        return Fork();
      case 14:
        return Draw(2) == 0 ? Rewind() : Update();
      case 15:
        return Describe();
      case 16:
        return Sweep();
      case 17:
        return Replace();
      default:
        return Commit();
    }
  }

  int num_committed() const { return num_committed_; }
  int num_snapshots() const { return num_snapshots_; }
  int num_forks() const { return num_forks_; }
  int num_replaced() const { return num_replaced_; }

 private:
  struct Lease {
    std::string tenant;
    std::string session_id;
    uint64_t in_memory = 1;
    uint64_t redis = 1;
    uint64_t version = 0;
  };
  // A snapshot that both stores have staged.
  struct Staged {
    std::string in_memory;
    std::string redis;
  };

  int Draw(int n) { return static_cast<int>(random_() % n); }
  std::string Tenant() { return Draw(5) == 0 ? "t2" : "t"; }
  std::string SessionId() { return absl::StrCat("s", Draw(5)); }
  std::string RequestId() { return Draw(2) == 0 ? "" : absl::StrCat("r", Draw(200)); }

  // Mostly a recent lease, so that many operations succeed.
  Lease& DrawLease() {
    if (leases_.empty()) leases_.push_back({.tenant = "t", .session_id = "s0"});
    const int num_leases = static_cast<int>(leases_.size());
    return leases_[Draw(3) == 0 ? Draw(num_leases) : num_leases - 1];
  }

  void Create() {
    v1::CreateSessionRequest request = CreateOf(SessionId(), Tenant());
    request.set_request_id(RequestId());
    request.set_title(absl::StrCat("title ", Draw(100)));
    if (Draw(2) == 0) request.mutable_memory_policy()->mutable_full();
    auto a = in_memory_.store().CreateSession(request, Soon());
    auto b = redis_.store().CreateSession(request, Soon());
    if (a.ok()) ClearTimes(a->mutable_session());
    if (b.ok()) ClearTimes(b->mutable_session());
    EXPECT_EQ(Comparable(a), Comparable(b)) << request.ShortDebugString();
  }

  void Get() {
    v1::GetSessionRequest request = GetOf(SessionId(), Tenant());
    request.set_with_messages(Draw(2) == 0);
    request.set_with_tokens(Draw(2) == 0);
    auto a = in_memory_.store().GetSession(request, Soon());
    auto b = redis_.store().GetSession(request, Soon());
    if (a.ok()) ClearTimes(a->mutable_session());
    if (b.ok()) ClearTimes(b->mutable_session());
    EXPECT_EQ(Comparable(a), Comparable(b)) << request.ShortDebugString();
  }

  void List() {
    v1::ListSessionsRequest request;
    request.set_tenant(Tenant());
    request.set_page_size(1 + Draw(4));
    std::string token_a;
    std::string token_b;
    do {
      request.set_page_token(token_a);
      auto a = in_memory_.store().ListSessions(request, Soon());
      request.set_page_token(token_b);
      auto b = redis_.store().ListSessions(request, Soon());
      ASSERT_TRUE(a.ok() && b.ok()) << a.status() << b.status();
      token_a = std::exchange(*a->mutable_next_page_token(), "");
      token_b = std::exchange(*b->mutable_next_page_token(), "");
      for (auto& session : *a->mutable_sessions()) ClearTimes(&session);
      for (auto& session : *b->mutable_sessions()) ClearTimes(&session);
      EXPECT_EQ(Comparable(a), Comparable(b));
      EXPECT_EQ(token_a.empty(), token_b.empty());
    } while (!token_a.empty() && !token_b.empty());
  }

  void Delete() {
    v1::DeleteSessionRequest request;
    request.set_tenant(Tenant());
    request.set_session_id(SessionId());
    EXPECT_EQ(Comparable(in_memory_.store().DeleteSession(request, Soon())),
              Comparable(redis_.store().DeleteSession(request, Soon())));
  }

  void Acquire() {
    v1::AcquireLeaseRequest request = AcquireOf(SessionId(), Tenant());
    request.set_holder(absl::StrCat("h", Draw(2)));
    request.set_create(Draw(3) != 0);
    request.set_with_history(Draw(2) == 0);
    request.set_request_id(RequestId());
    if (Draw(4) == 0) request.set_parent_version(Draw(4));
    const bool expires = Draw(5) == 0;
    if (expires) request.set_ttl_ms(1);
    auto a = in_memory_.store().AcquireLease(request, Soon());
    auto b = redis_.store().AcquireLease(request, Soon());
    if (a.ok() && b.ok() && a->lease_token() != 0) {
      EXPECT_NE(b->lease_token(), 0u);
      EXPECT_GT(a->lease_token(), last_in_memory_);
      EXPECT_GT(b->lease_token(), last_redis_);
      last_in_memory_ = a->lease_token();
      last_redis_ = b->lease_token();
      leases_.push_back({.tenant = request.tenant(),
                         .session_id = request.session_id(),
                         .in_memory = a->lease_token(),
                         .redis = b->lease_token(),
                         .version = a->session().version()});
      a->clear_lease_token();
      b->clear_lease_token();
    }
    for (auto* response : {&a, &b}) {
      if (!response->ok()) continue;
      ClearTimes((*response)->mutable_session());
      if ((*response)->has_committed()) {
        (*response)->mutable_committed()->clear_committed_unix_ms();
      }
    }
    EXPECT_EQ(Comparable(a), Comparable(b)) << request.ShortDebugString();
    if (expires) Advance();
  }

  void Renew() {
    const Lease& lease = DrawLease();
    v1::RenewLeaseRequest request;
    request.set_tenant(lease.tenant);
    request.set_session_id(lease.session_id);
    const bool expires = Draw(3) == 0;
    request.set_ttl_ms(expires ? 1 : 60'000);
    request.set_lease_token(lease.in_memory);
    const auto a = in_memory_.store().RenewLease(request, Soon());
    request.set_lease_token(lease.redis);
    const auto b = redis_.store().RenewLease(request, Soon());
    EXPECT_EQ(Comparable(a), Comparable(b));
    if (expires) Advance();
  }

  void Release() {
    const Lease& lease = DrawLease();
    v1::ReleaseLeaseRequest request;
    request.set_tenant(lease.tenant);
    request.set_session_id(lease.session_id);
    request.set_lease_token(lease.in_memory);
    const auto a = in_memory_.store().ReleaseLease(request, Soon());
    request.set_lease_token(lease.redis);
    const auto b = redis_.store().ReleaseLease(request, Soon());
    EXPECT_EQ(Comparable(a), Comparable(b));
  }

  void Commit() {
    Lease& lease = DrawLease();
    // Mostly on the head that the lease saw last; texts and ids are few, so that retries occur.
    const uint64_t parent = Draw(3) == 0 ? Draw(6) : lease.version;
    v1::CommitTurnRequest request = CommitOf(lease.session_id, lease.in_memory, parent,
                                             absl::StrCat("text ", Draw(3)), RequestId());
    request.set_tenant(lease.tenant);
    request.mutable_turn()->set_replaces_tokens(Draw(5) == 0);
    request.set_release(Draw(3) == 0);
    request.set_executor(absl::StrCat("e", Draw(2)));
    const Staged staged = Draw(3) == 0 || staged_.empty()
                              ? Staged()
                              : staged_[Draw(4) == 0 ? Draw(staged_.size()) : 0];
    request.set_snapshot_id(staged.in_memory);
    const auto a = in_memory_.store().CommitTurn(request, Soon());
    request.set_lease_token(lease.redis);
    request.set_snapshot_id(staged.redis);
    const auto b = redis_.store().CommitTurn(request, Soon());
    EXPECT_EQ(Comparable(a), Comparable(b)) << request.ShortDebugString();
    if (!a.ok()) return;
    ++num_committed_;
    if (!staged.redis.empty() && a->snapshot_lost_reason().empty()) ++num_snapshots_;
    lease.version = std::max(lease.version, a->version());
  }

  // Chunks are few, so that snapshots of one family share them.
  void Stage() {
    const Lease lease = DrawLease();
    const int num_chunks = Draw(4);
    std::vector<std::string> payloads;
    for (int i = 0; i < num_chunks; ++i) {
      payloads.push_back(PayloadOf(absl::StrCat("chunk ", Draw(6)), 100));
    }
    // Sometimes chunks of an earlier snapshot, be it of this family or not.
    const snapshot::v1::Manifest parent = Draw(2) == 0 ? snapshot::v1::Manifest() : manifest_;
    auto a = memory::Stage(in_memory_.store(), lease.session_id, lease.in_memory, payloads, parent,
                           lease.tenant);
    auto b = memory::Stage(redis_.store(), lease.session_id, lease.redis, payloads, parent,
                           lease.tenant);
    if (a.ok() && b.ok()) {
      staged_.insert(staged_.begin(), {a->snapshot_id(), b->snapshot_id()});
      staged_.resize(std::min<size_t>(staged_.size(), 3));
      a->clear_snapshot_id();
      b->clear_snapshot_id();
      a->mutable_manifest()->clear_created_unix_ms();
      b->mutable_manifest()->clear_created_unix_ms();
      manifest_ = a->manifest();
      if (manifest_.chunks_size() > 8) manifest_.Clear();
    }
    EXPECT_EQ(Comparable(a), Comparable(b));
  }

  void Fetch() {
    v1::FetchSnapshotRequest request;
    request.set_tenant(Tenant());
    request.set_session_id(SessionId());
    request.set_version(Draw(4));
    const auto a = memory::Fetch(in_memory_.store(), request);
    const auto b = memory::Fetch(redis_.store(), request);
    ASSERT_EQ(a.status().code(), b.status().code()) << a.status() << b.status();
    if (!a.ok()) return;
    EXPECT_EQ(a->version, b->version);
    EXPECT_EQ(a->positions, b->positions);
    EXPECT_EQ(a->payloads, b->payloads);
    EXPECT_EQ(a->manifest.tokens_digest(), b->manifest.tokens_digest());
  }

  void Fork() {
    v1::ForkSessionRequest request;
    request.set_tenant(Tenant());
    request.set_session_id(SessionId());
    request.set_new_session_id(SessionId());
    request.set_request_id(RequestId());
    if (Draw(2) == 0) request.set_version(Draw(4));
    if (Draw(2) == 0) request.set_title("forked");
    auto a = in_memory_.store().ForkSession(request, Soon());
    auto b = redis_.store().ForkSession(request, Soon());
    if (a.ok()) ClearTimes(a->mutable_session());
    if (b.ok()) ClearTimes(b->mutable_session());
    if (a.ok()) ++num_forks_;
    EXPECT_EQ(Comparable(a), Comparable(b)) << request.ShortDebugString();
  }

  void Rewind() {
    v1::RewindSessionRequest request;
    request.set_tenant(Tenant());
    request.set_session_id(SessionId());
    request.set_version(Draw(5));
    auto a = in_memory_.store().RewindSession(request, Soon());
    auto b = redis_.store().RewindSession(request, Soon());
    if (a.ok()) ClearTimes(a->mutable_session());
    if (b.ok()) ClearTimes(b->mutable_session());
    EXPECT_EQ(Comparable(a), Comparable(b)) << request.ShortDebugString();
  }

  // Mostly as a compaction does it: under a lease of its own, of the head, with what it has staged.
  void Replace() {
    Lease lease = DrawLease();
    if (Draw(4) != 0) {
      v1::AcquireLeaseRequest acquire = AcquireOf(SessionId(), Tenant());
      acquire.set_create(false);
      const auto a = in_memory_.store().AcquireLease(acquire, Soon());
      const auto b = redis_.store().AcquireLease(acquire, Soon());
      ASSERT_EQ(a.status().code(), b.status().code()) << a.status() << b.status();
      if (a.ok()) {
        last_in_memory_ = a->lease_token();
        last_redis_ = b->lease_token();
        lease = {.tenant = acquire.tenant(),
                 .session_id = acquire.session_id(),
                 .in_memory = a->lease_token(),
                 .redis = b->lease_token(),
                 .version = a->session().version()};
        leases_.push_back(lease);
      }
    }
    v1::FetchSnapshotRequest fetch;
    fetch.set_tenant(lease.tenant);
    fetch.set_session_id(lease.session_id);
    const auto fetched = memory::Fetch(in_memory_.store(), fetch);
    Staged staged;
    if (Draw(3) != 0) {
      const std::vector<std::string> payloads = {PayloadOf(absl::StrCat("chunk ", Draw(6)), 100)};
      const auto a = memory::Stage(in_memory_.store(), lease.session_id, lease.in_memory, payloads,
                                   {}, lease.tenant);
      const auto b =
          memory::Stage(redis_.store(), lease.session_id, lease.redis, payloads, {}, lease.tenant);
      ASSERT_EQ(a.status().code(), b.status().code()) << a.status() << b.status();
      if (a.ok()) staged = {a->snapshot_id(), b->snapshot_id()};
    } else if (Draw(2) == 0 && !staged_.empty()) {
      staged = staged_[0];
    }
    SnapshotReplacement request{
        .tenant = lease.tenant,
        .session_id = lease.session_id,
        .version = Draw(6) != 0 ? lease.version : Draw(4),
        .snapshot_version = fetched.ok() && Draw(6) != 0 ? fetched->version : Draw(4),
        .drop_older_snapshots = Draw(2) == 0};
    if (Draw(2) == 0) request.memory_policy.emplace().mutable_window()->set_recent(1 + Draw(9));
    request.lease_token = lease.in_memory;
    request.snapshot_id = staged.in_memory;
    auto a = in_memory_.store().ReplaceSnapshot(request, Soon());
    request.lease_token = lease.redis;
    request.snapshot_id = staged.redis;
    auto b = redis_.store().ReplaceSnapshot(request, Soon());
    EXPECT_EQ(a.status().code(), b.status().code()) << a.status() << b.status();
    EXPECT_EQ(status::PayloadOf(a.status(), status::kReasonPayload),
              status::PayloadOf(b.status(), status::kReasonPayload));
    if (!a.ok() || !b.ok()) return;
    ++num_replaced_;
    ClearTimes(&a->session);
    ClearTimes(&b->session);
    EXPECT_EQ(a->session.ShortDebugString(), b->session.ShortDebugString());
    EXPECT_EQ(a->num_dropped, b->num_dropped);
  }

  void Update() {
    v1::UpdateSessionRequest request;
    request.set_tenant(Tenant());
    request.set_session_id(SessionId());
    if (Draw(2) == 0) request.set_title(Draw(2) == 0 ? "" : "updated");
    if (Draw(2) == 0) request.set_pinned(Draw(2) == 0);
    if (Draw(2) == 0) request.mutable_memory_policy()->mutable_window()->set_recent(1 + Draw(9));
    auto a = in_memory_.store().UpdateSession(request, Soon());
    auto b = redis_.store().UpdateSession(request, Soon());
    if (a.ok()) ClearTimes(a->mutable_session());
    if (b.ok()) ClearTimes(b->mutable_session());
    EXPECT_EQ(Comparable(a), Comparable(b)) << request.ShortDebugString();
  }

  void Describe() {
    v1::DescribeSessionRequest request;
    request.set_tenant(Tenant());
    request.set_session_id(SessionId());
    auto a = in_memory_.store().DescribeSession(request, Soon());
    auto b = redis_.store().DescribeSession(request, Soon());
    for (auto* response : {&a, &b}) {
      if (!response->ok()) continue;
      ClearTimes((*response)->mutable_session());
      for (auto& version : *(*response)->mutable_versions()) version.clear_committed_unix_ms();
      std::sort((*response)->mutable_shares_with()->begin(),
                (*response)->mutable_shares_with()->end());
    }
    EXPECT_EQ(Comparable(a), Comparable(b)) << request.ShortDebugString();
  }

  void Sweep() {
    EXPECT_TRUE(in_memory_.store().Sweep(Soon()).ok());
    const absl::Status swept = redis_.store().Sweep(Soon());
    EXPECT_TRUE(swept.ok()) << swept;
  }

  void Advance() {
    in_memory_.Advance(absl::Milliseconds(3));
    redis_.Advance(absl::Milliseconds(3));
  }

  InMemoryUnderTest in_memory_;
  RedisUnderTest redis_;
  std::mt19937 random_;
  std::vector<Lease> leases_;
  std::vector<Staged> staged_;  // the latest first
  snapshot::v1::Manifest manifest_;
  uint64_t last_in_memory_ = 0;
  uint64_t last_redis_ = 0;
  int num_committed_ = 0;
  int num_snapshots_ = 0;
  int num_forks_ = 0;
  int num_replaced_ = 0;
};

class StoreAgreementTest : public ::testing::TestWithParam<uint32_t> {};

TEST_P(StoreAgreementTest, BothStoresAnswerAlike) {
  const auto server = RedisServer::Start({.append_fsync = "no"});
  ASSERT_TRUE(server.ok()) << server.status();
  Pair pair((*server)->address(), GetParam());
  constexpr int kSteps = 5000;
  for (int i = 0; i < kSteps && !HasFailure(); ++i) {
    SCOPED_TRACE(absl::StrCat("step ", i));
    pair.Step();
  }
  // A run in which nothing succeeds would prove little.
  EXPECT_GT(pair.num_committed(), kSteps / 40);
  EXPECT_GT(pair.num_snapshots(), kSteps / 400);
  EXPECT_GT(pair.num_forks(), kSteps / 800);
  EXPECT_GT(pair.num_replaced(), kSteps / 1000);
}

INSTANTIATE_TEST_SUITE_P(Seeds, StoreAgreementTest, ::testing::Values(1, 2, 3, 4));

}  // namespace
}  // namespace mneme::memory
