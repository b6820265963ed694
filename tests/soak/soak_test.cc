// Eight conversations of 25 turns on the exact path while some process is killed about every three
// seconds. In the end every committed turn must be there exactly once, and every text and token
// must equal those of a run that nobody disturbed.
#include <grpcpp/client_context.h>
#include <grpcpp/create_channel.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <csignal>
#include <iostream>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "mneme/gateway/v1/chat.grpc.pb.h"
#include "mneme/memory/v1/memory.grpc.pb.h"
#include "tests/support/environment.h"
#include "tests/support/mneme_up.h"

namespace mneme {
namespace {

namespace gv1 = gateway::v1;
namespace mv1 = memory::v1;

constexpr int kSessions = 8;
constexpr int kTurns = 25;
constexpr int kDefaultSeeds = 3;
constexpr absl::Duration kKillInterval = absl::Seconds(3);
constexpr absl::Duration kTurnPatience = absl::Minutes(2);
constexpr const char* kVictims[] = {"executor", "memory", "gateway", "redis"};

// What is left of a conversation.
struct Transcript {
  std::vector<std::string> texts;     // of the answers, as the client saw them
  std::vector<std::string> messages;  // role and content, as the store has them
  std::vector<int32_t> token_ids;     // the token log
  uint64_t version = 0;
};

// What a run met with.
struct Tally {
  std::atomic<int> retries = 0;
  std::atomic<int> restored_turns = 0;  // began from a stored snapshot
  std::atomic<int> reused_turns = 0;    // began from memory that was still hot
};

std::string SessionId(int session) { return absl::StrCat("soak-", session); }

std::string Question(int session, int turn) {
  constexpr const char* kThings[] = {"the sea", "an old clock", "bread",    "a bridge",
                                     "winter",  "a violin",     "the moon", "a ladder"};
  std::string text = absl::StrCat("Question ", turn + 1, ": say something about ",
                                  kThings[(session + turn) % 8], ".");
  // Some turns bring more than a page.
  if (turn % 5 == 2) {
    for (int i = 0; i < 3; ++i) {
      absl::StrAppend(&text, " Bear in mind that ", kThings[(session + turn + i) % 8],
                      " was never what the traveller had expected of it.");
    }
  }
  return text;
}

grpc::ChannelArguments PatientChannel() {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 50);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 50);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 300);
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  return arguments;
}

// Asks until the turn is known to be stored. Returns the answer's text.
absl::StatusOr<std::string> TakeTurn(gv1::ChatService::Stub& stub, int session, int turn,
                                     Tally* tally) {
  gv1::ChatRequest request;
  request.set_session_id(SessionId(session));
  request.set_request_id(absl::StrCat("turn-", session, "-", turn));
  auto* message = request.add_messages();
  message->set_role("user");
  message->set_content(Question(session, turn));
  request.mutable_sampling()->set_temperature(0);
  request.mutable_sampling()->set_max_tokens(10 + (session * 3 + turn) % 9);
  const absl::Time until = absl::Now() + kTurnPatience;
  std::string last_error = "none";
  for (; absl::Now() < until; absl::SleepFor(absl::Milliseconds(50))) {
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(absl::Now() + absl::Seconds(60)));
    const auto reader = stub.Chat(&context, request);
    std::string text;
    gv1::ChatResponse event;
    inference::v1::MemoryReceipt receipt;
    uint64_t version = 0;
    while (reader->Read(&event)) {
      text += event.text_delta();
      if (event.has_receipt()) receipt = event.receipt();
      if (event.has_done()) version = event.done().version();
    }
    const grpc::Status status = reader->Finish();
    if (status.ok() && receipt.persisted() && version > 0) {
      if (version != static_cast<uint64_t>(turn) + 1) {
        return absl::InternalError(
            absl::StrCat("turn ", turn + 1, " of session ", session, " became version ", version));
      }
      if (receipt.restored_tokens() > 0) ++tally->restored_turns;
      if (receipt.reused_tokens() > 0) ++tally->reused_turns;
      return text;
    }
    last_error = status.ok() ? absl::StrCat("not stored: ", receipt.not_persisted_reason())
                             : status.error_message();
    ++tally->retries;
  }
  return absl::DeadlineExceededError(absl::StrCat("turn ", turn + 1, " of session ", session,
                                                  " was not taken, last error: ", last_error));
}

absl::Status ReadBack(const testing::MnemeUp& up, int session, Transcript* transcript) {
  absl::Status last = absl::OkStatus();
  for (const absl::Time until = absl::Now() + absl::Seconds(30); absl::Now() < until;
       absl::SleepFor(absl::Milliseconds(100))) {
    const auto service = up.ServiceOf("memory");
    if (!service.ok()) return service.status();
    const auto stub = mv1::MemoryService::NewStub(
        grpc::CreateChannel(service->address(), grpc::InsecureChannelCredentials()));
    mv1::GetSessionRequest request;
    request.set_tenant("default");
    request.set_session_id(SessionId(session));
    request.set_with_messages(true);
    request.set_with_tokens(true);
    mv1::GetSessionResponse response;
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(absl::Now() + absl::Seconds(10)));
    const grpc::Status status = stub->GetSession(&context, request, &response);
    if (!status.ok()) {
      last = absl::UnavailableError(status.error_message());
      continue;
    }
    transcript->version = response.session().version();
    for (const auto& message : response.messages()) {
      transcript->messages.push_back(absl::StrCat(message.role(), ": ", message.content()));
    }
    transcript->token_ids.assign(response.token_ids().begin(), response.token_ids().end());
    return absl::OkStatus();
  }
  return last;
}

// Runs all conversations at once.
std::vector<Transcript> Converse(testing::MnemeUp& up, Tally* tally, std::atomic<bool>* over) {
  std::vector<Transcript> transcripts(kSessions);
  {
    std::vector<std::jthread> threads;
    threads.reserve(kSessions);
    for (int s = 0; s < kSessions; ++s) {
      threads.emplace_back([&, s] {
        const auto stub = gv1::ChatService::NewStub(grpc::CreateCustomChannel(
            up.grpc(), grpc::InsecureChannelCredentials(), PatientChannel()));
        for (int turn = 0; turn < kTurns; ++turn) {
          absl::StatusOr<std::string> text = TakeTurn(*stub, s, turn, tally);
          if (!text.ok()) {
            ADD_FAILURE() << text.status();
            return;
          }
          transcripts[s].texts.push_back(*std::move(text));
        }
      });
    }
  }
  *over = true;
  for (int s = 0; s < kSessions; ++s) {
    const absl::Status status = ReadBack(up, s, &transcripts[s]);
    EXPECT_TRUE(status.ok()) << status;
  }
  return transcripts;
}

absl::StatusOr<std::unique_ptr<testing::MnemeUp>> StartExact() {
  return testing::MnemeUp::Start({.arguments = {"--compute", "float32"}});
}

struct UndisturbedRun {
  std::vector<Transcript> transcripts;
  absl::Duration duration;
};

// Made once for all seeds.
const UndisturbedRun& Undisturbed() {
  static const UndisturbedRun run = [] {
    auto up = StartExact();
    if (!up.ok()) {
      ADD_FAILURE() << up.status();
      return UndisturbedRun{.transcripts = std::vector<Transcript>(kSessions)};
    }
    Tally tally;
    std::atomic<bool> over = false;
    const absl::Time start = absl::Now();
    UndisturbedRun made;
    made.transcripts = Converse(**up, &tally, &over);
    made.duration = absl::Now() - start;
    return made;
  }();
  return run;
}

// A machine that is slow, or busy with something else, must get on between the kills: they are as
// many for the same turns as on a fast one, unless somebody wants them at a time of his own.
absl::Duration KillInterval() {
  const int wanted_ms = testing::NumberFrom("MNEME_SOAK_KILL_INTERVAL_MS", 0);
  if (wanted_ms > 0) return absl::Milliseconds(wanted_ms);
  return std::max(kKillInterval, Undisturbed().duration / 8);
}

int NumSeeds() { return testing::NumberFrom("MNEME_SOAK_SEEDS", kDefaultSeeds); }

class SoakTest : public ::testing::TestWithParam<int> {};

TEST_P(SoakTest, EveryCommittedTurnIsThereExactlyOnceAndNoTokenDiffers) {
  const std::vector<Transcript>& expected = Undisturbed().transcripts;
  const int64_t interval_ms = absl::ToInt64Milliseconds(KillInterval());
  auto up = StartExact();
  ASSERT_TRUE(up.ok()) << up.status();
  std::atomic<bool> over = false;
  Tally tally;
  int kills = 0;
  std::jthread killer([&] {
    std::mt19937 random(GetParam());
    while (!over) {
      const auto pause =
          std::chrono::milliseconds(interval_ms / 2 + static_cast<int64_t>(random()) % interval_ms);
      for (const auto until = std::chrono::steady_clock::now() + pause;
           !over && std::chrono::steady_clock::now() < until;) {
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
      }
      const char* const victim = kVictims[random() % std::size(kVictims)];
      // One that is down already is left alone.
      if (!over && (*up)->Signal(victim, SIGKILL).ok()) ++kills;
    }
  });
  const std::vector<Transcript> actual = Converse(**up, &tally, &over);
  killer.join();
  RecordProperty("kills", kills);
  RecordProperty("retries", tally.retries);
  std::cout << "[ soak     ] seed " << GetParam() << ": " << kills << " kills every " << interval_ms
            << " ms, " << tally.retries << " retries, " << tally.restored_turns
            << " turns restored, " << tally.reused_turns << " from hot memory\n";
  EXPECT_GT(kills, 3);
  ASSERT_EQ(actual.size(), expected.size());
  for (int s = 0; s < kSessions; ++s) {
    SCOPED_TRACE(SessionId(s));
    EXPECT_EQ(expected[s].version, static_cast<uint64_t>(kTurns));
    EXPECT_EQ(actual[s].version, static_cast<uint64_t>(kTurns));
    EXPECT_EQ(actual[s].texts, expected[s].texts);
    EXPECT_EQ(actual[s].messages, expected[s].messages);
    EXPECT_EQ(actual[s].token_ids, expected[s].token_ids);
  }
}

INSTANTIATE_TEST_SUITE_P(Seeds, SoakTest, ::testing::Range(1, 1 + NumSeeds()));

}  // namespace
}  // namespace mneme
