// `mneme up`, `down` and `status` with the real services: what they say, what survives a kill -9,
// what is left behind.
#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/config/config.h"
#include "services/cli/held_port.h"
#include "services/cli/probe.h"
#include "tests/support/mneme_up.h"
#include "tests/support/run_command.h"
#include "tests/support/temp_folder.h"
#include "tests/support/time_limit.h"

namespace mneme {
namespace {

using testing::CommandResult;
using ::testing::HasSubstr;
using testing::IsRunning;
using testing::MnemeUp;
using testing::RunMneme;
using testing::TempFolder;
using testing::TimeLimit;

constexpr const char* kServices[] = {"tokenizer", "memory", "executor", "gateway"};

// Returns those of the processes that still run after `timeout` at most.
std::vector<pid_t> StillRunning(std::vector<pid_t> pids, absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + TimeLimit(timeout);
  while (true) {
    std::erase_if(pids, [](pid_t pid) { return !IsRunning(pid); });
    if (pids.empty() || absl::Now() > deadline) return pids;
    absl::SleepFor(absl::Milliseconds(10));
  }
}

cli::v1::UpState StateOf(const CommandResult& status) {
  cli::v1::UpState state;
  EXPECT_TRUE(config::FromJson(status.out, &state).ok()) << status.out << status.err;
  return state;
}

// Runs `mneme up` in the expectation that it gives up by itself.
CommandResult FailingUp(const std::vector<std::string>& arguments,
                        const std::vector<std::string>& environment = {}) {
  std::vector<std::string> words = {"up", "--json"};
  words.insert(words.end(), arguments.begin(), arguments.end());
  absl::StatusOr<CommandResult> result = RunMneme(words, absl::Minutes(2), environment);
  EXPECT_TRUE(result.ok()) << result.status();
  return result.ok() ? *result : CommandResult();
}

// A server socket that listens on a free port of 127.0.0.1.
class Listener {
 public:
  Listener() : fd_(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t length = sizeof(address);
    EXPECT_EQ(bind(fd_, reinterpret_cast<sockaddr*>(&address), length), 0);
    EXPECT_EQ(listen(fd_, 1), 0);
    getsockname(fd_, reinterpret_cast<sockaddr*>(&address), &length);
    port_ = ntohs(address.sin_port);
  }
  ~Listener() { close(fd_); }
  int port() const { return port_; }

 private:
  const int fd_;
  int port_ = 0;
};

TEST(UpTest, SaysWhereEverythingIsAndStopsAllOfIt) {
  absl::StatusOr<std::unique_ptr<MnemeUp>> up = MnemeUp::Start();
  ASSERT_TRUE(up.ok()) << up.status();
  const cli::v1::UpState& state = (*up)->first_state();
  EXPECT_EQ(cli::Ask(cli::HealthzOf(state.http()), absl::Seconds(5)), cli::Probe::Outcome::kGood);
  for (const char* name : kServices) {
    const auto service = state.services().find(name);
    ASSERT_NE(service, state.services().end()) << name;
    EXPECT_TRUE(IsRunning(service->second.pid())) << name;
    EXPECT_EQ(cli::Ask(cli::HealthzOf(service->second.metrics()), absl::Seconds(5)),
              cli::Probe::Outcome::kGood)
        << name;
  }
  EXPECT_TRUE(IsRunning(state.redis().pid()));

  const auto status = RunMneme({"status", "--json", "--data", (*up)->data()});
  ASSERT_TRUE(status.ok()) << status.status();
  EXPECT_EQ(status->exit_code, 0) << status->err;
  EXPECT_EQ(StateOf(*status).services_size(), 4);

  const absl::StatusOr<std::vector<pid_t>> pids = (*up)->Pids();
  ASSERT_TRUE(pids.ok()) << pids.status();
  const auto down = RunMneme({"down", "--data", (*up)->data()});
  ASSERT_TRUE(down.ok()) << down.status();
  EXPECT_EQ(down->exit_code, 0) << down->err;
  EXPECT_EQ((*up)->Stop().code, 0);
  EXPECT_THAT(StillRunning(*pids, absl::Seconds(1)), ::testing::IsEmpty());

  const auto after = RunMneme({"status", "--data", (*up)->data()});
  ASSERT_TRUE(after.ok()) << after.status();
  EXPECT_EQ(after->exit_code, 1);
  EXPECT_THAT(after->err, HasSubstr("mneme up"));
}

TEST(UpTest, CtrlCStopsEverythingCleanly) {
  absl::StatusOr<std::unique_ptr<MnemeUp>> up = MnemeUp::Start();
  ASSERT_TRUE(up.ok()) << up.status();
  const absl::StatusOr<std::vector<pid_t>> pids = (*up)->Pids();
  ASSERT_TRUE(pids.ok()) << pids.status();
  kill((*up)->pid(), SIGINT);
  EXPECT_THAT(StillRunning(*pids, absl::Seconds(30)), ::testing::IsEmpty());
  const cli::ChildExit exit = (*up)->Stop();
  EXPECT_EQ(exit.ToString(), "exit code 0");
}

class KillTest : public ::testing::TestWithParam<const char*> {};

TEST_P(KillTest, AKilledProcessComesBackOnItsPort) {
  absl::StatusOr<std::unique_ptr<MnemeUp>> up = MnemeUp::Start();
  ASSERT_TRUE(up.ok()) << up.status();
  const auto before = (*up)->ServiceOf(GetParam());
  ASSERT_TRUE(before.ok()) << before.status();
  for (int i = 1; i <= 2; ++i) {
    const absl::Status back = (*up)->KillAndWait(GetParam());
    ASSERT_TRUE(back.ok()) << back;
    const auto after = (*up)->ServiceOf(GetParam());
    ASSERT_TRUE(after.ok()) << after.status();
    EXPECT_EQ(after->address(), before->address());
    EXPECT_EQ(after->metrics(), before->metrics());
    EXPECT_EQ(after->restarts(), i);
  }
  // Those who use the killed service notice its return at their own next check.
  const absl::Time end = absl::Now() + absl::Seconds(20);
  auto status = RunMneme({"status", "--data", (*up)->data()});
  while (status.ok() && status->exit_code != 0 && absl::Now() < end) {
    absl::SleepFor(absl::Milliseconds(200));
    status = RunMneme({"status", "--data", (*up)->data()});
  }
  ASSERT_TRUE(status.ok()) << status.status();
  EXPECT_EQ(status->exit_code, 0) << status->out << status->err;
}

INSTANTIATE_TEST_SUITE_P(Services, KillTest,
                         ::testing::Values("redis", "tokenizer", "memory", "executor", "gateway"),
                         [](const auto& info) { return std::string(info.param); });

TEST(UpTest, NothingIsLeftWhenTheSupervisorIsKilled) {
  absl::StatusOr<std::unique_ptr<MnemeUp>> up = MnemeUp::Start();
  ASSERT_TRUE(up.ok()) << up.status();
  const absl::StatusOr<std::vector<pid_t>> pids = (*up)->Pids();
  ASSERT_TRUE(pids.ok()) << pids.status();
  ASSERT_EQ(pids->size(), 6u);
  (*up)->KillSupervisor();
  EXPECT_THAT(StillRunning(*pids, absl::Seconds(2)), ::testing::IsEmpty());
  // And the data folder is free again.
  const absl::StatusOr<std::unique_ptr<MnemeUp>> again = MnemeUp::Start({.data = (*up)->data()});
  EXPECT_TRUE(again.ok()) << again.status();
}

TEST(UpTest, TwoLiveSideBySideAndASecondOnOneFolderIsRefused) {
  absl::StatusOr<std::unique_ptr<MnemeUp>> first = MnemeUp::Start();
  ASSERT_TRUE(first.ok()) << first.status();
  absl::StatusOr<std::unique_ptr<MnemeUp>> second = MnemeUp::Start();
  ASSERT_TRUE(second.ok()) << second.status();
  EXPECT_NE((*first)->http(), (*second)->http());
  for (const MnemeUp* up : {first->get(), second->get()}) {
    const auto status = RunMneme({"status", "--data", up->data()});
    ASSERT_TRUE(status.ok()) << status.status();
    EXPECT_EQ(status->exit_code, 0) << status->out << status->err;
  }
  const CommandResult third = FailingUp({"--data", (*first)->data()});
  EXPECT_EQ(third.exit_code, 1);
  EXPECT_THAT(third.err, HasSubstr(absl::StrCat("process ", (*first)->pid())));
  // The refused one has not disturbed the running one.
  const auto status = RunMneme({"status", "--data", (*first)->data()});
  ASSERT_TRUE(status.ok()) << status.status();
  EXPECT_EQ(status->exit_code, 0) << status->out << status->err;
}

TEST(UpTest, SeveralExecutorsHaveNumbers) {
  absl::StatusOr<std::unique_ptr<MnemeUp>> up = MnemeUp::Start({.arguments = {"--executors", "2"}});
  ASSERT_TRUE(up.ok()) << up.status();
  EXPECT_TRUE((*up)->ServiceOf("executor-0").ok());
  EXPECT_TRUE((*up)->ServiceOf("executor-1").ok());
  EXPECT_FALSE((*up)->ServiceOf("executor").ok());
}

TEST(BadStartTest, AnOccupiedPortNamesTheFlag) {
  const Listener listener;
  const TempFolder folder;
  const CommandResult http = FailingUp({"--data", folder.File("data"), "--http-port",
                                        absl::StrCat(listener.port()), "--grpc-port", "0"});
  EXPECT_EQ(http.exit_code, 1);
  EXPECT_EQ(http.out, "");
  EXPECT_THAT(http.err, HasSubstr(absl::StrCat("port ", listener.port())));
  EXPECT_THAT(http.err, HasSubstr("--http-port"));
  const CommandResult grpc = FailingUp({"--data", folder.File("data"), "--grpc-port",
                                        absl::StrCat(listener.port()), "--http-port", "0"});
  EXPECT_EQ(grpc.exit_code, 1);
  EXPECT_THAT(grpc.err, HasSubstr("--grpc-port"));
}

TEST(BadStartTest, ADataFolderThatCannotBeWrittenSaysSo) {
  // Below a file nobody can make a folder, not even root.
  const TempFolder folder;
  ASSERT_TRUE(config::WriteFileAtomically(folder.File("file"), "x").ok());
  const CommandResult result = FailingUp({"--data", folder.File("file/data")});
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.err, HasSubstr(folder.File("file/data")));
  EXPECT_THAT(result.err, HasSubstr("--data DIR"));
}

TEST(BadStartTest, AMissingModelNamesTheKnownOnes) {
  const TempFolder folder;
  const CommandResult result = FailingUp({"--data", folder.File("data"), "--model", "no-such-model",
                                          "--http-port", "0", "--grpc-port", "0"});
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.err, HasSubstr("no-such-model"));
  EXPECT_THAT(result.err, HasSubstr("mneme models add"));
}

TEST(BadStartTest, ABrokenModelFileEndsTheStartWithTheServicesOwnWords) {
  const TempFolder folder;
  const std::string model = folder.File("broken.gguf");
  ASSERT_TRUE(config::WriteFileAtomically(model, "GGUF and then nothing that fits").ok());
  const CommandResult result = FailingUp(
      {"--data", folder.File("data"), "--model", model, "--http-port", "0", "--grpc-port", "0"});
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.err, HasSubstr("ended before it was ready"));
  EXPECT_THAT(result.err, HasSubstr("broken.gguf"));
}

TEST(BadStartTest, AMissingRedisServerSaysWhatToInstall) {
  const TempFolder folder;
  const CommandResult result =
      FailingUp({"--data", folder.File("data"), "--http-port", "0", "--grpc-port", "0"},
                {"PATH=" + folder.path()});
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.err, HasSubstr("redis-server is not installed"));
  EXPECT_THAT(result.err, HasSubstr("apt-get install redis-server"));
}

TEST(BadStartTest, ARedisThatDoesNotAnswerIsNamed) {
  const TempFolder folder;
  const absl::StatusOr<cli::HeldPort> port = cli::HeldPort::Take("127.0.0.1", 0);
  ASSERT_TRUE(port.ok()) << port.status();
  const std::string config = folder.File("up.json");
  ASSERT_TRUE(config::WriteFileAtomically(
                  config, absl::StrCat(R"({"redis": {"address": ")", port->address(), R"("}})"))
                  .ok());
  const CommandResult result = FailingUp(
      {"--data", folder.File("data"), "--config", config, "--http-port", "0", "--grpc-port", "0"});
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.err, HasSubstr(port->address()));
}

TEST(BadStartTest, WrongSettingsAreRefusedByName) {
  const TempFolder folder;
  const std::string config = folder.File("up.json");
  ASSERT_TRUE(config::WriteFileAtomically(config, R"({"htpp_port": 1})").ok());
  EXPECT_THAT(FailingUp({"--config", config}).err, HasSubstr("htpp_port"));
  EXPECT_THAT(FailingUp({"--compute", "float64"}).err, HasSubstr("--compute"));
  EXPECT_THAT(FailingUp({"--http-port", "70000", "--data", folder.File("data")}).err,
              HasSubstr("--http-port"));
  const CommandResult unknown = FailingUp({"--modle", "x"});
  EXPECT_EQ(unknown.exit_code, 2);
  EXPECT_THAT(unknown.err, HasSubstr("did you mean --model?"));
}

TEST(BadStartTest, OtherMachinesNeedKeys) {
  const TempFolder folder;
  const CommandResult result = FailingUp(
      {"--data", folder.File("data"), "--host", "0.0.0.0", "--http-port", "0", "--grpc-port", "0"});
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.err, HasSubstr("mneme keys add"));
}

}  // namespace
}  // namespace mneme
