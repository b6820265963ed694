// The executor killed at each stage of a session's turn: while it computes, while it stores, while
// it restores. The client's stream goes on with the same text, and the turn is committed once.
#include <atomic>
#include <thread>

#include "absl/strings/str_cat.h"
#include "tests/integration/own_redis_fixture.h"

namespace mneme::testing {
namespace {

const std::vector<std::string> kQuestions = {
    "Describe a market square on a summer morning, and the people who come.",
    "Who is the first to sell everything?", "What does she buy for it?"};

using ExecutorFaultTest = OwnRedisTest;

TEST_F(ExecutorFaultTest, KilledInTheMiddleOfATurnTheAnswerGoesOnElsewhereWithTheSameText) {
  const std::vector<std::string> texts = Undisturbed(kQuestions, 32);
  const std::string session = NewSession();
  ASSERT_EQ(client_->Chat(Turn(session, kQuestions[0], 32)).text, texts[0]);
  const pid_t pid = up_->ServiceOf("executor")->pid();
  bool is_killed = false;
  const ChatReply reply = client_->Chat(Turn(session, kQuestions[1], 32), absl::Minutes(2),
                                        [&](const std::string& so_far) {
                                          if (is_killed || so_far.size() < texts[1].size() / 2) {
                                            return;
                                          }
                                          is_killed = true;
                                          ASSERT_TRUE(up_->Signal("executor", SIGKILL).ok());
                                        });
  ASSERT_TRUE(is_killed);
  EXPECT_TRUE(reply.is_committed()) << reply.status;
  EXPECT_EQ(reply.text, texts[1]);
  EXPECT_EQ(reply.version, 2u);
  // Its memory came from the store to the new executor, and went there whole.
  EXPECT_GT(reply.receipt.restored_tokens(), 0);
  EXPECT_EQ(reply.receipt.snapshot_lost_reason(), "");
  ASSERT_TRUE(up_->WaitForRestart("executor", pid).ok());
  ExpectStored(session, kQuestions, {texts[0], texts[1]});
  const ChatReply next = client_->Chat(Turn(session, kQuestions[2], 32));
  EXPECT_EQ(next.text, texts[2]);
  EXPECT_EQ(next.version, 3u);
}

TEST_F(ExecutorFaultTest,
       KilledWhileItStoresTheTurnIsCommittedWithoutItsMemoryAndTheReceiptSaysSo) {
  const std::vector<std::string> texts = Undisturbed(kQuestions, 32);
  const std::string session = NewSession();
  ASSERT_EQ(client_->Chat(Turn(session, kQuestions[0], 32)).text, texts[0]);
  const pid_t pid = up_->ServiceOf("executor")->pid();
  bool is_held = false;
  const ChatReply reply = client_->Chat(Turn(session, kQuestions[1], 32), absl::Minutes(2),
                                        [&](const std::string& so_far) {
                                          // Redis takes nothing from the middle of the answer on,
                                          // so that the store is still waited for when the text is
                                          // complete.
                                          if (!is_held && so_far.size() >= texts[1].size() / 2) {
                                            redis_->Pause();
                                            is_held = true;
                                          }
                                          if (so_far != texts[1]) return;
                                          ASSERT_TRUE(up_->Signal("executor", SIGKILL).ok());
                                          redis_->Resume();
                                        });
  EXPECT_TRUE(reply.is_committed()) << reply.status << reply.receipt.not_persisted_reason();
  EXPECT_EQ(reply.text, texts[1]);
  EXPECT_EQ(reply.version, 2u);
  EXPECT_THAT(reply.receipt.snapshot_lost_reason(), ::testing::HasSubstr("executor"));
  ASSERT_TRUE(up_->WaitForRestart("executor", pid).ok());
  ExpectStored(session, kQuestions, {texts[0], texts[1]});
  // The next turn goes on from the snapshot before, and computes what came since.
  const ChatReply next = client_->ChatUntilCommitted(Turn(session, kQuestions[2], 32));
  EXPECT_EQ(next.text, texts[2]);
  EXPECT_EQ(next.version, 3u);
  EXPECT_GT(next.receipt.restored_tokens(), 0);
  EXPECT_GT(next.receipt.prefilled_tokens(), 32);
}

TEST_F(ExecutorFaultTest, KilledWhileItRestoresTheTurnIsTakenAnewWithTheSameText) {
  const std::vector<std::string> texts = Undisturbed(kQuestions, 32);
  const std::string session = NewSession();
  for (size_t turn = 0; turn < 2; ++turn) {
    ASSERT_EQ(client_->Chat(Turn(session, kQuestions[turn], 32)).text, texts[turn]);
  }
  ForgetHotMemory();
  const auto executor = Executor();
  const pid_t pid = up_->ServiceOf("executor")->pid();
  std::atomic<bool> has_text = false;
  ChatReply reply;
  std::jthread client([&] {
    reply = client_->Chat(Turn(session, kQuestions[2], 32), absl::Minutes(2),
                          [&](const std::string&) { has_text = true; });
  });
  // As soon as the turn has its place, nothing comes from the store any more.
  const bool is_running = Becomes([&] {
    grpc::ClientContext context;
    executor::v1::GetLoadResponse load;
    return executor->GetLoad(&context, {}, &load).ok() && load.running() > 0;
  });
  EXPECT_TRUE(up_->Signal("memory", SIGSTOP).ok());
  absl::SleepFor(absl::Milliseconds(300));
  EXPECT_TRUE(is_running);
  RecordProperty("killed_while_it_restored", has_text ? "no" : "yes");
  EXPECT_TRUE(up_->Signal("executor", SIGKILL).ok());
  EXPECT_TRUE(up_->Signal("memory", SIGCONT).ok());
  client.join();
  EXPECT_TRUE(reply.is_committed()) << reply.status << reply.receipt.not_persisted_reason();
  EXPECT_EQ(reply.text, texts[2]);
  EXPECT_EQ(reply.version, 3u);
  EXPECT_GT(reply.receipt.restored_tokens(), 0);
  ASSERT_TRUE(up_->WaitForRestart("executor", pid).ok());
  ExpectStored(session, kQuestions, texts);
}

}  // namespace
}  // namespace mneme::testing
