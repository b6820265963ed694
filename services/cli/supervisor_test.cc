// The supervisor with small real processes.
#include "services/cli/supervisor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>
#include <functional>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"

namespace mneme::cli {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string ContentOf(const std::string& path) {
  std::ifstream file(path);
  std::ostringstream content;
  content << file.rdbuf();
  return content.str();
}

// A dead process that nobody has reaped yet does not count.
bool Runs(pid_t pid) {
  const std::string stat = ContentOf(absl::StrCat("/proc/", pid, "/stat"));
  const size_t end = stat.rfind(')');
  return end != std::string::npos && stat[end + 2] != 'Z';
}

class SupervisorTest : public ::testing::Test {
 protected:
  SupervisorTest() {
    char folder[] = "/tmp/mneme-supervisor-XXXXXX";
    folder_ = mkdtemp(folder);
    options_.start_timeout = absl::Seconds(20);
    options_.first_backoff = absl::Milliseconds(20);
  }
  ~SupervisorTest() override {
    const int removed = system(absl::StrCat("rm -rf ", folder_).c_str());
    EXPECT_EQ(removed, 0);
  }

  std::string File(const std::string& name) const { return folder_ + "/" + name; }

  // A service that runs a script; "$READY" is the file that says it is ready, "$DIR" the folder.
  ServiceSpec Script(const std::string& name, const std::string& script) const {
    ServiceSpec spec;
    spec.name = name;
    spec.command = {"/bin/sh", "-c", script};
    spec.ready_file = File(name + ".ready");
    spec.environment = {"READY=" + spec.ready_file, "DIR=" + folder_};
    spec.log_path = File(name + ".log");
    spec.grace = absl::Seconds(5);
    return spec;
  }

  // Runs until `done` says so at a change, or for 20 s.
  absl::Status RunUntil(std::vector<ServiceSpec> specs,
                        const std::function<bool(const std::vector<ServiceStatus>&)>& done) {
    Supervisor* running = nullptr;
    SupervisorEvents events;
    events.on_change = [&] {
      if (!stopping_ && done(running->Statuses())) {
        stopping_ = true;
        kill(getpid(), SIGTERM);
      }
    };
    events.on_message = [&](absl::string_view text) { messages_.push_back(std::string(text)); };
    Supervisor supervisor(std::move(specs), options_, events);
    running = &supervisor;
    return supervisor.Run();
  }

  std::string folder_;
  SupervisorOptions options_;
  std::vector<std::string> messages_;
  bool stopping_ = false;
};

bool AllReady(const std::vector<ServiceStatus>& statuses) {
  for (const ServiceStatus& status : statuses) {
    if (status.state != ServiceState::kReady) return false;
  }
  return true;
}

constexpr char kServe[] =
    "trap 'echo stop $NAME >> $DIR/order; exit 0' TERM; echo start $NAME >> $DIR/order; "
    "touch $READY; while true; do sleep 0.01; done";

TEST_F(SupervisorTest, StartsAfterWhatIsNeededAndStopsByRank) {
  ServiceSpec front = Script("front", absl::StrCat("NAME=front; ", kServe));
  front.after = {"store"};
  front.stop_rank = 0;
  ServiceSpec store = Script("store", absl::StrCat("NAME=store; sleep 0.1; ", kServe));
  store.stop_rank = 1;
  ASSERT_TRUE(RunUntil({front, store}, AllReady).ok());
  EXPECT_THAT(std::vector<std::string>(absl::StrSplit(ContentOf(File("order")), '\n')),
              ElementsAre("start store", "start front", "stop front", "stop store", ""));
}

TEST_F(SupervisorTest, StartsAgainWhatIsKilled) {
  pid_t first = 0;
  pid_t second = 0;
  const absl::Status status = RunUntil({Script("a", absl::StrCat("NAME=a; ", kServe)),
                                        Script("b", absl::StrCat("NAME=b; ", kServe))},
                                       [&](const std::vector<ServiceStatus>& statuses) {
                                         if (!AllReady(statuses)) return false;
                                         if (first == 0) {
                                           first = statuses[0].pid;
                                           kill(first, SIGKILL);
                                           return false;
                                         }
                                         second = statuses[0].pid;
                                         EXPECT_EQ(statuses[0].restarts, 1);
                                         EXPECT_EQ(statuses[1].restarts, 0);
                                         return true;
                                       });
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_NE(first, second);
  EXPECT_THAT(messages_, testing::Contains(HasSubstr("a ended (signal 9")));
  EXPECT_THAT(messages_, testing::Contains("a is ready again"));
}

TEST_F(SupervisorTest, BackOffDoublesWhileAServiceKeepsDying) {
  // Ready for a moment each time.
  const absl::Status status = RunUntil(
      {Script("a", "touch $READY; sleep 0.1; exit 3")},
      [](const std::vector<ServiceStatus>& statuses) { return statuses[0].restarts == 3; });
  ASSERT_TRUE(status.ok()) << status;
  ASSERT_GE(messages_.size(), 3u);
  std::vector<std::string> ends;
  for (const std::string& message : messages_) {
    if (message.find("ended") != std::string::npos) ends.push_back(message);
  }
  EXPECT_THAT(ends, ElementsAre("a ended (exit code 3): starting it again in 20ms",
                                "a ended (exit code 3): starting it again in 40ms",
                                "a ended (exit code 3): starting it again in 80ms"));
}

TEST_F(SupervisorTest, BackOffStartsAnewAfterAStableTime) {
  options_.stable_after = absl::Milliseconds(1);
  const absl::Status status = RunUntil(
      {Script("a", "touch $READY; sleep 0.1; exit 3")},
      [](const std::vector<ServiceStatus>& statuses) { return statuses[0].restarts == 2; });
  ASSERT_TRUE(status.ok()) << status;
  for (const std::string& message : messages_) {
    if (message.find("ended") != std::string::npos) {
      EXPECT_THAT(message, HasSubstr("in 20ms"));
    }
  }
}

TEST_F(SupervisorTest, AServiceThatEndsBeforeItIsReadyFailsTheStartWithItsLastWords) {
  const ServiceSpec bad = Script(
      "bad", R"(echo '{"level":"error","message":"m","error":"no such model file"}' >&2; exit 1)");
  const absl::Status status = RunUntil({Script("good", absl::StrCat("NAME=good; ", kServe)), bad},
                                       [](const std::vector<ServiceStatus>&) { return false; });
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("bad ended before it was ready"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("no such model file"));
  EXPECT_THAT(std::string(status.message()), HasSubstr(File("bad.log")));
}

TEST_F(SupervisorTest, AMissingProgramFailsTheStart) {
  ServiceSpec missing = Script("missing", "");
  missing.command = {"/nonexistent/program"};
  const absl::Status status =
      RunUntil({missing}, [](const std::vector<ServiceStatus>&) { return false; });
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr("/nonexistent/program"));
}

TEST_F(SupervisorTest, AServiceThatNeverGetsReadyEndsTheStart) {
  options_.start_timeout = absl::Milliseconds(200);
  const absl::Status status = RunUntil({Script("slow", "sleep 100")},
                                       [](const std::vector<ServiceStatus>&) { return false; });
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(std::string(status.message()), HasSubstr("slow (starting)"));
}

TEST_F(SupervisorTest, AServiceThatIgnoresTermIsKilledAfterItsGrace) {
  ServiceSpec stubborn = Script("a", "trap '' TERM; touch $READY; while true; do sleep 0.01; done");
  stubborn.grace = absl::Milliseconds(100);
  pid_t pid = 0;
  ASSERT_TRUE(RunUntil({stubborn}, [&](const std::vector<ServiceStatus>& statuses) {
                pid = statuses[0].pid;
                return AllReady(statuses);
              }).ok());
  EXPECT_FALSE(Runs(pid));
  EXPECT_THAT(messages_, testing::Contains("a did not end in time: killing it"));
}

TEST_F(SupervisorTest, OutputGoesToTheLogFile) {
  ASSERT_TRUE(
      RunUntil({Script("a", "echo out; echo err >&2; touch $READY; exec sleep 100")}, AllReady)
          .ok());
  EXPECT_EQ(ContentOf(File("a.log")), "out\nerr\n");
}

TEST_F(SupervisorTest, AServiceThatStopsAnsweringIsUnhealthyThenKilledAndStartedAgain) {
  options_.health_interval = absl::Milliseconds(20);
  options_.health_timeout = absl::Milliseconds(100);
  options_.hang_timeout = absl::Milliseconds(300);
  options_.start_timeout = absl::Seconds(60);
  // The first run stops itself (SIGSTOP) once it is ready: connections are taken, nothing answers.
  const std::string script =
      "exec python3 -u -c '\n"
      "import http.server, os, signal, sys\n"
      "class H(http.server.BaseHTTPRequestHandler):\n"
      "    def do_GET(self):\n"
      "        self.protocol_version = \"HTTP/1.1\"\n"
      "        self.send_response(200); self.end_headers()\n"
      "        if not os.path.exists(os.environ[\"DIR\"] + \"/stopped\"):\n"
      "            open(os.environ[\"DIR\"] + \"/stopped\", \"w\").close()\n"
      "            self.wfile.flush()\n"
      "            self.connection.close()\n"
      "            os.kill(os.getpid(), signal.SIGSTOP)\n"
      "s = http.server.HTTPServer((\"127.0.0.1\", int(os.environ[\"PORT\"])), H)\n"
      "open(os.environ[\"READY\"], \"w\").close()\n"
      "s.serve_forever()\n'";
  ServiceSpec spec = Script("a", script);
  const int port = 20000 + getpid() % 10000;
  spec.environment.push_back(absl::StrCat("PORT=", port));
  spec.health = HealthzOf(absl::StrCat("127.0.0.1:", port));
  bool was_unhealthy = false;
  const absl::Status status = RunUntil({spec}, [&](const std::vector<ServiceStatus>& statuses) {
    was_unhealthy |= statuses[0].state == ServiceState::kUnhealthy;
    return statuses[0].state == ServiceState::kReady && statuses[0].restarts == 1;
  });
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_TRUE(was_unhealthy);
  EXPECT_THAT(messages_, testing::Contains(HasSubstr("has not answered")));
}

TEST_F(SupervisorTest, NothingIsLeftWhenTheSupervisorItselfIsKilled) {
  const pid_t supervisor = fork();
  if (supervisor == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);  // a failed assertion must not leave it behind
    const absl::Status status = RunUntil(
        {Script("a", "echo $$ > $DIR/pid.a; touch $READY; exec sleep 100"),
         Script("b", "trap '' TERM HUP; echo $$ > $DIR/pid.b; touch $READY; exec sleep 100")},
        [&](const std::vector<ServiceStatus>& statuses) {
          if (AllReady(statuses)) std::ofstream(File("all_ready")) << "yes";
          return false;
        });
    _exit(1);
  }
  for (int i = 0; i < 1000 && ContentOf(File("all_ready")).empty(); ++i) {
    absl::SleepFor(absl::Milliseconds(10));
  }
  const pid_t a = atoi(ContentOf(File("pid.a")).c_str());
  const pid_t b = atoi(ContentOf(File("pid.b")).c_str());
  ASSERT_TRUE(a > 0 && Runs(a));
  ASSERT_TRUE(b > 0 && Runs(b));
  kill(supervisor, SIGKILL);
  waitpid(supervisor, nullptr, 0);
  for (int i = 0; i < 200 && (Runs(a) || Runs(b)); ++i) absl::SleepFor(absl::Milliseconds(10));
  EXPECT_FALSE(Runs(a));
  EXPECT_FALSE(Runs(b));
}

}  // namespace
}  // namespace mneme::cli
