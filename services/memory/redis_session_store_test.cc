// What only the Redis store has: its keys, encryption, and an index that heals itself.
#include "services/memory/redis_session_store.h"

#include <filesystem>
#include <set>
#include <thread>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/config/config.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "services/memory/store_fixture.h"
#include "services/memory/sweep_lock.h"
#include "tests/support/time_limit.h"

namespace mneme::memory {
namespace {

using ::mneme::testing::RedisServer;
using ::testing::ContainsRegex;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::UnorderedElementsAre;

constexpr char kIndex[] = "mneme:2:{t}:sessions";

class RedisSessionStoreTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    auto started = RedisServer::Start({.append_fsync = "no"});
    ASSERT_TRUE(started.ok()) << started.status();
    server_ = *std::move(started);
  }
  static void TearDownTestSuite() { server_.reset(); }

  SessionStore& store() { return under_test_.store(); }

  redis::Reply Redis(const redis::Command& command) {
    const auto reply = under_test_.client().Run(command);
    EXPECT_TRUE(reply.ok()) << reply.status();
    return reply.value_or(redis::Reply());
  }

  std::vector<std::string> Keys(const std::string& pattern) {
    std::vector<std::string> keys;
    const redis::Reply reply = Redis({"KEYS", pattern});
    for (const auto& key : reply.elements()) keys.push_back(key.text());
    return keys;
  }

  // Commits one turn under a request id, so that a session has all its keys.
  void FillSession(const std::string& session_id, uint64_t parent = 0) {
    const auto lease = store().AcquireLease(AcquireOf(session_id), Soon());
    ASSERT_TRUE(lease.ok()) << lease.status();
    v1::CommitTurnRequest commit =
        CommitOf(session_id, lease->lease_token(), parent, "x", absl::StrCat("r", parent));
    commit.set_release(true);
    ASSERT_TRUE(store().CommitTurn(commit, Soon()).ok());
  }

  // Returns a key of the family of session `s`.
  std::string KeyOf(const std::string& name, const std::string& session_id = "s") {
    const std::string family = Redis({"HGET", "mneme:2:{t}:families", session_id}).text();
    EXPECT_NE(family, "");
    return absl::StrCat("mneme:2:{t/", family, "}:", name);
  }

  void Delete(const std::string& session_id) {
    v1::DeleteSessionRequest request;
    request.set_tenant("t");
    request.set_session_id(session_id);
    EXPECT_TRUE(store().DeleteSession(request, Soon()).ok());
  }

  void Sweep() {
    const absl::Status status = store().Sweep(Soon());
    EXPECT_TRUE(status.ok()) << status;
  }

  void FillFork(const std::string& session_id, const std::string& new_id) {
    v1::ForkSessionRequest fork;
    fork.set_tenant("t");
    fork.set_session_id(session_id);
    fork.set_new_session_id(new_id);
    ASSERT_TRUE(store().ForkSession(fork, Soon()).ok());
  }

  absl::StatusOr<int64_t> UsedMemory() {
    const std::string info = Redis({"INFO", "memory"}).text();
    const size_t at = info.find("used_memory:") + 12;
    int64_t bytes = 0;
    if (!absl::SimpleAtoi(info.substr(at, info.find('\r', at) - at), &bytes)) {
      return absl::InternalError(info);
    }
    return bytes;
  }

  // The bytes of all of Redis' append-only files.
  static std::string AppendOnlyFile() {
    std::string all;
    for (const auto& entry :
         std::filesystem::directory_iterator(server_->folder() + "/appendonlydir")) {
      all += config::ReadFile(entry.path().string()).value_or("");
    }
    return all;
  }

  // Everything that Redis holds, keys and values, in one text.
  std::string All() {
    std::string all;
    for (const std::string& key : Keys("*")) {
      const std::string type = Redis({"TYPE", key}).text();
      absl::StrAppend(&all, key, "\n");
      redis::Reply value;
      if (type == "string") value = Redis({"GET", key});
      if (type == "hash") value = Redis({"HGETALL", key});
      if (type == "list") value = Redis({"LRANGE", key, "0", "-1"});
      if (type == "zset") value = Redis({"ZRANGE", key, "0", "-1"});
      absl::StrAppend(&all, value.text(), "\n");
      for (const auto& element : value.elements()) absl::StrAppend(&all, element.text(), "\n");
    }
    return all;
  }

  std::vector<std::string> List() {
    v1::ListSessionsRequest request;
    request.set_tenant("t");
    request.set_page_size(100);
    const auto page = store().ListSessions(request, Soon());
    EXPECT_TRUE(page.ok()) << page.status();
    std::vector<std::string> ids;
    for (const auto& session : page->sessions()) ids.push_back(session.session_id());
    return ids;
  }

  static inline std::unique_ptr<RedisServer> server_;
  RedisUnderTest under_test_{server_->address()};
};

TEST_F(RedisSessionStoreTest, AllKeysOfAFamilyAreOfOneSlotAndBeginWithTheVersion) {
  const StagedTurn turn = CommitWithSnapshot(store(), "s", {PayloadOf("a")});
  ASSERT_NE(turn.version, 0u);
  FillSession("s", turn.version);
  const auto lease = store().AcquireLease(AcquireOf("s"), Soon());
  ASSERT_TRUE(Stage(store(), "s", lease->lease_token(), {PayloadOf("b")}).ok());
  const std::vector<std::string> keys = Keys("*");
  std::set<std::string> slots;
  std::vector<std::string> kinds;
  for (const std::string& key : keys) {
    EXPECT_TRUE(absl::StartsWith(key, "mneme:2:")) << key;
    if (!absl::StartsWith(key, "mneme:2:{t/")) continue;
    // Redis Cluster hashes what is between the first braces only.
    slots.insert(key.substr(key.find('{'), key.find('}') - key.find('{')));
    kinds.push_back(key.substr(key.find('}') + 2, 1));
  }
  EXPECT_EQ(slots.size(), 1u);
  EXPECT_THAT(kinds, UnorderedElementsAre("s", "v", "r", "b", "f", "c", "c", "p"));
  EXPECT_EQ(keys.size(), kinds.size() + 4);  // tenants, and three of the tenant
}

TEST_F(RedisSessionStoreTest, EveryKeyOfASessionWithATtlHasOne) {
  v1::CreateSessionRequest request = CreateOf("s");
  request.set_ttl_seconds(1000);
  ASSERT_TRUE(store().CreateSession(request, Soon()).ok());
  FillSession("s");
  std::set<int64_t> expiries;
  for (const char* name : {"s:s", "v:s", "r:s"}) {
    expiries.insert(*Redis({"PEXPIRETIME", KeyOf(name)}).Integer());
  }
  ASSERT_EQ(expiries.size(), 1u);
  const int64_t left_ms = *expiries.begin() - absl::ToUnixMillis(absl::Now());
  EXPECT_GT(left_ms, 900'000);
  EXPECT_LE(left_ms, 1'000'000);
}

TEST_F(RedisSessionStoreTest, DeletedSessionLeavesNothingButTheTenant) {
  ASSERT_NE(CommitWithSnapshot(store(), "s", {PayloadOf("a"), PayloadOf("b")}).version, 0u);
  Delete("s");
  EXPECT_THAT(Keys("*"), ElementsAre("mneme:2:tenants"));
}

TEST_F(RedisSessionStoreTest, TokensRiseThoughRedisClockWentBack) {
  FillSession("s");
  // The last lease was granted by a clock that is an hour ahead of this one.
  const int64_t ahead = absl::ToUnixMicros(absl::Now() + absl::Hours(1));
  Redis({"HSET", KeyOf("f"), "fence", absl::StrCat(ahead)});
  const auto lease = store().AcquireLease(AcquireOf("s"), Soon());
  ASSERT_TRUE(lease.ok()) << lease.status();
  EXPECT_EQ(lease->lease_token(), static_cast<uint64_t>(ahead + 1));
  EXPECT_TRUE(store().CommitTurn(CommitOf("s", lease->lease_token(), 1, "x"), Soon()).ok());
}

TEST_F(RedisSessionStoreTest, NothingThatUsersWroteCanBeReadInRedis) {
  v1::CreateSessionRequest create = CreateOf("s");
  create.set_title("title-of-the-user");
  ASSERT_TRUE(store().CreateSession(create, Soon()).ok());
  const std::string payload = PayloadOf("payload-of-the-user");
  const StagedTurn turn = CommitWithSnapshot(store(), "s", {payload});
  ASSERT_NE(turn.version, 0u);
  const auto lease = store().AcquireLease(AcquireOf("s"), Soon());
  ASSERT_TRUE(
      store().CommitTurn(CommitOf("s", lease->lease_token(), 1, "words-of-the-user"), Soon()).ok());
  v1::ForkSessionRequest fork;
  fork.set_tenant("t");
  fork.set_session_id("s");
  fork.set_new_session_id("f");
  ASSERT_TRUE(store().ForkSession(fork, Soon()).ok());
  const std::string all = All();
  EXPECT_GT(all.size(), payload.size());
  EXPECT_THAT(all, Not(HasSubstr("of-the-user")));
  EXPECT_THAT(all, Not(HasSubstr("fingerprint-of-m")));
  // Nor can somebody who guesses a chunk find its digest.
  const std::string digest = turn.manifest.chunks(0).digest();
  EXPECT_THAT(all, Not(HasSubstr(digest)));
  EXPECT_THAT(all, Not(HasSubstr(absl::BytesToHexString(digest))));
}

TEST_F(RedisSessionStoreTest, ValueMovedToAnotherPlaceIsNotTaken) {
  FillSession("s");
  FillSession("s", 1);
  const redis::Reply ids = Redis({"LRANGE", KeyOf("v:s"), "0", "-1"});
  ASSERT_EQ(ids.elements().size(), 2u);
  const std::string first = Redis({"HGET", KeyOf("b"), "t" + ids.elements()[0].text()}).text();
  Redis({"HSET", KeyOf("b"), "t" + ids.elements()[1].text(), first});
  EXPECT_EQ(store().GetSession(GetOf("s"), Soon()).status().code(), absl::StatusCode::kDataLoss);
}

TEST_F(RedisSessionStoreTest, DamagedChunkIsNamedAndTheTextStaysReadable) {
  const StagedTurn turn =
      CommitWithSnapshot(store(), "s", {PayloadOf("a"), PayloadOf("b"), PayloadOf("c")});
  ASSERT_EQ(Keys(KeyOf("c:*")).size(), 3u);
  // Which of the keys is chunk 1: the one whose loss is told of as chunk 1.
  for (const std::string& key : Keys(KeyOf("c:*"))) {
    const std::string sealed = Redis({"GET", key}).text();
    std::string flipped = sealed;
    flipped[10] ^= 1;
    Redis({"SET", key, flipped});
    const absl::Status status = Fetch(store(), "s").status();
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
    EXPECT_THAT(std::string(status.message()), ContainsRegex("chunk [012]: .*changed"));
    // A damaged chunk is removed, so that whoever sends it again heals the snapshot.
    EXPECT_EQ(*Redis({"EXISTS", key}).Integer(), 0);
    const absl::Status gone = Fetch(store(), "s").status();
    EXPECT_EQ(gone.code(), absl::StatusCode::kDataLoss);
    EXPECT_THAT(std::string(gone.message()), ContainsRegex("chunk [012]: Redis has not got it"));
    EXPECT_EQ(store().GetSession(GetOf("s"), Soon())->messages_size(), 2);
    Redis({"SET", key, sealed});
  }
  EXPECT_TRUE(Fetch(store(), "s").ok());
}

TEST_F(RedisSessionStoreTest, ChunkLostBehindOurBackComesBackWithTheTurnThatSendsItAgain) {
  const StagedTurn first = CommitWithSnapshot(store(), "s", {PayloadOf("a")});
  for (const std::string& key : Keys(KeyOf("c:*"))) Redis({"DEL", key});
  // The parent's chunk, listed and not sent: refused when it is staged.
  const auto lease = store().AcquireLease(AcquireOf("s"), Soon());
  const auto listed = Stage(store(), "s", lease->lease_token(), {}, first.manifest);
  EXPECT_EQ(listed.status().code(), absl::StatusCode::kInvalidArgument);
  const auto sent = Stage(store(), "s", lease->lease_token(), {PayloadOf("a")});
  ASSERT_TRUE(sent.ok()) << sent.status();
  v1::CommitTurnRequest commit = CommitOf("s", lease->lease_token(), 1, "x");
  commit.set_snapshot_id(sent->snapshot_id());
  EXPECT_EQ(store().CommitTurn(commit, Soon())->snapshot_lost_reason(), "");
  EXPECT_TRUE(Fetch(store(), "s", 1).ok());
  for (const std::string& key : Keys(KeyOf("c:*"))) {
    EXPECT_EQ(*Redis({"PTTL", key}).Integer(), -1) << "a listed chunk expires";
  }
}

TEST_F(RedisSessionStoreTest, StagedDataExpiresAndListedDataDoesNot) {
  const StagedTurn turn = CommitWithSnapshot(store(), "s", {PayloadOf("a")});
  const auto lease = store().AcquireLease(AcquireOf("s"), Soon());
  ASSERT_TRUE(Stage(store(), "s", lease->lease_token(), {PayloadOf("b")}, turn.manifest).ok());
  int num_expiring = 0;
  for (const std::string& key : Keys("mneme:2:{t/*")) {
    if (*Redis({"PTTL", key}).Integer() > 0) {
      ++num_expiring;
      EXPECT_THAT(key, ContainsRegex("}:[cp]:"));
    }
  }
  EXPECT_EQ(num_expiring, 2);  // chunk b and the staged snapshot; chunk a is listed by turn 1
}

TEST_F(RedisSessionStoreTest, SessionDeletedAndMadeAgainHasNothingOfTheOldOneThoughForksLive) {
  CommitWithSnapshot(store(), "s", {PayloadOf("a")});
  v1::ForkSessionRequest fork;
  fork.set_tenant("t");
  fork.set_session_id("s");
  fork.set_new_session_id("f");
  ASSERT_TRUE(store().ForkSession(fork, Soon()).ok());
  const std::string old_family = KeyOf("f", "f");
  Delete("s");
  ASSERT_TRUE(store().CreateSession(CreateOf("s"), Soon()).ok());
  EXPECT_NE(KeyOf("f", "s"), old_family);
  EXPECT_EQ(store().GetSession(GetOf("s"), Soon())->messages_size(), 0);
  EXPECT_TRUE(absl::IsNotFound(Fetch(store(), "s").status()));
  EXPECT_TRUE(Fetch(store(), "f").ok());
}

TEST_F(RedisSessionStoreTest, ReplicaThatRemembersAnOldFamilyFindsTheNewOne) {
  RedisSessionStore other(under_test_.client(), under_test_.keys(), {}, under_test_.metrics());
  FillSession("s");
  ASSERT_TRUE(other.GetSession(GetOf("s"), Soon()).ok());
  Delete("s");
  EXPECT_TRUE(absl::IsNotFound(other.GetSession(GetOf("s"), Soon()).status()));
  FillSession("s");
  EXPECT_EQ(other.GetSession(GetOf("s"), Soon())->messages_size(), 2);
}

TEST_F(RedisSessionStoreTest, EntryLeftByACrashBetweenTheTwoStepsOfACreationIsUsed) {
  // The first step of a creation: the tenant knows of the session, its family does not exist.
  Redis({"HSET", "mneme:2:{t}:families", "s", "00112233445566778899"});
  Redis({"ZADD", kIndex, "1", "s"});
  EXPECT_TRUE(absl::IsNotFound(store().GetSession(GetOf("s"), Soon()).status()));
  FillSession("s");
  EXPECT_EQ(store().GetSession(GetOf("s"), Soon())->messages_size(), 2);
  EXPECT_THAT(List(), ElementsAre("s"));
}

TEST_F(RedisSessionStoreTest, EntryLeftByACrashBetweenTheTwoStepsOfADeletionIsSweptAndHarmless) {
  FillSession("s");
  Redis({"DEL", KeyOf("s:s"), KeyOf("v:s"), KeyOf("r:s")});
  EXPECT_THAT(List(), IsEmpty());
  Redis({"ZADD", kIndex, "1", "s"});
  Sweep();
  EXPECT_THAT(Keys("*"), ElementsAre("mneme:2:tenants"));
}

TEST_F(RedisSessionStoreTest, AfterEverythingIsDeletedAndSweptOnlyTheTenantListIsLeft) {
  for (const char* id : {"a", "b", "c"}) {
    CommitWithSnapshot(store(), id, {PayloadOf(id), PayloadOf("x")});
    v1::ForkSessionRequest fork;
    fork.set_tenant("t");
    fork.set_session_id(id);
    fork.set_new_session_id(absl::StrCat(id, "-fork"));
    ASSERT_TRUE(store().ForkSession(fork, Soon()).ok());
    // Staged and never committed.
    const auto lease = store().AcquireLease(AcquireOf(id), Soon());
    ASSERT_TRUE(Stage(store(), id, lease->lease_token(), {PayloadOf("y")}).ok());
  }
  for (const char* id : {"a", "b", "c"}) {
    Delete(id);
    Delete(absl::StrCat(id, "-fork"));
  }
  Sweep();
  EXPECT_THAT(Keys("*"), ElementsAre("mneme:2:tenants"));
}

TEST_F(RedisSessionStoreTest, ExpiredSessionsFamilyIsSwept) {
  v1::CreateSessionRequest request = CreateOf("s");
  request.set_ttl_seconds(1);
  ASSERT_TRUE(store().CreateSession(request, Soon()).ok());
  CommitWithSnapshot(store(), "s", {PayloadOf("a")});
  const std::string pattern = KeyOf("*");
  Redis({"PEXPIRE", KeyOf("s:s"), "1"});
  Redis({"PEXPIRE", KeyOf("v:s"), "1"});
  absl::SleepFor(absl::Milliseconds(5));
  Sweep();
  EXPECT_THAT(Keys(pattern), IsEmpty());
  Redis({"ZADD", kIndex, "1", "s"});  // as if it had been used long ago
  Sweep();
  EXPECT_THAT(Keys("*"), ElementsAre("mneme:2:tenants"));
}

TEST_F(RedisSessionStoreTest, ForkTakesNextToNoMemory) {
  CommitWithSnapshot(store(), "s", {PayloadOf("a", 500'000)});
  for (uint64_t version = 1; version < 100; ++version) FillSession("s", version);
  const int64_t before = *UsedMemory();
  // Buffers of connections come and go by some 10 KiB: many forks, so that they do not matter.
  constexpr int kForks = 100;
  for (int i = 0; i < kForks; ++i) FillFork("s", absl::StrCat("f", i));
  EXPECT_LT((*UsedMemory() - before) / kForks, 8 << 10);
}

TEST_F(RedisSessionStoreTest, SweepRemovesWhatARewindLeftAndNothingElse) {
  const StagedTurn first = CommitWithSnapshot(store(), "s", {PayloadOf("a")});
  const StagedTurn second =
      CommitWithSnapshot(store(), "s", {PayloadOf("b")}, first.manifest, first.version);
  ASSERT_EQ(second.version, 2u);
  v1::RewindSessionRequest rewind;
  rewind.set_tenant("t");
  rewind.set_session_id("s");
  rewind.set_version(1);
  ASSERT_TRUE(store().RewindSession(rewind, Soon()).ok());
  // A snapshot that waits for its turn lists b: it stays until that is over.
  const auto lease = store().AcquireLease(AcquireOf("s"), Soon());
  const auto staged = Stage(store(), "s", lease->lease_token(), {}, second.manifest);
  ASSERT_TRUE(staged.ok()) << staged.status();
  Sweep();
  EXPECT_EQ(Keys(KeyOf("c:*")).size(), 2u);
  Redis({"DEL", KeyOf(absl::StrCat("p:", staged->snapshot_id()))});
  Sweep();
  EXPECT_EQ(Keys(KeyOf("c:*")).size(), 1u);
  EXPECT_EQ(Redis({"HKEYS", KeyOf("b")}).elements().size(), 3u);
  EXPECT_EQ(Redis({"HGET", KeyOf("f"), "kv"}).text(), absl::StrCat(PayloadOf("a").size()));
  EXPECT_EQ(Redis({"HGET", "mneme:2:{t}:usage", "total"}).text(),
            absl::StrCat(PayloadOf("a").size()));
  EXPECT_TRUE(Fetch(store(), "s").ok());
}

TEST_F(RedisSessionStoreTest, BeyondItsBudgetTheLeastUsedSnapshotsGoAndNeverText) {
  StoreOptions options;
  options.redis_budget_bytes = 2500;
  RedisSessionStore bounded(under_test_.client(), under_test_.keys(), options,
                            under_test_.metrics());
  for (const char* id : {"pinned", "leased", "old", "middle", "new"}) {
    ASSERT_EQ(CommitWithSnapshot(bounded, id, {PayloadOf(id)}).version, 1u);
  }
  v1::UpdateSessionRequest pin;
  pin.set_tenant("t");
  pin.set_session_id("pinned");
  pin.set_pinned(true);
  ASSERT_TRUE(bounded.UpdateSession(pin, Soon()).ok());
  ASSERT_TRUE(bounded.AcquireLease(AcquireOf("leased"), Soon()).ok());
  ASSERT_TRUE(bounded.AcquireLease(AcquireOf("middle"), Soon()).ok());
  // Least used first: pinned (stays), old, new, leased and middle (in use).
  ASSERT_TRUE(bounded.Sweep(Soon()).ok());
  for (const char* id : {"old", "new"}) {
    EXPECT_TRUE(absl::IsNotFound(Fetch(bounded, id).status())) << id;
    EXPECT_EQ(bounded.GetSession(GetOf(id), Soon())->messages_size(), 2);
    const auto lease = bounded.AcquireLease(AcquireOf(id), Soon());
    ASSERT_TRUE(lease.ok()) << lease.status();
    EXPECT_EQ(lease->snapshot_version(), 0u);
    EXPECT_EQ(lease->session().kv_bytes(), 0);
    v1::DescribeSessionRequest describe;
    describe.set_tenant("t");
    describe.set_session_id(id);
    EXPECT_EQ(bounded.DescribeSession(describe, Soon())->versions(0).snapshot_tokens(), 0u);
  }
  for (const char* id : {"pinned", "leased", "middle"}) {
    EXPECT_TRUE(Fetch(bounded, id).ok()) << id;
  }
  EXPECT_EQ(Redis({"HGET", "mneme:2:{t}:usage", "total"}).text(), "3000");
  EXPECT_EQ(Keys("*:c:*").size(), 3u);
}

TEST_F(RedisSessionStoreTest, SweepOfAFamilyThatChangedMeanwhileRemovesNothing) {
  const StagedTurn first = CommitWithSnapshot(store(), "s", {PayloadOf("a")});
  ASSERT_NE(first.version, 0u);
  const RedisScripts scripts;
  const std::string registry = KeyOf("f");
  const std::string chunk = Keys(KeyOf("c:*"))[0];
  const std::string epoch = Redis({"HGET", registry, "epoch"}).text();
  ASSERT_TRUE(store().AcquireLease(AcquireOf("s"), Soon()).ok());
  FillFork("s", "f");
  const auto late = under_test_.client().Eval(scripts.sweep, {registry, KeyOf("b")},
                                              {"*", epoch, chunk.substr(chunk.find("c:"))}, Soon());
  ASSERT_TRUE(late.ok()) << late.status();
  EXPECT_EQ(late->elements()[0].text(), "moved");
  EXPECT_TRUE(Fetch(store(), "s").ok());
}

TEST_F(RedisSessionStoreTest, ForgottenTenantsTenThousandSessionsGoWithinASecond) {
  constexpr int kSessions = 10'000;
  constexpr int kThreads = 4;
  {
    std::vector<std::jthread> threads;
    for (int t = 0; t < kThreads; ++t) {
      threads.emplace_back([this, t] {
        for (int i = t; i < kSessions; i += kThreads) {
          v1::CreateSessionRequest request = CreateOf(absl::StrCat("s", i));
          request.set_title("title");
          EXPECT_TRUE(store().CreateSession(request, Soon()).ok());
        }
      });
    }
  }
  CommitWithSnapshot(store(), "s1", {PayloadOf("a")});
  ASSERT_TRUE(store().CreateSession(CreateOf("other", "t2"), Soon()).ok());
  const std::string wrapped = Redis({"HGET", "mneme:2:tenants", "t"}).text();
  ASSERT_NE(wrapped, "");
  v1::ForgetTenantRequest request;
  request.set_tenant("t");
  const absl::Time start = absl::Now();
  const auto forgotten = store().ForgetTenant(request, Soon());
  const absl::Duration time = absl::Now() - start;
  ASSERT_TRUE(forgotten.ok()) << forgotten.status();
  EXPECT_EQ(forgotten->sessions(), kSessions);
  EXPECT_LE(time, testing::TimeLimit(absl::Seconds(1)));
  RecordProperty("milliseconds", static_cast<int>(absl::ToInt64Milliseconds(time)));
  EXPECT_THAT(Keys("*{t/*"), IsEmpty());
  EXPECT_THAT(Keys("*{t}*"), IsEmpty());
  EXPECT_TRUE(Redis({"HGET", "mneme:2:tenants", "t"}).is_nil());
  EXPECT_TRUE(store().GetSession(GetOf("other", "t2"), Soon()).ok());
  // The tenant can come back, with another key and nothing else.
  EXPECT_TRUE(absl::IsNotFound(store().GetSession(GetOf("s1"), Soon()).status()));
  FillSession("s1");
  EXPECT_EQ(store().GetSession(GetOf("s1"), Soon())->messages_size(), 2);
  EXPECT_NE(Redis({"HGET", "mneme:2:tenants", "t"}).text(), wrapped);
  // The append-only file loses the key too.
  const absl::Time deadline = absl::Now() + testing::TimeLimit(absl::Seconds(10));
  while (AppendOnlyFile().find(wrapped) != std::string::npos && absl::Now() < deadline) {
    absl::SleepFor(absl::Milliseconds(20));
    Sweep();  // asks for a rewrite again where one was under way
  }
  EXPECT_EQ(AppendOnlyFile().find(wrapped), std::string::npos);
}

TEST_F(RedisSessionStoreTest, ValuesOfAForgottenTenantThatComeBackCannotBeRead) {
  ASSERT_NE(CommitWithSnapshot(store(), "s", {PayloadOf("a")}).version, 0u);
  const std::string wrapped = Redis({"HGET", "mneme:2:tenants", "t"}).text();
  std::vector<std::pair<std::string, std::string>> copies;
  for (const char* const pattern : {"*{t/*", "*{t}*"}) {
    for (const std::string& key : Keys(pattern))
      copies.emplace_back(key, Redis({"DUMP", key}).text());
  }
  v1::ForgetTenantRequest forget;
  forget.set_tenant("t");
  ASSERT_TRUE(store().ForgetTenant(forget, Soon()).ok());
  // Somebody has kept every value, and has the master key.
  for (const auto& [key, copy] : copies) {
    ASSERT_EQ(Redis({"RESTORE", key, "0", copy}).text(), "OK");
  }
  const auto expect_unreadable = [&](SessionStore& reader) {
    EXPECT_FALSE(reader.GetSession(GetOf("s"), Soon()).ok());
    EXPECT_FALSE(Fetch(reader, "s").ok());
  };
  TenantKeys other_keys(under_test_.client(), under_test_.master_key(), "");
  RedisSessionStore other(under_test_.client(), other_keys, {}, under_test_.metrics());
  expect_unreadable(other);
  expect_unreadable(store());
  // Nor does the key help that the tenant gets when it comes back.
  ASSERT_TRUE(store().CreateSession(CreateOf("s2"), Soon()).ok());
  expect_unreadable(other);
  expect_unreadable(store());
  // It is the wrapped key alone that is missing.
  Redis({"HSET", "mneme:2:tenants", "t", wrapped});
  TenantKeys old_keys(under_test_.client(), under_test_.master_key(), "");
  RedisSessionStore with_it(under_test_.client(), old_keys, {}, under_test_.metrics());
  EXPECT_TRUE(with_it.GetSession(GetOf("s"), Soon()).ok());
  EXPECT_TRUE(Fetch(with_it, "s").ok());
}

TEST_F(RedisSessionStoreTest, ReplicaThatRemembersADestroyedKeyDoesNotUseIt) {
  TenantKeys other_keys(under_test_.client(), under_test_.master_key(), "");
  RedisSessionStore other(under_test_.client(), other_keys, {}, under_test_.metrics());
  FillSession("s");
  ASSERT_TRUE(other.GetSession(GetOf("s"), Soon()).ok());
  v1::ForgetTenantRequest request;
  request.set_tenant("t");
  ASSERT_TRUE(store().ForgetTenant(request, Soon()).ok());
  FillSession("s");
  ASSERT_TRUE(store().CreateSession(CreateOf("s2"), Soon()).ok());
  EXPECT_EQ(other.GetSession(GetOf("s"), Soon())->messages_size(), 2);
  v1::ListSessionsRequest list;
  list.set_tenant("t");
  list.set_page_size(10);
  EXPECT_EQ(other.ListSessions(list, Soon())->sessions_size(), 2);
}

TEST_F(RedisSessionStoreTest, TenantWhoseForgettingWasInterruptedIsForgottenByTheSweeper) {
  CommitWithSnapshot(store(), "s", {PayloadOf("a")});
  Redis({"HSET", "mneme:2:tenants", "t", ""});  // the first step, and then the process died
  TenantKeys other_keys(under_test_.client(), under_test_.master_key(), "");
  RedisSessionStore other(under_test_.client(), other_keys, {}, under_test_.metrics());
  EXPECT_TRUE(absl::IsNotFound(other.GetSession(GetOf("s"), Soon()).status()));
  EXPECT_EQ(other.CreateSession(CreateOf("s"), Soon()).status().code(),
            absl::StatusCode::kUnavailable);
  ASSERT_TRUE(other.Sweep(Soon()).ok());
  EXPECT_THAT(Keys("*"), IsEmpty());
  EXPECT_TRUE(other.CreateSession(CreateOf("s"), Soon()).ok());
}

TEST_F(RedisSessionStoreTest, OtherMasterKeyIsToldByTheNameOfItsFile) {
  FillSession("s");
  TenantKeys wrong(under_test_.client(), crypto::Key::Random(), "/etc/the.key");
  RedisSessionStore other(under_test_.client(), wrong, {}, under_test_.metrics());
  for (const absl::Status& status : {wrong.Check(Soon()), other.CheckReady(Soon()),
                                     other.GetSession(GetOf("s"), Soon()).status(),
                                     other.CreateSession(CreateOf("s2"), Soon()).status()}) {
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("/etc/the.key"));
  }
}

TEST_F(RedisSessionStoreTest, FullRedisRefusesAStagingWholeAndTakesItLater) {
  FillSession("s");
  const auto lease = store().AcquireLease(AcquireOf("s"), Soon());
  std::vector<std::string> payloads;
  for (int i = 0; i < 24; ++i) {
    payloads.push_back(PayloadOf(absl::StrCat("large ", i), 1 << 20));
  }
  const int64_t used = *UsedMemory();
  Redis({"CONFIG", "SET", "maxmemory", absl::StrCat(used + (12 << 20))});
  const auto refused = Stage(store(), "s", lease->lease_token(), payloads);
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted) << refused.status();
  EXPECT_THAT(Keys(KeyOf("c:*")), IsEmpty());
  EXPECT_THAT(Keys(KeyOf("p:*")), IsEmpty());
  // There is room for the turn itself.
  EXPECT_TRUE(store().CommitTurn(CommitOf("s", lease->lease_token(), 1, "x"), Soon()).ok());
  Redis({"CONFIG", "SET", "maxmemory", "0"});
  const auto staged = Stage(store(), "s", lease->lease_token(), payloads);
  ASSERT_TRUE(staged.ok()) << staged.status();
  EXPECT_EQ(staged->bytes_stored(), 24 << 20);
  v1::CommitTurnRequest commit = CommitOf("s", lease->lease_token(), 2, "y");
  commit.set_snapshot_id(staged->snapshot_id());
  EXPECT_EQ(store().CommitTurn(commit, Soon())->snapshot_lost_reason(), "");
  EXPECT_EQ(Fetch(store(), "s")->payloads, payloads);
}

TEST_F(RedisSessionStoreTest, IndexEntryWithoutASessionIsDroppedWhenItIsNotNew) {
  FillSession("s");
  Redis({"ZADD", kIndex, "1", "gone"});
  const int64_t now = absl::ToUnixMicros(absl::Now());
  Redis({"ZADD", kIndex, absl::StrCat(now), "being-made"});
  EXPECT_THAT(List(), ElementsAre("s"));
  EXPECT_TRUE(Redis({"ZSCORE", kIndex, "gone"}).is_nil());
  EXPECT_FALSE(Redis({"ZSCORE", kIndex, "being-made"}).is_nil());
}

TEST_F(RedisSessionStoreTest, SessionMissingFromTheIndexComesBackWithItsNextUse) {
  FillSession("s");
  Redis({"DEL", kIndex});
  EXPECT_THAT(List(), IsEmpty());
  ASSERT_TRUE(store().AcquireLease(AcquireOf("s"), Soon()).ok());
  EXPECT_THAT(List(), ElementsAre("s"));
}

TEST_F(RedisSessionStoreTest, CreationsKeepTheIndexFreeOfDeadEntriesWithoutAnyListing) {
  for (int i = 0; i < 100; ++i) Redis({"ZADD", kIndex, "1", absl::StrCat("gone", i)});
  for (int i = 0; i < 200; ++i) {
    const std::string id = absl::StrCat("s", i);
    ASSERT_TRUE(store().CreateSession(CreateOf(id), Soon()).ok());
  }
  EXPECT_LT(*Redis({"ZCOUNT", kIndex, "-inf", "100"}).Integer(), 60);
}

TEST_F(RedisSessionStoreTest, DamagedSessionIsDataLossAndNotAShorterHistory) {
  FillSession("s");
  Redis({"DEL", KeyOf("v:s")});
  const absl::Status status = store().GetSession(GetOf("s"), Soon()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()), HasSubstr("noeviction"));
  v1::AcquireLeaseRequest acquire = AcquireOf("s");
  acquire.set_with_history(true);
  EXPECT_EQ(store().AcquireLease(acquire, Soon()).status().code(), absl::StatusCode::kDataLoss);
}

TEST_F(RedisSessionStoreTest, FullRedisRefusesWritesAndStillDeletes) {
  FillSession("s");
  Redis({"CONFIG", "SET", "maxmemory", "1"});
  EXPECT_EQ(store().CreateSession(CreateOf("new"), Soon()).status().code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(store().AcquireLease(AcquireOf("s"), Soon()).status().code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(store().GetSession(GetOf("s"), Soon())->messages_size(), 2);
  Delete("s");
  Redis({"CONFIG", "SET", "maxmemory", "0"});
  EXPECT_TRUE(store().CreateSession(CreateOf("new"), Soon()).ok());
}

TEST_F(RedisSessionStoreTest, SweeperThatDiedKeepsTheOthersFromSweepingForSeconds) {
  FillSession("s");
  const std::string orphan = KeyOf("c:0123456789abcdef0123456789abcdef");
  Redis({"SET", orphan, "x"});
  Redis({"HSET", KeyOf("f"), "c:0123456789abcdef0123456789abcdef", "1"});
  // What a sweeper leaves that is killed while it sweeps: its lock, seen in the middle of a sweep.
  FamilyDirectory directory(under_test_.client(), under_test_.keys(), under_test_.errors());
  SweepLock dead(directory, "mneme:2:sweeping");
  ASSERT_EQ(*dead.Take(Soon()), true);
  Sweep();
  EXPECT_EQ(Redis({"EXISTS", orphan}).Integer().value_or(-1), 1) << "somebody else sweeps";
  const int64_t left_ms = Redis({"PTTL", "mneme:2:sweeping"}).Integer().value_or(-1);
  EXPECT_GT(left_ms, 0);
  EXPECT_LE(left_ms, 10'000);
  EXPECT_EQ(*SweepLock(directory, "mneme:2:sweeping").Take(Soon()), false);
  // One whose sweep goes on keeps it.
  Redis({"PEXPIRE", "mneme:2:sweeping", "9000"});
  absl::SleepFor(absl::Seconds(3));
  dead.Keep(Soon());
  EXPECT_GT(Redis({"PTTL", "mneme:2:sweeping"}).Integer().value_or(-1), 9'000);
  Redis({"UNLINK", "mneme:2:sweeping"});  // as its time runs out
  Sweep();
  EXPECT_EQ(Redis({"EXISTS", orphan}).Integer().value_or(-1), 0);
  EXPECT_EQ(Redis({"EXISTS", "mneme:2:sweeping"}).Integer().value_or(-1), 0);
}

}  // namespace
}  // namespace mneme::memory
