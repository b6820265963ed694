// Sessions on a Redis that Sentinels watch: its master dies, a replica is promoted, and the
// sessions go on by themselves with every turn that was acknowledged (redis.wait_for_replicas).
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "tests/integration/own_redis_fixture.h"
#include "tests/support/redis_sentinels.h"

namespace mneme::testing {
namespace {

class PromotionTest : public OwnRedisTest {
 protected:
  static void SetUpTestSuite() {
    // The promoted one needs another that is waited for.
    auto sentinels = RedisSentinels::Start({.num_replicas = 2});
    ASSERT_TRUE(sentinels.ok()) << sentinels.status();
    sentinels_ = *std::move(sentinels);
    StartUp(absl::StrCat(R"({"redis":{"mode":"REDIS_MODE_SENTINEL","master_name":")",
                         RedisSentinels::kMasterName, R"(","wait_for_replicas":1,"addresses":[")",
                         absl::StrJoin(sentinels_->addresses(), R"(",")"), R"("]}})"));
  }
  static void TearDownTestSuite() {
    OwnRedisTest::TearDownTestSuite();
    sentinels_.reset();
  }

  static inline std::unique_ptr<RedisSentinels> sentinels_;
};

TEST_F(PromotionTest, TurnsGoOnFromThePromotedReplicaWithTheirMemory) {
  const std::vector<std::string> questions = {"Describe a ferry that crosses a wide river.",
                                              "Who pays twice?", "Where does it land?"};
  const std::vector<std::string> texts = Undisturbed(questions, 32);
  const std::string session = NewSession();
  ASSERT_EQ(client_->Chat(Turn(session, questions[0], 32)).text, texts[0]);
  ForgetHotMemory();
  bool is_killed = false;
  // In the middle of a turn.
  const ChatReply reply =
      client_->Chat(Turn(session, questions[1], 32), absl::Minutes(2), [&](const std::string&) {
        if (is_killed) return;
        is_killed = true;
        sentinels_->server(0).Kill();
      });
  EXPECT_TRUE(reply.status.ok()) << reply.status;
  EXPECT_EQ(reply.text, texts[1]);
  const ChatReply told =
      reply.is_committed() ? reply : client_->ChatUntilCommitted(Turn(session, questions[1], 32));
  EXPECT_EQ(told.text, texts[1]);
  EXPECT_EQ(told.version, 2u);
  ExpectStored(session, questions, {texts[0], texts[1]});
  ForgetHotMemory();
  const ChatReply next = client_->ChatUntilCommitted(Turn(session, questions[2], 32));
  EXPECT_EQ(next.text, texts[2]);
  EXPECT_EQ(next.receipt.tier(), "redis");
  EXPECT_GT(next.receipt.restored_tokens(), 0);
  ExpectStored(session, questions, texts);
}

}  // namespace
}  // namespace mneme::testing
