// `mneme chat` and its sisters against the real services and the default model.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "common/config/config.h"
#include "nlohmann/json.hpp"
#include "services/cli/data_folder.h"
#include "tests/support/mneme_up.h"
#include "tests/support/run_command.h"
#include "tests/support/time_limit.h"

namespace mneme {
namespace {

using testing::CommandResult;
using ::testing::HasSubstr;
using testing::IsRunning;
using testing::MnemeUp;
using testing::RunMneme;
using testing::TempFolder;

// `mneme WORDS` on the data folder of `up`; greedy and short where it is a chat.
CommandResult Mneme(const MnemeUp& up, std::vector<std::string> words,
                    const std::vector<std::string>& environment = {}) {
  words.insert(words.end(), {"--data", up.data()});
  if (words[0] == "chat") words.insert(words.end(), {"--temperature", "0", "--max-tokens", "16"});
  const absl::StatusOr<CommandResult> result = RunMneme(words, absl::Minutes(2), environment);
  EXPECT_TRUE(result.ok()) << result.status();
  return result.ok() ? *result : CommandResult();
}

nlohmann::json Json(const CommandResult& result) {
  nlohmann::json json = nlohmann::json::parse(result.out, nullptr, /*allow_exceptions=*/false);
  EXPECT_TRUE(json.is_object()) << result.out << result.err;
  return json.is_object() ? json : nlohmann::json::object();
}

class ChatTest : public ::testing::Test {
 protected:
  void SetUp() override {
    // The exact path: its greedy answers are known.
    absl::StatusOr<std::unique_ptr<MnemeUp>> up =
        MnemeUp::Start({.arguments = {"--compute", "float32"}});
    ASSERT_TRUE(up.ok()) << up.status();
    up_ = *std::move(up);
  }

  std::unique_ptr<MnemeUp> up_;
};

TEST_F(ChatTest, AnswersAScript) {
  const CommandResult plain = Mneme(*up_, {"chat", "What is the capital of France?"});
  EXPECT_EQ(plain.exit_code, 0) << plain.err;
  EXPECT_EQ(plain.out, "The capital of France is Paris.\n");
  const nlohmann::json json =
      Json(Mneme(*up_, {"chat", "--json", "What is the capital of France?"}));
  EXPECT_EQ(json["text"].get<std::string>() + "\n", plain.out);
  EXPECT_GT(json["usage"]["completion_tokens"], 0);
  EXPECT_GT(json["first_token_seconds"], 0);
  EXPECT_TRUE(json.contains("receipt"));
  const CommandResult receipt = Mneme(*up_, {"chat", "--receipt", "Hi"});
  EXPECT_THAT(receipt.err, HasSubstr("prefilled"));
}

TEST_F(ChatTest, ASessionGoesOnAndCanBeListedShownAndDeleted) {
  const nlohmann::json first =
      Json(Mneme(*up_, {"chat", "--json", "--session", "s1", "My name is Ada."}));
  EXPECT_EQ(first["version"], 1);
  const nlohmann::json second = Json(Mneme(
      *up_, {"chat", "--json", "--session", "s1", "--policy", "window:4,256", "What is my name?"}));
  EXPECT_EQ(second["version"], 2);
  EXPECT_GT(second["usage"]["prompt_tokens"], first["usage"]["prompt_tokens"]);

  const nlohmann::json listed = Json(Mneme(*up_, {"sessions", "list", "--json"}));
  EXPECT_EQ(listed["session_id"], "s1");
  const nlohmann::json shown = Json(Mneme(*up_, {"sessions", "show", "--json", "s1"}));
  ASSERT_EQ(shown["messages"].size(), 4u);
  EXPECT_EQ(shown["messages"][0]["content"], "My name is Ada.");
  EXPECT_EQ(shown["messages"][3]["content"], second["text"]);
  EXPECT_EQ(Mneme(*up_, {"sessions", "delete", "s1"}).exit_code, 0);
  const CommandResult gone = Mneme(*up_, {"sessions", "show", "s1"});
  EXPECT_EQ(gone.exit_code, 1);
  EXPECT_THAT(gone.err, HasSubstr("s1"));
}

TEST_F(ChatTest, WrongUseIsToldClearly) {
  EXPECT_THAT(Mneme(*up_, {"chat", "--model", "no-such-model", "hi"}).err,
              HasSubstr("no-such-model"));
  EXPECT_THAT(Mneme(*up_, {"chat", "--policy", "widow", "hi"}).err,
              HasSubstr("window:SINKS,RECENT"));
  EXPECT_THAT(Mneme(*up_, {"chat"}).err, HasSubstr("the message is empty"));
  EXPECT_THAT(Mneme(*up_, {"chat", "--top-p", "7", "hi"}).err, HasSubstr("top_p"));
}

TEST_F(ChatTest, WithoutAServerItSaysHowToStartOne) {
  const TempFolder folder;
  const auto result = RunMneme({"chat", "--data", folder.File("data"), "hi"});
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->exit_code, 1);
  EXPECT_THAT(result->err, HasSubstr("mneme up"));
}

class KillDuringSessionTest : public ChatTest, public ::testing::WithParamInterface<const char*> {};

TEST_P(KillDuringSessionTest, TheNextTurnWorksAndTheHistoryIsComplete) {
  const nlohmann::json first =
      Json(Mneme(*up_, {"chat", "--json", "--session", "s", "My name is Ada."}));
  EXPECT_EQ(first["version"], 1);
  ASSERT_TRUE(up_->KillAndWait(GetParam()).ok());
  const CommandResult answer =
      Mneme(*up_, {"chat", "--json", "--session", "s", "What is my name?"});
  ASSERT_EQ(answer.exit_code, 0) << answer.err;
  const nlohmann::json second = Json(answer);
  EXPECT_EQ(second["version"], 2);
  const nlohmann::json shown = Json(Mneme(*up_, {"sessions", "show", "--json", "s"}));
  ASSERT_EQ(shown["messages"].size(), 4u);
  EXPECT_EQ(shown["messages"][0]["content"], "My name is Ada.");
  EXPECT_EQ(shown["messages"][1]["content"], first["text"]);
  EXPECT_EQ(shown["messages"][2]["content"], "What is my name?");
  EXPECT_EQ(shown["messages"][3]["content"], second["text"]);
}

INSTANTIATE_TEST_SUITE_P(Services, KillDuringSessionTest,
                         ::testing::Values("redis", "tokenizer", "memory", "executor", "gateway"),
                         [](const auto& info) { return std::string(info.param); });

TEST(ChatRestartTest, ASessionOutlivesARestartOfEverything) {
  const TempFolder folder;
  const std::string data = folder.File("data");
  {
    const absl::StatusOr<std::unique_ptr<MnemeUp>> up = MnemeUp::Start({.data = data});
    ASSERT_TRUE(up.ok()) << up.status();
    EXPECT_EQ(Mneme(**up, {"chat", "--session", "s", "My name is Ada."}).exit_code, 0);
  }
  const absl::StatusOr<std::unique_ptr<MnemeUp>> up = MnemeUp::Start({.data = data});
  ASSERT_TRUE(up.ok()) << up.status();
  const nlohmann::json second =
      Json(Mneme(**up, {"chat", "--json", "--session", "s", "What is my name?"}));
  EXPECT_EQ(second["version"], 2);
  EXPECT_EQ(Json(Mneme(**up, {"sessions", "show", "--json", "s"}))["messages"].size(), 4u);
}

TEST(ChatKeysTest, AKeyIsNeededOnceThereIsOne) {
  const TempFolder folder;
  const std::string data = folder.File("data");
  const auto added = RunMneme({"keys", "add", "--id", "test", "--json", "--data", data});
  ASSERT_TRUE(added.ok()) << added.status();
  const std::string key = Json(*added)["key"];
  const absl::StatusOr<std::unique_ptr<MnemeUp>> up = MnemeUp::Start({.data = data});
  ASSERT_TRUE(up.ok()) << up.status();
  const CommandResult without = Mneme(**up, {"chat", "hi"});
  EXPECT_EQ(without.exit_code, 1);
  EXPECT_THAT(without.err, HasSubstr("--key"));
  EXPECT_EQ(Mneme(**up, {"chat", "--key", key, "hi"}).exit_code, 0);
  EXPECT_EQ(Mneme(**up, {"chat", "hi"}, {"MNEME_API_KEY=" + key}).exit_code, 0);
}

TEST(ChatUpTest, StartsAServerAndStopsItAtTheEnd) {
  const TempFolder folder;
  const std::string data = folder.File("data");
  const auto result =
      RunMneme({"chat", "--up", "--data", data, "--max-tokens", "4", "hi"}, absl::Minutes(3));
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->exit_code, 0) << result->err;
  EXPECT_NE(result->out, "\n");
  EXPECT_EQ(cli::DataFolder(data).RunningPid(), 0);
}

// `mneme chat` in a terminal.
class Terminal {
 public:
  explicit Terminal(const std::vector<std::string>& words) {
    std::vector<std::string> command = {testing::BinaryPath("mneme")};
    command.insert(command.end(), words.begin(), words.end());
    std::vector<char*> arguments;
    for (std::string& word : command) arguments.push_back(word.data());
    arguments.push_back(nullptr);
    pid_ = forkpty(&fd_, nullptr, nullptr, nullptr);
    if (pid_ == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      execv(arguments[0], arguments.data());
      _exit(127);
    }
  }
  ~Terminal() {
    if (pid_ > 0) {
      kill(pid_, SIGKILL);
      waitpid(pid_, nullptr, 0);
    }
    close(fd_);
  }

  void Type(const std::string& keys) {
    EXPECT_EQ(write(fd_, keys.data(), keys.size()), static_cast<ssize_t>(keys.size()));
  }

  // Waits until `text` has come after what was waited for before, and returns all up to its end.
  std::string WaitFor(const std::string& text, absl::Duration timeout = absl::Minutes(1)) {
    WaitUntil([&] { return absl::StrContains(seen_, text); }, timeout, text);
    const size_t end = std::min(seen_.find(text), seen_.size() - text.size()) + text.size();
    const std::string before = seen_.substr(0, end);
    seen_.erase(0, end);
    return before;
  }

  // Waits until so many bytes have come after what was waited for before.
  void WaitForBytes(size_t count) {
    WaitUntil([&] { return seen_.size() >= count; }, absl::Minutes(1), "text");
  }

  // Waits for the end and returns the exit code.
  int Wait() {
    int status = 0;
    for (int i = 0; i < 3000; ++i) {
      char buffer[4096];
      pollfd file = {fd_, POLLIN, 0};
      // Read on, so that it cannot block on what it still has to say; an error means it has ended.
      const bool ended = poll(&file, 1, 10) > 0 && read(fd_, buffer, sizeof(buffer)) < 0;
      if (ended) absl::SleepFor(absl::Milliseconds(10));
      if (waitpid(pid_, &status, WNOHANG) == pid_) {
        pid_ = -1;
        return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
      }
    }
    return -1;
  }

 private:
  template <typename Condition>
  void WaitUntil(Condition condition, absl::Duration timeout, const std::string& what) {
    const absl::Time deadline = absl::Now() + testing::TimeLimit(timeout);
    while (!condition()) {
      pollfd file = {fd_, POLLIN, 0};
      poll(&file, 1, 100);
      char buffer[4096];
      const ssize_t count = (file.revents & POLLIN) != 0 ? read(fd_, buffer, sizeof(buffer)) : 0;
      if (count > 0) seen_.append(buffer, count);
      if (absl::Now() > deadline || (count <= 0 && (file.revents & POLLHUP) != 0)) {
        FAIL() << "did not come: " << what << "\nbut: " << seen_;
      }
    }
  }

  int fd_ = -1;
  pid_t pid_ = -1;
  std::string seen_;
};

// What the line editor sends when it begins to read a line.
constexpr char kPrompt[] = "\x1b[?2004h";

TEST_F(ChatTest, ConversesInATerminal) {
  const std::string saved = up_->data() + "/saved.json";
  Terminal terminal({"chat", "--data", up_->data(), "--temperature", "0", "--max-tokens", "12",
                     "--session", "talk"});
  terminal.WaitFor(kPrompt);
  terminal.Type("My name is Ada.\r");
  EXPECT_THAT(terminal.WaitFor("first token after"), HasSubstr("tokens"));
  terminal.WaitFor(kPrompt);
  terminal.Type("/receipt\r");
  EXPECT_THAT(terminal.WaitFor("compression"), HasSubstr("version 1"));
  terminal.WaitFor(kPrompt);
  terminal.Type("/recipt\r");
  terminal.WaitFor("did you mean /receipt?");
  terminal.WaitFor(kPrompt);
  terminal.Type("What is my name?\r");
  terminal.WaitFor("first token after");
  terminal.WaitFor(kPrompt);
  terminal.Type("/save " + saved + "\r");
  terminal.WaitFor("written: ");
  terminal.WaitFor(kPrompt);
  terminal.Type("/quit\r");
  EXPECT_EQ(terminal.Wait(), 0);
  const absl::StatusOr<std::string> content = config::ReadFile(saved);
  ASSERT_TRUE(content.ok()) << content.status();
  EXPECT_EQ(nlohmann::json::parse(*content, nullptr, false).size(), 4u);
}

TEST_F(ChatTest, CtrlCStopsTheAnswerAndNotTheChat) {
  Terminal terminal({"chat", "--data", up_->data(), "--temperature", "0", "--session", "long",
                     "--max-tokens", "1000"});
  terminal.WaitFor(kPrompt);
  terminal.Type("Write a long story about the sea.\r");
  terminal.WaitFor("\x1b[?2004l");  // the line is taken
  terminal.WaitForBytes(20);        // and the answer has begun
  terminal.Type("\x03");
  terminal.WaitFor("stopped");
  terminal.WaitFor(kPrompt);
  terminal.Type("What is the capital of France?\r");
  // The stopped turn is not in the session: this is its first.
  terminal.WaitFor("The capital of France is Paris.");
  terminal.WaitFor(kPrompt);
  terminal.Type("\x03");
  terminal.WaitFor("Ctrl-C again");
  terminal.WaitFor(kPrompt);
  terminal.Type("\x03");
  EXPECT_EQ(terminal.Wait(), 0);
  EXPECT_EQ(Json(Mneme(*up_, {"sessions", "show", "--json", "long"}))["messages"].size(), 2u);
}

TEST_F(ChatTest, TheChatGoesOnWhenTheGatewayIsKilled) {
  Terminal terminal({"chat", "--data", up_->data(), "--temperature", "0", "--max-tokens", "8",
                     "--session", "talk"});
  terminal.WaitFor(kPrompt);
  terminal.Type("My name is Ada.\r");
  terminal.WaitFor("first token after");
  terminal.WaitFor(kPrompt);
  ASSERT_TRUE(up_->Signal("gateway").ok());
  terminal.Type("What is my name?\r");
  terminal.WaitFor("first token after");
  terminal.WaitFor(kPrompt);
  terminal.Type("\x04");
  EXPECT_EQ(terminal.Wait(), 0);
  EXPECT_EQ(Json(Mneme(*up_, {"sessions", "show", "--json", "talk"}))["messages"].size(), 4u);
}

}  // namespace
}  // namespace mneme
