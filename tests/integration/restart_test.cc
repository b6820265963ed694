// Sessions outlive a restart of everything: after a clean stop, and after every process, the
// redis-server among them, was killed at once. The next turn computes its new tokens and nothing
// else, and its receipt says so.
#include <csignal>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/chat_client.h"
#include "tests/support/mneme_up.h"
#include "tests/support/temp_folder.h"
#include "tests/support/time_limit.h"

namespace mneme::testing {
namespace {

struct Conversation {
  std::string session_id;
  bool has_window = false;  // else the policy is full
};

constexpr const char* kQuestions[] = {
    "My name is Ada, and I keep bees behind the old mill.",
    "Which flowers should I sow for them in spring?",
    "And what is there for them late in the year, when the heather is over?",
    "What is my name, and what do I keep?",
};

gateway::v1::ChatRequest Question(const Conversation& conversation, size_t turn) {
  gateway::v1::ChatRequest request = TurnOf(conversation.session_id, kQuestions[turn], 12);
  // Drawn, not greedy: the state of the draws must come back too.
  request.mutable_sampling()->set_temperature(0.8F);
  request.mutable_sampling()->set_seed(40 + turn);
  if (conversation.has_window) {
    request.mutable_memory_policy()->mutable_window()->set_sinks(4);
    request.mutable_memory_policy()->mutable_window()->set_recent(64);
  }
  return request;
}

// kill -9 of everything that runs, the supervisor first, so that it restarts nothing.
void KillAll(MnemeUp& up) {
  const absl::StatusOr<std::vector<pid_t>> pids = up.Pids();
  ASSERT_TRUE(pids.ok()) << pids.status();
  ASSERT_GE(pids->size(), 6u);
  ASSERT_EQ(pids->front(), up.pid());
  for (const pid_t pid : *pids) kill(pid, SIGKILL);
  up.KillSupervisor();
  const absl::Time give_up = absl::Now() + TimeLimit(absl::Seconds(10));
  for (const pid_t pid : *pids) {
    while (IsRunning(pid) && absl::Now() < give_up) absl::SleepFor(absl::Milliseconds(5));
    ASSERT_FALSE(IsRunning(pid)) << pid;
  }
}

class RestartTest : public ::testing::TestWithParam<const char*> {
 protected:
  void Start() {
    absl::StatusOr<std::unique_ptr<MnemeUp>> up =
        MnemeUp::Start({.arguments = {"--compute", GetParam()}, .data = folder_.File("data")});
    ASSERT_TRUE(up.ok()) << up.status();
    up_ = *std::move(up);
  }

  ChatReply Ask(const Conversation& conversation, size_t turn) {
    ChatReply reply = ChatClient(up_->grpc()).Chat(Question(conversation, turn));
    EXPECT_TRUE(reply.status.ok()) << reply.status;
    EXPECT_TRUE(reply.receipt.persisted()) << reply.receipt.not_persisted_reason();
    EXPECT_EQ(reply.receipt.snapshot_lost_reason(), "");
    EXPECT_EQ(reply.version, turn + 1);
    return reply;
  }

  // The first turn after a restart: nothing is hot, and nothing but what is new is computed.
  void AskAfterRestart(const Conversation& conversation, size_t turn, const std::string& expected) {
    SCOPED_TRACE(absl::StrCat(conversation.session_id, ", turn ", turn + 1));
    const auto before = StoredSession(*up_, conversation.session_id);
    ASSERT_TRUE(before.ok()) << before.status();
    const int64_t log_tokens = before->token_ids_size();
    ASSERT_GT(log_tokens, 1);
    const ChatReply reply = Ask(conversation, turn);
    EXPECT_EQ(reply.text, expected);
    const inference::v1::MemoryReceipt& receipt = reply.receipt;
    const int64_t new_tokens = reply.usage.prompt_tokens() - log_tokens;
    ASSERT_GT(new_tokens, 0);
    EXPECT_EQ(receipt.tier(), "redis");
    // The last generated token of a turn is not in its key/value memory: nothing had to be computed
    // after it. It is the first one that the next turn computes, so it counts as new here.
    EXPECT_EQ(receipt.restored_tokens(), log_tokens - 1);
    EXPECT_EQ(receipt.prefilled_tokens(), new_tokens + 1);
    EXPECT_EQ(receipt.reused_tokens(), 0);
    EXPECT_EQ(receipt.restored_tokens() + receipt.prefilled_tokens(), reply.usage.prompt_tokens());
    EXPECT_EQ(reply.usage.cached_tokens(), log_tokens - 1);
  }

  const TempFolder folder_;
  std::unique_ptr<MnemeUp> up_;
};

TEST_P(RestartTest, TheNextTurnComputesItsNewTokensOnlyAndItsTextIsTheUndisturbedOne) {
  const std::vector<Conversation> conversations = {{.session_id = "full"},
                                                   {.session_id = "window", .has_window = true}};
  std::vector<std::vector<std::string>> expected(conversations.size());
  Start();
  for (size_t i = 0; i < conversations.size(); ++i) {
    Conversation undisturbed = conversations[i];
    undisturbed.session_id += "-undisturbed";
    for (size_t turn = 0; turn < std::size(kQuestions); ++turn) {
      expected[i].push_back(Ask(undisturbed, turn).text);
    }
    for (size_t turn = 0; turn < 2; ++turn) {
      EXPECT_EQ(Ask(conversations[i], turn).text, expected[i][turn]);
    }
  }
  ASSERT_FALSE(HasFailure());

  EXPECT_EQ(up_->Stop().code, 0);
  Start();
  for (size_t i = 0; i < conversations.size(); ++i) {
    AskAfterRestart(conversations[i], 2, expected[i][2]);
  }

  KillAll(*up_);
  Start();
  for (size_t i = 0; i < conversations.size(); ++i) {
    AskAfterRestart(conversations[i], 3, expected[i][3]);
  }
}

INSTANTIATE_TEST_SUITE_P(Compute, RestartTest, ::testing::Values("float32", "bfloat16"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace mneme::testing
