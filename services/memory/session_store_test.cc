// The contract of SessionStore, on both stores.
#include "services/memory/session_store.h"

#include <atomic>
#include <functional>
#include <set>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/status/annotate.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "services/memory/session_errors.h"
#include "services/memory/store_fixture.h"

namespace mneme::memory {
namespace {

using ::mneme::testing::RedisServer;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

enum class Kind { kInMemory, kRedis };

class SessionStoreTest : public ::testing::TestWithParam<Kind> {
 protected:
  static void SetUpTestSuite() {
    auto started = RedisServer::Start({.append_fsync = "no"});
    ASSERT_TRUE(started.ok()) << started.status();
    server_ = *std::move(started);
  }
  static void TearDownTestSuite() { server_.reset(); }

  void SetUp() override { UseDefaultTtl(0); }

  void UseDefaultTtl(int64_t seconds) {
    StoreOptions options;
    options.default_ttl_seconds = seconds;
    UseOptions(std::move(options));
  }

  void UseOptions(StoreOptions options) {
    if (GetParam() == Kind::kInMemory) {
      under_test_ = std::make_unique<InMemoryUnderTest>(std::move(options));
    } else {
      under_test_ = std::make_unique<RedisUnderTest>(server_->address(), std::move(options));
    }
  }

  SessionStore& store() { return under_test_->store(); }
  void Advance(absl::Duration duration) { under_test_->Advance(duration); }

  // Takes a lease that must be given.
  uint64_t Lease(const std::string& session_id, int64_t ttl_ms = 60'000) {
    v1::AcquireLeaseRequest request = AcquireOf(session_id);
    request.set_ttl_ms(ttl_ms);
    const auto response = store().AcquireLease(request, Soon());
    EXPECT_TRUE(response.ok()) << response.status();
    return response.ok() ? response->lease_token() : 0;
  }

  // Commits a turn and gives the lease back; returns the version, 0 after an error.
  uint64_t Turn(const std::string& session_id, uint64_t parent, const std::string& text,
                const std::string& request_id = "") {
    v1::CommitTurnRequest request =
        CommitOf(session_id, Lease(session_id), parent, text, request_id);
    request.set_release(true);
    const auto response = store().CommitTurn(request, Soon());
    EXPECT_TRUE(response.ok()) << response.status();
    return response.ok() ? response->version() : 0;
  }

  absl::Status Commit(const v1::CommitTurnRequest& request) {
    return store().CommitTurn(request, Soon()).status();
  }

  absl::Status Release(const std::string& session_id, uint64_t lease_token) {
    v1::ReleaseLeaseRequest request;
    request.set_tenant("t");
    request.set_session_id(session_id);
    request.set_lease_token(lease_token);
    return store().ReleaseLease(request, Soon()).status();
  }

  absl::Status Renew(const std::string& session_id, uint64_t lease_token, int64_t ttl_ms) {
    v1::RenewLeaseRequest request;
    request.set_tenant("t");
    request.set_session_id(session_id);
    request.set_lease_token(lease_token);
    request.set_ttl_ms(ttl_ms);
    return store().RenewLease(request, Soon()).status();
  }

  absl::Status Delete(const std::string& session_id) {
    v1::DeleteSessionRequest request;
    request.set_tenant("t");
    request.set_session_id(session_id);
    return store().DeleteSession(request, Soon()).status();
  }

  v1::GetSessionResponse Get(const std::string& session_id) {
    const auto response = store().GetSession(GetOf(session_id), Soon());
    EXPECT_TRUE(response.ok()) << response.status();
    return response.value_or(v1::GetSessionResponse());
  }

  std::vector<std::string> List(const std::string& tenant = "t") {
    v1::ListSessionsRequest request;
    request.set_tenant(tenant);
    request.set_page_size(1000);
    const auto response = store().ListSessions(request, Soon());
    EXPECT_TRUE(response.ok()) << response.status();
    std::vector<std::string> ids;
    for (const auto& session : response->sessions()) ids.push_back(session.session_id());
    return ids;
  }

  static std::string ReasonOf(const absl::Status& status) {
    return status::PayloadOf(status, status::kReasonPayload);
  }

  static inline std::unique_ptr<RedisServer> server_;
  std::unique_ptr<StoreUnderTest> under_test_;
};

TEST_P(SessionStoreTest, CreatedSessionIsReadBack) {
  v1::CreateSessionRequest request = CreateOf("s");
  request.set_title(std::string("Grüße \0\r\n", 11));
  request.mutable_memory_policy()->mutable_window()->set_recent(512);
  request.set_ttl_seconds(3600);
  const auto created = store().CreateSession(request, Soon());
  ASSERT_TRUE(created.ok()) << created.status();
  const v1::Session& session = created->session();
  EXPECT_EQ(session.session_id(), "s");
  EXPECT_EQ(session.model(), "m");
  EXPECT_EQ(session.version(), 0u);
  EXPECT_EQ(session.title(), request.title());
  EXPECT_EQ(session.memory_policy().window().recent(), 512);
  EXPECT_EQ(session.ttl_seconds(), 3600);
  EXPECT_GT(session.created_unix_ms(), 1'500'000'000'000);
  EXPECT_EQ(session.used_unix_ms(), session.created_unix_ms());
  EXPECT_EQ(Get("s").session().SerializeAsString(), session.SerializeAsString());
}

TEST_P(SessionStoreTest, CreationOfATakenIdFailsUnlessItIsTheSameRequest) {
  v1::CreateSessionRequest request = CreateOf("s");
  request.set_request_id("r1");
  ASSERT_TRUE(store().CreateSession(request, Soon()).ok());
  EXPECT_TRUE(store().CreateSession(request, Soon()).ok());
  request.set_request_id("r2");
  EXPECT_EQ(store().CreateSession(request, Soon()).status().code(),
            absl::StatusCode::kAlreadyExists);
  request.clear_request_id();
  EXPECT_EQ(store().CreateSession(request, Soon()).status().code(),
            absl::StatusCode::kAlreadyExists);
  EXPECT_THAT(List(), ElementsAre("s"));
}

TEST_P(SessionStoreTest, UnknownSessionIsNotFoundEverywhere) {
  v1::AcquireLeaseRequest acquire = AcquireOf("s");
  acquire.set_create(false);
  EXPECT_TRUE(absl::IsNotFound(store().GetSession(GetOf("s"), Soon()).status()));
  EXPECT_TRUE(absl::IsNotFound(Delete("s")));
  EXPECT_TRUE(absl::IsNotFound(store().AcquireLease(acquire, Soon()).status()));
  EXPECT_TRUE(absl::IsNotFound(Renew("s", 1, 1000)));
  EXPECT_TRUE(absl::IsNotFound(Commit(CommitOf("s", 1, 0, "x"))));
  EXPECT_TRUE(Release("s", 1).ok());
  EXPECT_TRUE(List().empty());
}

TEST_P(SessionStoreTest, TenantsDoNotSeeEachOther) {
  // Without care these two would have the same key.
  ASSERT_TRUE(store().CreateSession(CreateOf("b:c", "a"), Soon()).ok());
  EXPECT_TRUE(absl::IsNotFound(store().GetSession(GetOf("c", "a:b"), Soon()).status()));
  EXPECT_TRUE(absl::IsNotFound(store().GetSession(GetOf("b:c", "other"), Soon()).status()));
  EXPECT_THAT(List("a"), ElementsAre("b:c"));
  EXPECT_TRUE(List("a:b").empty());
  EXPECT_TRUE(store().CreateSession(CreateOf("c", "a:b"), Soon()).ok());
}

TEST_P(SessionStoreTest, CommittedTurnsMakeTheHistory) {
  EXPECT_EQ(Turn("s", 0, "one"), 1u);
  EXPECT_EQ(Turn("s", 1, "three"), 2u);
  const v1::GetSessionResponse history = Get("s");
  EXPECT_EQ(history.session().version(), 2u);
  EXPECT_EQ(history.session().num_messages(), 4);
  EXPECT_EQ(history.session().num_tokens(), 4);
  ASSERT_EQ(history.messages_size(), 4);
  EXPECT_EQ(history.messages(0).content(), "one");
  EXPECT_EQ(history.messages(3).content(), "answer to three");
  EXPECT_THAT(history.token_ids(), ElementsAre(0, 3, 1, 5));
}

TEST_P(SessionStoreTest, HistoryComesOnlyWhereItIsAskedFor) {
  Turn("s", 0, "one");
  v1::GetSessionRequest request = GetOf("s");
  request.set_with_messages(false);
  EXPECT_EQ(store().GetSession(request, Soon())->messages_size(), 0);
  EXPECT_EQ(store().GetSession(request, Soon())->token_ids_size(), 2);
  request.set_with_messages(true);
  request.set_with_tokens(false);
  EXPECT_EQ(store().GetSession(request, Soon())->messages_size(), 2);
  EXPECT_EQ(store().GetSession(request, Soon())->token_ids_size(), 0);
  v1::AcquireLeaseRequest acquire = AcquireOf("s");
  const auto without = store().AcquireLease(acquire, Soon());
  EXPECT_EQ(without->messages_size() + without->token_ids_size(), 0);
  ASSERT_TRUE(Release("s", without->lease_token()).ok());
  acquire.set_with_history(true);
  const auto with = store().AcquireLease(acquire, Soon());
  EXPECT_EQ(with->messages_size(), 2);
  EXPECT_THAT(with->token_ids(), ElementsAre(0, 3));
}

TEST_P(SessionStoreTest, ReplacedTokenLogKeepsTheMessages) {
  Turn("s", 0, "one");
  v1::CommitTurnRequest request = CommitOf("s", Lease("s"), 1, "two");
  request.mutable_turn()->set_replaces_tokens(true);
  request.mutable_turn()->add_token_ids(77);
  request.set_release(true);
  ASSERT_TRUE(Commit(request).ok());
  Turn("s", 2, "three");
  const v1::GetSessionResponse history = Get("s");
  EXPECT_EQ(history.messages_size(), 6);
  EXPECT_THAT(history.token_ids(), ElementsAre(1, 3, 77, 2, 5));
  EXPECT_EQ(history.session().num_tokens(), 5);
}

TEST_P(SessionStoreTest, TurnOfAnyBytesComesBackWhole) {
  v1::CommitTurnRequest request = CommitOf("s", Lease("s"), 0, std::string("\0:1:2:\r\n}{", 10));
  for (int i = 0; i < 100'000; ++i) request.mutable_turn()->add_token_ids(i * 7919);
  request.mutable_turn()->set_finish_reason(inference::v1::FINISH_REASON_LENGTH);
  ASSERT_TRUE(Commit(request).ok());
  const v1::GetSessionResponse history = Get("s");
  EXPECT_EQ(history.messages(0).content(), request.turn().messages(0).content());
  EXPECT_EQ(history.token_ids_size(), 100'002);
  EXPECT_EQ(history.token_ids(100'001), request.turn().token_ids(100'001));
}

TEST_P(SessionStoreTest, HeldSessionIsBusyAndSaysForHowLong) {
  const uint64_t token = Lease("s", 30'000);
  v1::AcquireLeaseRequest second = AcquireOf("s");
  second.set_holder("someone else");
  const absl::Status busy = store().AcquireLease(second, Soon()).status();
  EXPECT_EQ(busy.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(ReasonOf(busy), "SESSION_BUSY");
  int64_t retry_ms = 0;
  ASSERT_TRUE(absl::SimpleAtoi(status::PayloadOf(busy, status::kRetryAfterPayload), &retry_ms));
  EXPECT_GT(retry_ms, 20'000);
  EXPECT_LE(retry_ms, 30'000);
  ASSERT_TRUE(Release("s", token).ok());
  EXPECT_TRUE(store().AcquireLease(second, Soon()).ok());
}

TEST_P(SessionStoreTest, ForeignTokenReleasesNothing) {
  const uint64_t token = Lease("s");
  EXPECT_TRUE(Release("s", token + 1).ok());
  EXPECT_EQ(ReasonOf(store().AcquireLease(AcquireOf("s"), Soon()).status()), "SESSION_BUSY");
  EXPECT_TRUE(Commit(CommitOf("s", token, 0, "x")).ok());
}

TEST_P(SessionStoreTest, SameHolderAskingForTheSameTurnAgainGetsAnotherLease) {
  v1::AcquireLeaseRequest request = AcquireOf("s");
  request.set_request_id("r");
  const auto first = store().AcquireLease(request, Soon());
  const auto second = store().AcquireLease(request, Soon());
  ASSERT_TRUE(second.ok()) << second.status();
  EXPECT_GT(second->lease_token(), first->lease_token());
  EXPECT_EQ(ReasonOf(Commit(CommitOf("s", first->lease_token(), 0, "x"))), "LEASE_LOST");
  request.set_holder("someone else");
  EXPECT_EQ(ReasonOf(store().AcquireLease(request, Soon()).status()), "SESSION_BUSY");
  EXPECT_TRUE(Commit(CommitOf("s", second->lease_token(), 0, "x")).ok());
}

TEST_P(SessionStoreTest, StaleParentIsRefusedWithTheCurrentHead) {
  Turn("s", 0, "one");
  Turn("s", 1, "two");
  v1::AcquireLeaseRequest request = AcquireOf("s");
  request.set_parent_version(1);
  const absl::Status stale = store().AcquireLease(request, Soon()).status();
  EXPECT_EQ(stale.code(), absl::StatusCode::kAborted);
  EXPECT_EQ(ReasonOf(stale), "STALE_VERSION");
  EXPECT_THAT(std::string(stale.message()), HasSubstr("current version 2"));
  request.set_parent_version(3);
  EXPECT_EQ(ReasonOf(store().AcquireLease(request, Soon()).status()), "STALE_VERSION");
  request.set_parent_version(2);
  const auto granted = store().AcquireLease(request, Soon());
  ASSERT_TRUE(granted.ok()) << granted.status();
  for (const uint64_t parent : {uint64_t{0}, uint64_t{1}, uint64_t{3}, ~uint64_t{0}}) {
    EXPECT_EQ(ReasonOf(Commit(CommitOf("s", granted->lease_token(), parent, "x"))),
              "STALE_VERSION");
  }
  EXPECT_TRUE(Commit(CommitOf("s", granted->lease_token(), 2, "x")).ok());
}

TEST_P(SessionStoreTest, StaleParentOfAMissingSessionMakesNone) {
  v1::AcquireLeaseRequest request = AcquireOf("s");
  request.set_parent_version(4);
  EXPECT_EQ(ReasonOf(store().AcquireLease(request, Soon()).status()), "STALE_VERSION");
  EXPECT_TRUE(absl::IsNotFound(store().GetSession(GetOf("s"), Soon()).status()));
  EXPECT_TRUE(List().empty());
}

TEST_P(SessionStoreTest, LeaseTakesManyTurns) {
  const uint64_t token = Lease("s");
  for (uint64_t parent = 0; parent < 5; ++parent) {
    EXPECT_TRUE(Commit(CommitOf("s", token, parent, absl::StrCat("turn ", parent))).ok());
  }
  EXPECT_EQ(Get("s").session().version(), 5u);
}

TEST_P(SessionStoreTest, ReleasedLeaseCannotCommit) {
  const uint64_t token = Lease("s");
  ASSERT_TRUE(Release("s", token).ok());
  EXPECT_EQ(ReasonOf(Commit(CommitOf("s", token, 0, "x"))), "LEASE_LOST");
}

TEST_P(SessionStoreTest, ExpiredLeaseCannotCommitEvenIfNobodyElseHasTakenIt) {
  const uint64_t token = Lease("s", 40);
  Advance(absl::Milliseconds(60));
  const absl::Status lost = Commit(CommitOf("s", token, 0, "x"));
  EXPECT_EQ(lost.code(), absl::StatusCode::kAborted);
  EXPECT_EQ(ReasonOf(lost), "LEASE_LOST");
  EXPECT_EQ(Get("s").session().version(), 0u);
}

TEST_P(SessionStoreTest, SupersededLeaseCannotCommitNorBeRenewed) {
  const uint64_t old_token = Lease("s", 40);
  Advance(absl::Milliseconds(60));
  const uint64_t new_token = Lease("s");
  EXPECT_GT(new_token, old_token);
  EXPECT_EQ(ReasonOf(Commit(CommitOf("s", old_token, 0, "x"))), "LEASE_LOST");
  EXPECT_EQ(ReasonOf(Renew("s", old_token, 1000)), "LEASE_LOST");
  EXPECT_TRUE(Release("s", old_token).ok());
  EXPECT_TRUE(Commit(CommitOf("s", new_token, 0, "x")).ok());
}

TEST_P(SessionStoreTest, RenewedLeaseLastsLonger) {
  const uint64_t token = Lease("s", 80);
  ASSERT_TRUE(Renew("s", token, 60'000).ok());
  Advance(absl::Milliseconds(120));
  EXPECT_EQ(ReasonOf(store().AcquireLease(AcquireOf("s"), Soon()).status()), "SESSION_BUSY");
  EXPECT_TRUE(Commit(CommitOf("s", token, 0, "x")).ok());
}

TEST_P(SessionStoreTest, LeaseThatRanOutCanBeRenewedWhileNobodyElseTookIt) {
  const uint64_t token = Lease("s", 40);
  Advance(absl::Milliseconds(60));
  ASSERT_TRUE(Renew("s", token, 60'000).ok());
  EXPECT_TRUE(Commit(CommitOf("s", token, 0, "x")).ok());
}

TEST_P(SessionStoreTest, TokensRiseThroughReleaseExpiryAndDeletion) {
  uint64_t last = 0;
  for (int i = 0; i < 20; ++i) {
    const uint64_t token = Lease("s", i == 5 ? 1 : 60'000);
    ASSERT_GT(token, last);
    last = token;
    if (i == 5) {
      Advance(absl::Milliseconds(5));
    } else if (i % 3 == 0) {
      ASSERT_TRUE(Delete("s").ok());
    } else {
      ASSERT_TRUE(Release("s", token).ok());
    }
  }
}

TEST_P(SessionStoreTest, LeaseOfADeletedSessionCannotWriteItsSuccessor) {
  const uint64_t token = Lease("s");
  ASSERT_TRUE(Delete("s").ok());
  EXPECT_TRUE(absl::IsNotFound(Commit(CommitOf("s", token, 0, "x"))));
  ASSERT_TRUE(store().CreateSession(CreateOf("s"), Soon()).ok());
  EXPECT_EQ(ReasonOf(Commit(CommitOf("s", token, 0, "x"))), "LEASE_LOST");
}

TEST_P(SessionStoreTest, DeletedSessionLeavesNothing) {
  Turn("s", 0, "one", "r");
  ASSERT_TRUE(Delete("s").ok());
  EXPECT_TRUE(List().empty());
  EXPECT_TRUE(absl::IsNotFound(Delete("s")));
  v1::AcquireLeaseRequest request = AcquireOf("s");
  request.set_request_id("r");
  request.set_with_history(true);
  const auto again = store().AcquireLease(request, Soon());
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_FALSE(again->has_committed());
  EXPECT_EQ(again->session().version(), 0u);
  EXPECT_EQ(again->messages_size(), 0);
}

TEST_P(SessionStoreTest, CommittedRequestIsAnsweredAgainAndTakesNoLease) {
  Turn("s", 0, "one", "r1");
  Turn("s", 1, "two", "r2");
  v1::AcquireLeaseRequest request = AcquireOf("s");
  request.set_request_id("r1");
  request.set_parent_version(0);
  const auto repeated = store().AcquireLease(request, Soon());
  ASSERT_TRUE(repeated.ok()) << repeated.status();
  ASSERT_TRUE(repeated->has_committed());
  EXPECT_EQ(repeated->lease_token(), 0u);
  EXPECT_EQ(repeated->committed().version(), 1u);
  EXPECT_EQ(repeated->committed().messages(1).content(), "answer to one");
  EXPECT_GT(repeated->committed().committed_unix_ms(), 1'500'000'000'000);
  EXPECT_EQ(repeated->session().version(), 2u);
  EXPECT_NE(Lease("s"), 0u);
}

TEST_P(SessionStoreTest, CommitOfACommittedRequestAnswersItsVersionUnderAnyLease) {
  Turn("s", 0, "one", "r1");
  Turn("s", 1, "two", "r2");
  const uint64_t token = Lease("s");
  const auto again = store().CommitTurn(CommitOf("s", token, 2, "whatever", "r1"), Soon());
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->version(), 1u);
  EXPECT_EQ(Get("s").session().version(), 2u);
}

TEST_P(SessionStoreTest, SameTurnUnderTheSameLeaseIsCommittedOnce) {
  const uint64_t token = Lease("s");
  v1::CommitTurnRequest request = CommitOf("s", token, 0, "one");
  request.set_release(true);
  EXPECT_EQ(store().CommitTurn(request, Soon())->version(), 1u);
  const auto again = store().CommitTurn(request, Soon());
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->version(), 1u);
  // Another turn on the same parent is no retry.
  EXPECT_EQ(ReasonOf(Commit(CommitOf("s", token, 0, "other"))), "LEASE_LOST");
  // Nor is the same text under another lease.
  EXPECT_EQ(ReasonOf(Commit(CommitOf("s", Lease("s"), 0, "one"))), "STALE_VERSION");
  EXPECT_EQ(Get("s").session().version(), 1u);
}

TEST_P(SessionStoreTest, RepeatedCommitStillReleasesTheLease) {
  const uint64_t token = Lease("s");
  v1::CommitTurnRequest request = CommitOf("s", token, 0, "one", "r");
  ASSERT_TRUE(Commit(request).ok());
  request.set_release(true);
  ASSERT_TRUE(Commit(request).ok());
  EXPECT_TRUE(store().AcquireLease(AcquireOf("s"), Soon()).ok());
}

TEST_P(SessionStoreTest, ListingPutsTheMostRecentlyUsedFirst) {
  for (const char* id : {"a", "b", "c", "d"}) {
    ASSERT_TRUE(store().CreateSession(CreateOf(id), Soon()).ok());
  }
  EXPECT_THAT(List(), ElementsAre("d", "c", "b", "a"));
  Turn("a", 0, "x");
  const uint64_t token = Lease("c");
  EXPECT_THAT(List(), ElementsAre("c", "a", "d", "b"));
  ASSERT_TRUE(Commit(CommitOf("c", token, 0, "x")).ok());
  (void)Get("b");
  EXPECT_THAT(List(), ElementsAre("c", "a", "d", "b"));
}

TEST_P(SessionStoreTest, PagesHoldEachSessionOnceThoughSessionsAreUsedMeanwhile) {
  for (int i = 0; i < 150; ++i) {
    ASSERT_TRUE(store().CreateSession(CreateOf(absl::StrCat("s", i)), Soon()).ok());
  }
  v1::ListSessionsRequest request;
  request.set_tenant("t");
  request.set_page_size(7);
  std::vector<std::string> ids;
  int num_pages = 0;
  do {
    const auto page = store().ListSessions(request, Soon());
    ASSERT_TRUE(page.ok()) << page.status();
    EXPECT_LE(page->sessions_size(), 7);
    for (const auto& session : page->sessions()) ids.push_back(session.session_id());
    request.set_page_token(page->next_page_token());
    ++num_pages;
    // Uses one that was listed and makes one that is new: neither shifts a page.
    ASSERT_TRUE(Release(ids.back(), Lease(ids.back())).ok());
    ASSERT_TRUE(store().CreateSession(CreateOf(absl::StrCat("new", num_pages)), Soon()).ok());
  } while (!request.page_token().empty());
  EXPECT_EQ(num_pages, 22);
  ASSERT_EQ(ids.size(), 150u);
  for (int i = 0; i < 150; ++i) EXPECT_EQ(ids[i], absl::StrCat("s", 149 - i));
}

TEST_P(SessionStoreTest, LastFullPageHasNoToken) {
  for (const char* id : {"a", "b", "c", "d"}) {
    ASSERT_TRUE(store().CreateSession(CreateOf(id), Soon()).ok());
  }
  v1::ListSessionsRequest request;
  request.set_tenant("t");
  request.set_page_size(4);
  EXPECT_EQ(store().ListSessions(request, Soon())->next_page_token(), "");
  request.set_page_size(2);
  request.set_page_token(store().ListSessions(request, Soon())->next_page_token());
  EXPECT_EQ(store().ListSessions(request, Soon())->next_page_token(), "");
}

TEST_P(SessionStoreTest, ListingOfOneModelSkipsTheOthers) {
  for (int i = 0; i < 140; ++i) {
    v1::CreateSessionRequest request = CreateOf(absl::StrCat("s", i));
    request.set_model(i % 70 == 0 ? "rare" : "common");
    ASSERT_TRUE(store().CreateSession(request, Soon()).ok());
  }
  v1::ListSessionsRequest request;
  request.set_tenant("t");
  request.set_page_size(2);
  request.set_model("rare");
  const auto page = store().ListSessions(request, Soon());
  ASSERT_TRUE(page.ok()) << page.status();
  ASSERT_EQ(page->sessions_size(), 2);
  EXPECT_EQ(page->sessions(0).session_id(), "s70");
  EXPECT_EQ(page->sessions(1).session_id(), "s0");
  EXPECT_EQ(page->next_page_token(), "");
}

TEST_P(SessionStoreTest, ForeignPageTokenIsRefused) {
  v1::ListSessionsRequest request;
  request.set_tenant("t");
  request.set_page_size(10);
  for (const char* token : {"x", "MTIz", "c2Vzc2lvbnMtMTp4"}) {
    request.set_page_token(token);
    const absl::Status status = store().ListSessions(request, Soon()).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << token;
    EXPECT_EQ(status::PayloadOf(status, status::kFieldPayload), "page_token");
  }
}

TEST_P(SessionStoreTest, UnusedSessionExpiresAndItsIdIsFree) {
  v1::CreateSessionRequest request = CreateOf("s");
  request.set_ttl_seconds(1);
  ASSERT_TRUE(store().CreateSession(request, Soon()).ok());
  ASSERT_TRUE(store().CreateSession(CreateOf("stays"), Soon()).ok());
  Advance(absl::Milliseconds(700));
  Turn("s", 0, "x");
  Advance(absl::Milliseconds(700));
  EXPECT_EQ(Get("s").session().version(), 1u);  // the turn was a use
  // The lease of a turn that is running keeps the session.
  const uint64_t token = Lease("s", 1600);
  Advance(absl::Milliseconds(1300));
  EXPECT_TRUE(Commit(CommitOf("s", token, 1, "y")).ok());
  ASSERT_TRUE(Release("s", token).ok());
  Advance(absl::Milliseconds(1800));
  EXPECT_TRUE(absl::IsNotFound(store().GetSession(GetOf("s"), Soon()).status()));
  EXPECT_THAT(List(), ElementsAre("stays"));
  EXPECT_TRUE(store().CreateSession(CreateOf("s"), Soon()).ok());
}

TEST_P(SessionStoreTest, DefaultTtlHoldsForSessionsWithoutTheirOwn) {
  UseDefaultTtl(1);
  ASSERT_TRUE(Release("s", Lease("s")).ok());
  v1::CreateSessionRequest longer = CreateOf("longer");
  longer.set_ttl_seconds(100);
  ASSERT_TRUE(store().CreateSession(longer, Soon()).ok());
  EXPECT_EQ(Get("s").session().ttl_seconds(), 0);
  // The lease that was given back had a minute to go: the session stays for it.
  ASSERT_TRUE(store().CreateSession(CreateOf("short"), Soon()).ok());
  Advance(absl::Milliseconds(1100));
  EXPECT_TRUE(absl::IsNotFound(store().GetSession(GetOf("short"), Soon()).status()));
  EXPECT_THAT(List(), ElementsAre("longer", "s"));
}

TEST_P(SessionStoreTest, OfManyHoldersRacingExactlyOneWins) {
  for (int round = 0; round < 20; ++round) {
    const std::string id = absl::StrCat("s", round);
    std::atomic<int> num_granted = 0;
    std::atomic<int> num_busy = 0;
    {
      std::vector<std::jthread> threads;
      for (int t = 0; t < 8; ++t) {
        threads.emplace_back([&, t] {
          v1::AcquireLeaseRequest request = AcquireOf(id);
          request.set_holder(absl::StrCat("h", t));
          const absl::Status status = store().AcquireLease(request, Soon()).status();
          if (status.ok()) ++num_granted;
          if (ReasonOf(status) == "SESSION_BUSY") ++num_busy;
        });
      }
    }
    ASSERT_EQ(num_granted, 1);
    ASSERT_EQ(num_busy, 7);
  }
}

TEST_P(SessionStoreTest, CommitsOfManyThreadsAreDenseAndEachThereOnce) {
  constexpr int kThreads = 8;
  constexpr int kTurns = 25;
  std::atomic<int> num_failed = 0;
  {
    std::vector<std::jthread> threads;
    for (int t = 0; t < kThreads; ++t) {
      threads.emplace_back([&, t] {
        for (int i = 0; i < kTurns; ++i) {
          const std::string text = absl::StrCat("turn ", t, "/", i);
          v1::AcquireLeaseRequest acquire = AcquireOf("s");
          acquire.set_holder(absl::StrCat("h", t));
          absl::StatusOr<v1::AcquireLeaseResponse> lease;
          while (!(lease = store().AcquireLease(acquire, Soon())).ok()) {
            if (ReasonOf(lease.status()) != "SESSION_BUSY") break;
            std::this_thread::yield();
          }
          if (!lease.ok()) {
            ++num_failed;
            return;
          }
          v1::CommitTurnRequest commit =
              CommitOf("s", lease->lease_token(), lease->session().version(), text);
          commit.set_release(true);
          if (!Commit(commit).ok()) ++num_failed;
        }
      });
    }
  }
  EXPECT_EQ(num_failed, 0);
  const v1::GetSessionResponse history = Get("s");
  EXPECT_EQ(history.session().version(), kThreads * kTurns);
  std::set<std::string> questions;
  for (int i = 0; i < history.messages_size(); i += 2) {
    questions.insert(history.messages(i).content());
    EXPECT_EQ(history.messages(i + 1).content(), "answer to " + history.messages(i).content());
    EXPECT_EQ(history.token_ids(i), i / 2);  // the parent version of each
  }
  EXPECT_EQ(questions.size(), static_cast<size_t>(kThreads * kTurns));
}

TEST_P(SessionStoreTest, CommitsRacingUnderOneLeaseMoveTheHeadOnce) {
  const uint64_t token = Lease("s");
  std::atomic<int> num_committed = 0;
  {
    std::vector<std::jthread> threads;
    for (int t = 0; t < 8; ++t) {
      threads.emplace_back([&, t] {
        if (Commit(CommitOf("s", token, 0, absl::StrCat("turn ", t))).ok()) ++num_committed;
      });
    }
  }
  EXPECT_EQ(num_committed, 1);
  EXPECT_EQ(Get("s").session().version(), 1u);
  EXPECT_EQ(Get("s").messages_size(), 2);
}

INSTANTIATE_TEST_SUITE_P(Stores, SessionStoreTest, ::testing::Values(Kind::kInMemory, Kind::kRedis),
                         [](const auto& info) {
                           return info.param == Kind::kInMemory ? "InMemory" : "Redis";
                         });

}  // namespace
}  // namespace mneme::memory
