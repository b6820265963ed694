// What becomes of sessions when the store breaks under them: Redis stopped still, killed, full,
// without a key or with a changed byte, and the memory service killed. Each time no committed turn
// is lost, none is there twice, the caller is told, and the next turn's text is the undisturbed
// one.
#include <algorithm>
#include <thread>

#include "absl/strings/str_cat.h"
#include "tests/integration/own_redis_fixture.h"
#include "tests/support/environment.h"

namespace mneme::testing {
namespace {

using ::testing::HasSubstr;

const std::vector<std::string> kQuestions = {
    "Describe an old lighthouse on a cliff, its keeper and his dog.",
    "What does the keeper do when the storm comes?", "And the dog?", "How does it end?"};

// How long Redis stands still: MNEME_STOP_SECONDS, as `make soak` sets it, else long enough that
// the gateway stops waiting with its answer.
absl::Duration StopTime() { return absl::Seconds(NumberFrom("MNEME_STOP_SECONDS", 9)); }

class StoreFaultTest : public OwnRedisTest {
 protected:
  // Takes a turn and breaks something in the moment after its memory is in the store and before the
  // session's head moves: the gateway, who moves it, stands still meanwhile. False: the gateway was
  // faster, and the turn was committed before.
  static bool BreakBeforeHeadMoves(const gateway::v1::ChatRequest& request, const std::string& text,
                                   const std::function<void()>& fault, ChatReply* reply) {
    const size_t num_staged = KeysLike("mneme:2:*:p:*").size();
    bool hit = false;
    *reply = client_->Chat(request, absl::Minutes(2), [&](const std::string& so_far) {
      if (so_far != text) return;
      ASSERT_TRUE(up_->Signal("gateway", SIGSTOP).ok());
      hit =
          Becomes([&] { return KeysLike("mneme:2:*:p:*").size() > num_staged; }, absl::Seconds(3));
      if (hit) fault();
      ASSERT_TRUE(up_->Signal("gateway", SIGCONT).ok());
    });
    return hit;
  }

  // The session's next turn, its memory from the store: all of it but what is new.
  static void ExpectRestored(const std::string& session, const std::string& question,
                             const std::string& text) {
    const auto stored = StoredSession(*up_, session);
    ASSERT_TRUE(stored.ok()) << stored.status();
    ForgetHotMemory();
    const ChatReply reply = client_->ChatUntilCommitted(Turn(session, question));
    EXPECT_TRUE(reply.is_committed()) << reply.status;
    EXPECT_EQ(reply.text, text);
    EXPECT_EQ(reply.receipt.tier(), "redis");
    EXPECT_EQ(reply.receipt.restored_tokens(), stored->token_ids_size() - 1);
  }
};

TEST_F(StoreFaultTest, RedisThatStandsStillIsToldAndWhatWasAnsweredIsCommittedWhenItIsBack) {
  const std::vector<std::string> texts = Undisturbed(kQuestions, 40);
  const std::string session = NewSession();
  const std::string other = NewSession();
  ASSERT_EQ(client_->Chat(Turn(session, kQuestions[0], 40)).text, texts[0]);
  ASSERT_TRUE(client_->Chat(Turn(other, "Hello.")).is_committed());

  absl::Time stopped = absl::InfiniteFuture();
  ChatReply running;
  std::jthread client([&] {
    // In the middle of its answer.
    running =
        client_->Chat(Turn(session, kQuestions[1], 40), absl::Minutes(3), [&](const std::string&) {
          if (stopped != absl::InfiniteFuture()) return;
          redis_->Pause();
          stopped = absl::Now();
        });
  });
  ASSERT_TRUE(Becomes([&] { return stopped != absl::InfiniteFuture(); }));

  // Who needs no session is served meanwhile.
  gateway::v1::ChatRequest stateless = TurnOf("", "What is the capital of France?");
  stateless.clear_request_id();
  const ChatReply answered = client_->Chat(stateless);
  EXPECT_TRUE(answered.status.ok()) << answered.status;
  EXPECT_THAT(answered.text, HasSubstr("Paris"));
  // A turn that cannot get its session is told so, and nothing comes of it.
  const absl::Time asked = absl::Now();
  const ChatReply refused = client_->Chat(Turn(other, "Are you there?"));
  EXPECT_TRUE(absl::IsUnavailable(refused.status)) << refused.status;
  EXPECT_LT(absl::Now() - asked, TimeLimit(absl::Seconds(12)));
  EXPECT_EQ(refused.text, "");

  absl::SleepFor(stopped + StopTime() - absl::Now());
  redis_->Resume();
  client.join();
  // The answer was given to its end, and its receipt says whether it was stored by then.
  EXPECT_TRUE(running.status.ok()) << running.status;
  EXPECT_EQ(running.text, texts[1]);
  if (StopTime() >= absl::Seconds(60)) {
    EXPECT_FALSE(running.receipt.persisted());
  }
  EXPECT_EQ(running.receipt.persisted(), running.receipt.not_persisted_reason().empty());
  // It is stored by itself, once.
  EXPECT_TRUE(Becomes([&] { return VersionOf(session) == 2; }));
  ExpectStored(session, kQuestions, {texts[0], texts[1]});
  EXPECT_EQ(VersionOf(other), 1u);
  const ChatReply repeated = client_->Chat(Turn(session, kQuestions[1], 40));
  EXPECT_EQ(repeated.version, 2u) << "a repeated request is the committed turn";
  EXPECT_EQ(repeated.text, texts[1]);
  const ChatReply next = client_->ChatUntilCommitted(Turn(session, kQuestions[2], 40));
  EXPECT_EQ(next.text, texts[2]);
  EXPECT_EQ(next.version, 3u);
  ExpectStored(session, kQuestions, {texts[0], texts[1], texts[2]});
}

struct Break {
  const char* name;
  bool memory;
  bool redis;
};

class BreakInCommitTest : public StoreFaultTest, public ::testing::WithParamInterface<Break> {};

TEST_P(BreakInCommitTest,
       TurnIsCommittedOnceWithItsMemoryThoughItsPartsWereKilledBeforeTheHeadMoved) {
  const std::vector<std::string> texts = Undisturbed(kQuestions);
  const auto fault = [&] {
    pid_t memory_pid = 0;
    if (GetParam().memory) {
      memory_pid = up_->ServiceOf("memory")->pid();
      EXPECT_TRUE(up_->Signal("memory", SIGKILL).ok());
    }
    if (GetParam().redis) {
      redis_->Kill();
      EXPECT_TRUE(redis_->Restart().ok());
    }
    if (GetParam().memory) {
      EXPECT_TRUE(up_->WaitForRestart("memory", memory_pid).ok());
    }
  };
  bool hit = false;
  for (int attempt = 0; attempt < 5 && !hit; ++attempt) {
    const std::string session = NewSession();
    ASSERT_EQ(client_->ChatUntilCommitted(Turn(session, kQuestions[0])).text, texts[0]);
    ChatReply reply;
    hit = BreakBeforeHeadMoves(Turn(session, kQuestions[1]), texts[1], fault, &reply);
    EXPECT_TRUE(reply.is_committed())
        << reply.status << " " << reply.receipt.not_persisted_reason();
    EXPECT_EQ(reply.text, texts[1]);
    EXPECT_EQ(reply.version, 2u);
    EXPECT_EQ(reply.receipt.snapshot_lost_reason(), "");
    ExpectStored(session, kQuestions, {texts[0], texts[1]});
    ExpectRestored(session, kQuestions[2], texts[2]);
    ExpectStored(session, kQuestions, {texts[0], texts[1], texts[2]});
  }
  EXPECT_TRUE(hit) << "the gateway was always faster";
}

INSTANTIATE_TEST_SUITE_P(Parts, BreakInCommitTest,
                         ::testing::Values(Break{"Memory", true, false},
                                           Break{"Redis", false, true}, Break{"Both", true, true}),
                         [](const auto& info) { return std::string(info.param.name); });

TEST_F(StoreFaultTest, RedisKilledAtAnyMomentOfACommitCommitsTheTurnOnce) {
  const std::vector<std::string> texts = Undisturbed(kQuestions);
  const std::string session = NewSession();
  for (size_t turn = 0; turn < kQuestions.size(); ++turn) {
    std::jthread killer;
    const ChatReply reply = client_->Chat(Turn(session, kQuestions[turn]), absl::Minutes(2),
                                          [&](const std::string& so_far) {
                                            if (so_far != texts[turn]) return;
                                            // Staging, the commit and its acknowledgement take some
                                            // 10 ms.
                                            absl::SleepFor(absl::Milliseconds(3 * turn));
                                            redis_->Kill();
                                            ASSERT_TRUE(redis_->Restart().ok());
                                          });
    const ChatReply told =
        reply.is_committed() ? reply : client_->ChatUntilCommitted(Turn(session, kQuestions[turn]));
    EXPECT_EQ(told.text, texts[turn]);
    EXPECT_EQ(told.version, turn + 1);
    ExpectStored(session, kQuestions, {texts.begin(), texts.begin() + turn + 1});
  }
}

TEST_F(StoreFaultTest, FullRedisIsToldLosesNothingAndTheSessionGoesOnWhenThereIsRoom) {
  const std::vector<std::string> texts = Undisturbed(kQuestions);
  const std::string session = NewSession();
  ASSERT_EQ(client_->ChatUntilCommitted(Turn(session, kQuestions[0])).text, texts[0]);
  redis::Client redis = RedisClient();
  ASSERT_TRUE(redis.Run({"CONFIG", "SET", "maxmemory", "1"}).ok());
  // What is there can be read; a turn is answered or refused, and told to be not stored.
  ExpectStored(session, kQuestions, {texts[0]});
  const ChatReply full = client_->Chat(Turn(session, kQuestions[1]));
  EXPECT_FALSE(full.is_committed());
  if (full.status.ok()) {
    EXPECT_EQ(full.text, texts[1]);
    EXPECT_THAT(full.receipt.not_persisted_reason(), HasSubstr("maxmemory"));
  } else {
    EXPECT_TRUE(absl::IsResourceExhausted(full.status)) << full.status;
    EXPECT_EQ(full.text, "");
  }
  ExpectStored(session, kQuestions, {texts[0]});
  ASSERT_TRUE(redis.Run({"CONFIG", "SET", "maxmemory", "0"}).ok());
  const ChatReply again = client_->ChatUntilCommitted(Turn(session, kQuestions[1]));
  EXPECT_EQ(again.text, texts[1]);
  EXPECT_EQ(again.version, 2u);
  ExpectRestored(session, kQuestions[2], texts[2]);
  ExpectStored(session, kQuestions, {texts[0], texts[1], texts[2]});
}

TEST_F(StoreFaultTest, RedisThatIsFullInTheMiddleOfATurnLosesNothing) {
  const std::vector<std::string> texts = Undisturbed(kQuestions);
  const std::string session = NewSession();
  ASSERT_EQ(client_->ChatUntilCommitted(Turn(session, kQuestions[0])).text, texts[0]);
  redis::Client redis = RedisClient();
  bool is_full = false;
  const ChatReply full =
      client_->Chat(Turn(session, kQuestions[1]), absl::Minutes(2), [&](const std::string&) {
        if (is_full) return;
        is_full = true;
        ASSERT_TRUE(redis.Run({"CONFIG", "SET", "maxmemory", "1"}).ok());
      });
  EXPECT_TRUE(full.status.ok()) << full.status;
  EXPECT_EQ(full.text, texts[1]);
  EXPECT_FALSE(full.receipt.persisted());
  EXPECT_THAT(full.receipt.not_persisted_reason(), HasSubstr("maxmemory"));
  ExpectStored(session, kQuestions, {texts[0]});
  ASSERT_TRUE(redis.Run({"CONFIG", "SET", "maxmemory", "0"}).ok());
  const ChatReply again = client_->ChatUntilCommitted(Turn(session, kQuestions[1]));
  EXPECT_EQ(again.text, texts[1]);
  EXPECT_EQ(again.version, 2u);
  ExpectRestored(session, kQuestions[2], texts[2]);
}

struct Damage {
  const char* name;
  bool is_lost;  // else a byte is changed
};

class DamagedChunkTest : public StoreFaultTest, public ::testing::WithParamInterface<Damage> {};

TEST_P(DamagedChunkTest, IsNeverUsedToldAndMadeAnewByTheTurnThatFindsIt) {
  const std::vector<std::string> texts = Undisturbed(kQuestions);
  const std::vector<std::string> before = KeysLike("mneme:2:*:c:*");
  const std::string session = NewSession();
  for (size_t turn = 0; turn < 2; ++turn) {
    ASSERT_EQ(client_->ChatUntilCommitted(Turn(session, kQuestions[turn])).text, texts[turn]);
  }
  std::vector<std::string> chunks;
  for (const std::string& key : KeysLike("mneme:2:*:c:*")) {
    if (std::count(before.begin(), before.end(), key) == 0) chunks.push_back(key);
  }
  ASSERT_FALSE(chunks.empty());
  redis::Client redis = RedisClient();
  if (GetParam().is_lost) {
    ASSERT_TRUE(redis.Run({"DEL", chunks.front()}).ok());
  } else {
    const absl::StatusOr<redis::Reply> byte =
        redis.Run({"GETRANGE", chunks.front(), "5000", "5000"});
    ASSERT_TRUE(byte.ok()) << byte.status();
    std::string changed = byte->text();
    ASSERT_EQ(changed.size(), 1u);
    changed[0] = static_cast<char>(changed[0] ^ 0x10);
    ASSERT_TRUE(redis.Run({"SETRANGE", chunks.front(), "5000", changed}).ok());
  }
  ForgetHotMemory();
  const ChatReply rebuilt = client_->Chat(Turn(session, kQuestions[2]));
  EXPECT_TRUE(rebuilt.is_committed()) << rebuilt.status;
  EXPECT_EQ(rebuilt.text, texts[2]);
  EXPECT_EQ(rebuilt.receipt.tier(), "rebuilt");
  EXPECT_EQ(rebuilt.receipt.restored_tokens(), 0);
  EXPECT_EQ(rebuilt.receipt.prefilled_tokens(), rebuilt.usage.prompt_tokens());
  EXPECT_EQ(rebuilt.receipt.snapshot_lost_reason(), "");
  ExpectRestored(session, kQuestions[3], texts[3]);
  ExpectStored(session, kQuestions, texts);
}

INSTANTIATE_TEST_SUITE_P(Damages, DamagedChunkTest,
                         ::testing::Values(Damage{"Lost", true}, Damage{"Changed", false}),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace mneme::testing
