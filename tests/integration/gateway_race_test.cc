// Two gateways before one memory service and one executor, and clients of both that want the same
// session: one turn becomes each version, whoever comes too late is told or waits, and the session
// reads as if all turns had come one after the other.
#include <array>
#include <atomic>
#include <map>
#include <thread>

#include "absl/strings/str_cat.h"
#include "common/config/config.h"
#include "common/sync/mutex.h"
#include "mneme/gateway/v1/config.pb.h"
#include "nlohmann/json.hpp"
#include "services/cli/child_process.h"
#include "tests/integration/own_redis_fixture.h"
#include "tests/support/run_command.h"

namespace mneme::testing {
namespace {

class GatewayRaceTest : public OwnRedisTest {
 protected:
  static void SetUpTestSuite() {
    OwnRedisTest::SetUpTestSuite();
    if (up_ == nullptr) return;
    gateway::v1::GatewayConfig config;
    ASSERT_TRUE(config::FromFile(up_->data() + "/run/gateway.json", &config).ok());
    config.set_grpc_listen("127.0.0.1:0");
    config.set_http_listen("127.0.0.1:0");
    config.set_metrics_listen("127.0.0.1:0");
    config.set_address_file(up_->data() + "/run/second-gateway.address.json");
    const std::string path = up_->data() + "/run/second-gateway.json";
    ASSERT_TRUE(config::WriteFileAtomically(path, config::ToJson(config)).ok());
    auto started =
        cli::ChildProcess::Start({.command = {BinaryPath("mneme-gateway"), "--config", path}});
    ASSERT_TRUE(started.ok()) << started.status();
    gateway_ = *std::move(started);
    gateway_.CloseOutput();
    std::string address;
    ASSERT_TRUE(Becomes([&] {
      const auto text = config::ReadFile(config.address_file());
      if (!text.ok()) return false;
      const auto json = nlohmann::json::parse(*text, nullptr, /*allow_exceptions=*/false);
      if (json.is_object()) address = json.value("grpc", "");
      return !address.empty();
    }));
    other_ = std::make_unique<ChatClient>(address);
    // It finds the executor by itself.
    ASSERT_TRUE(other_->ChatUntilCommitted(TurnOf("warm", "Hello.", 1)).is_committed());
  }
  static void TearDownTestSuite() {
    other_.reset();
    gateway_ = cli::ChildProcess();
    OwnRedisTest::TearDownTestSuite();
  }
  void SetUp() override { ASSERT_NE(other_, nullptr); }

  static const ChatClient& Client(int i) { return i % 2 == 0 ? *client_ : *other_; }

  // What two threads get that ask at the same time; ask(0) and ask(1).
  template <typename Ask>
  static std::array<ChatReply, 2> Both(const Ask& ask) {
    std::array<ChatReply, 2> replies;
    std::vector<std::jthread> threads;
    threads.reserve(replies.size());
    for (int i = 0; i < 2; ++i) threads.emplace_back([&, i] { replies[i] = ask(i); });
    for (std::jthread& thread : threads) thread.join();
    return replies;
  }

  static inline cli::ChildProcess gateway_;
  static inline std::unique_ptr<ChatClient> other_;
};

TEST_F(GatewayRaceTest, OfTwoTurnsFromTheSameVersionOneIsCommittedAndTheOtherToldTheHead) {
  constexpr int kRounds = 6;
  const std::string session = NewSession();
  for (int round = 0; round < kRounds; ++round) {
    const std::array<ChatReply, 2> replies = Both([&](int i) {
      gateway::v1::ChatRequest request =
          Turn(session, absl::StrCat("Round ", round, ", says client ", i, "."), 4);
      request.set_parent_version(round);
      return Client(i + round).Chat(request);
    });
    const int winner = replies[0].is_committed() ? 0 : 1;
    EXPECT_TRUE(replies[winner].is_committed()) << replies[winner].status;
    EXPECT_EQ(replies[winner].version, static_cast<uint64_t>(round) + 1);
    const absl::Status& lost = replies[1 - winner].status;
    EXPECT_TRUE(absl::IsAborted(lost)) << lost;
    EXPECT_EQ(VersionOf(session), static_cast<uint64_t>(round) + 1);
  }
}

TEST_F(GatewayRaceTest, OneRequestSentToBothIsOneTurnAndBothGetItsAnswer) {
  constexpr int kRounds = 4;
  const std::string session = NewSession();
  for (int round = 0; round < kRounds; ++round) {
    const std::array<ChatReply, 2> replies = Both([&](int i) {
      return Client(i).Chat(Turn(session, absl::StrCat("This is round ", round, "."), 6));
    });
    for (const ChatReply& reply : replies) {
      EXPECT_TRUE(reply.is_committed()) << reply.status;
      EXPECT_EQ(reply.version, static_cast<uint64_t>(round) + 1);
    }
    EXPECT_EQ(replies[0].text, replies[1].text);
    EXPECT_EQ(VersionOf(session), static_cast<uint64_t>(round) + 1);
  }
}

TEST_F(GatewayRaceTest, TurnsOfManyClientsOfBothBecomeOneConversation) {
  constexpr int kClients = 4;
  constexpr int kTurns = 4;
  const std::string session = NewSession();
  sync::Mutex mutex;
  std::map<uint64_t, std::pair<std::string, std::string>> by_version;  // question, answer
  {
    std::vector<std::jthread> threads;
    threads.reserve(kClients);
    for (int i = 0; i < kClients; ++i) {
      threads.emplace_back([&, i] {
        for (int turn = 0; turn < kTurns; ++turn) {
          const std::string question = absl::StrCat("Client ", i, " has question ", turn, ".");
          const ChatReply reply = Client(i).ChatUntilCommitted(Turn(session, question, 4));
          EXPECT_TRUE(reply.is_committed()) << reply.status;
          sync::MutexLock lock(mutex);
          EXPECT_TRUE(by_version.emplace(reply.version, std::pair(question, reply.text)).second)
              << "two turns became version " << reply.version;
        }
      });
    }
  }
  ASSERT_EQ(by_version.size(), static_cast<size_t>(kClients * kTurns));
  EXPECT_EQ(by_version.rbegin()->first, static_cast<uint64_t>(kClients * kTurns));
  std::vector<std::string> questions, answers;
  for (const auto& [version, turn] : by_version) {
    questions.push_back(turn.first);
    answers.push_back(turn.second);
  }
  ExpectStored(session, questions, answers);
  // In their order and by one client they give the same texts.
  EXPECT_EQ(Undisturbed(questions, 4), answers);
}

TEST_F(GatewayRaceTest, GatewayKilledInTheMiddleOfATurnLeavesTheSessionToTheOther) {
  const std::vector<std::string> questions = {"Describe a garden in the rain.",
                                              "Who sits under the pear tree?"};
  const std::vector<std::string> texts = Undisturbed(questions, 32);
  const std::string session = NewSession();
  ASSERT_EQ(client_->Chat(Turn(session, questions[0], 32)).text, texts[0]);
  const pid_t pid = up_->ServiceOf("gateway")->pid();
  bool is_killed = false;
  const ChatReply cut =
      client_->Chat(Turn(session, questions[1], 32), absl::Minutes(2), [&](const std::string&) {
        if (is_killed) return;
        is_killed = true;
        ASSERT_TRUE(up_->Signal("gateway", SIGKILL).ok());
      });
  EXPECT_FALSE(cut.status.ok());
  // The dead one's lease runs out, and the same request gets its answer from the other.
  const ChatReply reply = other_->ChatUntilCommitted(Turn(session, questions[1], 32));
  EXPECT_TRUE(reply.is_committed()) << reply.status;
  EXPECT_EQ(reply.text, texts[1]);
  EXPECT_EQ(reply.version, 2u);
  ASSERT_TRUE(up_->WaitForRestart("gateway", pid).ok());
  ExpectStored(session, questions, texts);
}

}  // namespace
}  // namespace mneme::testing
