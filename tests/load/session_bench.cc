// What stored sessions cost and gain, with the real processes as `mneme up` runs them: redis-server
// waiting for its disk at every write, memory service, executor and gateway, the default model on
// its bfloat16 path, everything encrypted. A session of 8k tokens is
//
//   saved     executor's pages -> memory service -> encrypted -> Redis, beside plain pipelined SETs
//   restored  and back into the pages, beside plain pipelined GETs of the same bytes (1 MiB values)
//   continued by ordinary turns: what they store and how long it takes after their last token
//   forked    time, Redis' memory, and whether the branches leave each other alone
//   resumed   time to the first token, beside the same session from its text
//
// in one run, the two sides of each ratio in turns. Prints the figures beside their bars and ends
// with 1 if one is missed.
#include <grpcpp/create_channel.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "common/config/config.h"
#include "common/redis/client.h"
#include "common/rpc/client.h"
#include "common/rpc/grpc_status.h"
#include "common/status/status_macros.h"
#include "mneme/executor/v1/executor.grpc.pb.h"
#include "mneme/gateway/v1/model.grpc.pb.h"
#include "mneme/memory/v1/memory.grpc.pb.h"
#include "services/cli/data_folder.h"
#include "tests/support/chat_client.h"
#include "tests/support/median.h"
#include "tests/support/mneme_up.h"

namespace mneme::testing {
namespace {

namespace ev1 = executor::v1;
namespace gv1 = gateway::v1;
namespace mv1 = memory::v1;

constexpr char kTenant[] = "default";
constexpr char kSession[] = "long";
constexpr size_t kPlainValueBytes = size_t{1} << 20;
constexpr int kTextTokens = 7600;  // of the first message, about, unless --tokens=N says otherwise
constexpr int kTurns = 11;         // ordinary ones
constexpr int kTurnTokens = 16;    // that each generates
constexpr int kRounds = 10;        // of save and restore; even: see MeasureTransfers
constexpr int kForks = 20;
constexpr int kResumptions = 5;
constexpr absl::Duration kPatience = absl::Minutes(10);

double SecondsSince(absl::Time start) { return absl::ToDoubleSeconds(absl::Now() - start); }

// Figures and their bars.
class Scores {
 public:
  void AtLeast(const std::string& what, double value, double bar) {
    Print(what, value, ">=", bar, value >= bar);
  }
  void AtMost(const std::string& what, double value, double bar) {
    Print(what, value, "<=", bar, value <= bar);
  }
  void Holds(const std::string& what, bool holds) {
    std::printf("%-6s %s\n", holds ? "ok" : "MISSED", what.c_str());
    missed_ += holds ? 0 : 1;
  }
  int missed() const { return missed_; }

 private:
  void Print(const std::string& what, double value, const char* relation, double bar, bool holds) {
    std::printf("%-6s %s: %.2f (bar: %s %g)\n", holds ? "ok" : "MISSED", what.c_str(), value,
                relation, bar);
    missed_ += holds ? 0 : 1;
  }

  int missed_ = 0;
};

// Everything that runs, and stubs to its parts.
struct System {
  std::unique_ptr<MnemeUp> up;
  std::unique_ptr<ChatClient> client;
  std::unique_ptr<ev1::ExecutorService::Stub> executor;
  std::unique_ptr<mv1::MemoryService::Stub> memory;
  std::unique_ptr<gv1::ModelService::Stub> models;
  std::unique_ptr<redis::Client> redis;
  std::string memory_address;
  int64_t token_bytes = 0;  // of key/value memory
  int text_tokens = kTextTokens;
};

std::unique_ptr<grpc::ClientContext> NewCall() {
  auto context = std::make_unique<grpc::ClientContext>();
  context->set_deadline(absl::ToChronoTime(absl::Now() + kPatience));
  return context;
}

absl::StatusOr<System> StartSystem(int text_tokens) {
  System system;
  system.text_tokens = text_tokens;
  ASSIGN_OR_RETURN(system.up, MnemeUp::Start({.arguments = {"--compute", "bfloat16"}}));
  system.client = std::make_unique<ChatClient>(system.up->grpc());
  ASSIGN_OR_RETURN(const cli::v1::ServiceState executor, system.up->ServiceOf("executor"));
  ASSIGN_OR_RETURN(const cli::v1::ServiceState memory, system.up->ServiceOf("memory"));
  ASSIGN_OR_RETURN(const cli::v1::ServiceState redis, system.up->ServiceOf("redis"));
  system.memory_address = memory.address();
  system.executor = ev1::ExecutorService::NewStub(rpc::ConnectTo(executor.address()));
  system.memory = mv1::MemoryService::NewStub(rpc::ConnectTo(memory.address()));
  system.models = gv1::ModelService::NewStub(system.up->channel());
  ASSIGN_OR_RETURN(const std::string password,
                   config::ReadFile(system.up->data() + "/redis/password"));
  system.redis = std::make_unique<redis::Client>(
      redis::Options{.address = redis.address(),
                     .password = password.substr(0, password.find('\n')),
                     // Plain values go in one pipeline.
                     .command_timeout = absl::Minutes(1)});
  ev1::GetModelResponse model;
  RETURN_IF_ERROR(
      rpc::FromGrpc(system.executor->GetModel(NewCall().get(), ev1::GetModelRequest(), &model)));
  system.token_bytes = int64_t{2} * 2 * model.num_layers() * model.num_kv_heads() *
                       model.head_size();  // keys and values, two bytes a number
  return system;
}

absl::StatusOr<std::string> ConfigOf(System& system, const std::string& name) {
  ASSIGN_OR_RETURN(const redis::Reply reply, system.redis->Run({"CONFIG", "GET", name}));
  if (reply.elements().size() != 2) return absl::InternalError("CONFIG GET gave nothing");
  return reply.elements()[1].text();
}

absl::StatusOr<int64_t> UsedMemory(System& system) {
  ASSIGN_OR_RETURN(const redis::Reply reply, system.redis->Run({"INFO", "memory"}));
  for (const absl::string_view line : absl::StrSplit(reply.text(), "\r\n")) {
    int64_t bytes = 0;
    const std::pair<absl::string_view, absl::string_view> field = absl::StrSplit(line, ':');
    if (field.first == "used_memory" && absl::SimpleAtoi(field.second, &bytes)) return bytes;
  }
  return absl::InternalError("INFO memory names no used_memory");
}

// Drops everything that the executor holds: pages, copies in host memory, shared beginnings.
absl::Status ForgetHotMemory(System& system) {
  ev1::ForgetMemoryRequest request;
  request.set_tenant(kTenant);
  ev1::ForgetMemoryResponse response;
  return rpc::FromGrpc(system.executor->ForgetMemory(NewCall().get(), request, &response));
}

// A text of about kTextTokens tokens in which no two sentences are equal.
absl::StatusOr<std::string> LongText(System& system) {
  constexpr const char* kWho[] = {"the miller",       "her sister", "an old sailor",
                                  "the schoolmaster", "a stranger", "the baker's boy",
                                  "my aunt"};
  constexpr const char* kWhat[] = {"mended",  "painted", "carried home", "sold",
                                   "counted", "hid",     "found",        "broke"};
  constexpr const char* kWhich[] = {"a blue boat",  "three candles", "the church clock",
                                    "a red violin", "the long rope", "a basket of plums",
                                    "his own hat",  "a dead lamp",   "the parish map"};
  std::string text = "Here is what I remember of that year.";
  for (int i = 0; true; ++i) {
    absl::StrAppend(&text, " On day ", i + 1, " ", kWho[i * 5 % 7], " ", kWhat[i * 3 % 8], " ",
                    kWhich[i % 9], ".");
    if (i % 50 != 0) continue;
    gv1::CountTokensRequest request;
    request.set_model(system.up->model());
    request.set_text(text);
    gv1::CountTokensResponse response;
    RETURN_IF_ERROR(rpc::FromGrpc(system.models->CountTokens(NewCall().get(), request, &response)));
    if (response.tokens() >= system.text_tokens) return text;
  }
}

gv1::ChatRequest TellingTurn(const std::string& session_id, const std::string& text) {
  gv1::ChatRequest request = TurnOf(session_id, text, kTurnTokens);
  request.mutable_sampling()->set_min_tokens(kTurnTokens);
  return request;
}

absl::StatusOr<ChatReply> Chat(System& system, const gv1::ChatRequest& request) {
  ChatReply reply = system.client->Chat(request, kPatience);
  RETURN_IF_ERROR(reply.status);
  if (!reply.is_committed() || !reply.receipt.snapshot_lost_reason().empty()) {
    return absl::InternalError(absl::StrCat(
        "a turn was not stored with its memory: ", reply.receipt.not_persisted_reason(),
        reply.receipt.snapshot_lost_reason()));
  }
  return reply;
}

// A turn of one token, computed on the executor itself and not committed.
struct DirectTurn {
  double first_token_seconds = 0;
  double after_last_token_seconds = 0;
  ev1::GenerateResponse last;
};

absl::StatusOr<DirectTurn> GenerateOne(System& system, const std::string& session_id,
                                       const std::vector<int32_t>& prompt) {
  mv1::AcquireLeaseRequest acquire;
  acquire.set_tenant(kTenant);
  acquire.set_session_id(session_id);
  acquire.set_holder("session_bench");
  acquire.set_ttl_ms(60'000);
  acquire.set_create(true);
  acquire.set_model(system.up->model());
  mv1::AcquireLeaseResponse lease;
  RETURN_IF_ERROR(rpc::FromGrpc(system.memory->AcquireLease(NewCall().get(), acquire, &lease)));
  ev1::GenerateRequest request;
  request.mutable_prompt_ids()->Assign(prompt.begin(), prompt.end());
  request.mutable_sampling()->set_max_tokens(1);
  request.mutable_sampling()->set_temperature(0);
  request.set_tenant(kTenant);
  request.set_session_id(session_id);
  request.set_lease_token(lease.lease_token());
  request.set_parent_version(lease.session().version());
  request.set_snapshot_version(lease.snapshot_version());
  DirectTurn turn;
  const std::unique_ptr<grpc::ClientContext> context = NewCall();
  const absl::Time begin = absl::Now();
  absl::Time token = begin;
  const auto reader = system.executor->Generate(context.get(), request);
  ev1::GenerateResponse response;
  while (reader->Read(&response)) {
    if (response.token_ids_size() > 0) token = absl::Now();
    turn.last = response;
  }
  turn.first_token_seconds = absl::ToDoubleSeconds(token - begin);
  turn.after_last_token_seconds = SecondsSince(token);
  RETURN_IF_ERROR(rpc::FromGrpc(reader->Finish()));
  mv1::ReleaseLeaseRequest release;
  release.set_tenant(kTenant);
  release.set_session_id(session_id);
  release.set_lease_token(lease.lease_token());
  mv1::ReleaseLeaseResponse released;
  RETURN_IF_ERROR(rpc::FromGrpc(system.memory->ReleaseLease(NewCall().get(), release, &released)));
  return turn;
}

absl::Status DeleteSession(System& system, const std::string& session_id) {
  mv1::DeleteSessionRequest request;
  request.set_tenant(kTenant);
  request.set_session_id(session_id);
  mv1::DeleteSessionResponse response;
  return rpc::FromGrpc(system.memory->DeleteSession(NewCall().get(), request, &response));
}

// All bytes of the session's stored memory, cut anew.
absl::StatusOr<std::vector<std::string>> PlainValues(System& system) {
  mv1::FetchSnapshotRequest request;
  request.set_tenant(kTenant);
  request.set_session_id(kSession);
  const std::unique_ptr<grpc::ClientContext> context = NewCall();
  const auto reader = system.memory->FetchSnapshot(context.get(), request);
  std::vector<std::string> values(1);
  mv1::FetchSnapshotResponse part;
  while (reader->Read(&part)) {
    absl::string_view rest = part.chunk().payload();
    while (!rest.empty()) {
      if (values.back().size() == kPlainValueBytes) values.emplace_back();
      const absl::string_view piece = rest.substr(0, kPlainValueBytes - values.back().size());
      values.back().append(piece.data(), piece.size());
      rest.remove_prefix(piece.size());
    }
  }
  RETURN_IF_ERROR(rpc::FromGrpc(reader->Finish()));
  return values;
}

absl::Status CheckReplies(const absl::StatusOr<std::vector<redis::Reply>>& replies) {
  RETURN_IF_ERROR(replies.status());
  for (const redis::Reply& reply : *replies) RETURN_IF_ERROR(reply.status());
  return absl::OkStatus();
}

// Processor time that one of the processes has used.
absl::StatusOr<double> CpuSeconds(System& system, const std::string& service) {
  ASSIGN_OR_RETURN(const cli::v1::ServiceState state, system.up->ServiceOf(service));
  ASSIGN_OR_RETURN(const std::string stat,
                   config::ReadFile(absl::StrCat("/proc/", state.pid(), "/stat")));
  // The fields after the name; user and system time are the 12th and 13th of them.
  const std::vector<std::string> fields = absl::StrSplit(stat.substr(stat.rfind(')') + 2), ' ');
  int64_t user = 0;
  int64_t kernel = 0;
  if (fields.size() < 13 || !absl::SimpleAtoi(fields[11], &user) ||
      !absl::SimpleAtoi(fields[12], &kernel)) {
    return absl::InternalError("a process' times cannot be read");
  }
  return static_cast<double>(user + kernel) / static_cast<double>(sysconf(_SC_CLK_TCK));
}

// Processor time of what the executor, the memory service and Redis do, in this order.
class CpuMeter {
 public:
  absl::Status Start(System& system) { return Read(system, &before_); }
  absl::Status Stop(System& system) {
    std::array<double, 3> after{};
    RETURN_IF_ERROR(Read(system, &after));
    for (size_t i = 0; i < after.size(); ++i) sums_[i] += after[i] - before_[i];
    return absl::OkStatus();
  }
  std::string PerRound(int rounds) const {
    return absl::StrFormat("executor %.0f, memory service %.0f, Redis %.0f",
                           1000 * sums_[0] / rounds, 1000 * sums_[1] / rounds,
                           1000 * sums_[2] / rounds);
  }

 private:
  static absl::Status Read(System& system, std::array<double, 3>* seconds) {
    size_t i = 0;
    for (const char* const service : {"executor", "memory", "redis"}) {
      ASSIGN_OR_RETURN((*seconds)[i++], CpuSeconds(system, service));
    }
    return absl::OkStatus();
  }

  std::array<double, 3> before_{}, sums_{};
};

absl::Status MeasureTransfers(System& system, Scores* scores) {
  ASSIGN_OR_RETURN(const std::vector<std::string> values, PlainValues(system));
  std::vector<redis::Command> sets;
  std::vector<redis::Command> gets;
  redis::Command remove = {"UNLINK"};
  double bytes = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    sets.push_back({"SET", absl::StrCat("plain-", i), redis::Argument::Borrow(values[i])});
    gets.push_back({"GET", absl::StrCat("plain-", i)});
    remove.push_back(absl::StrCat("plain-", i));
    bytes += static_cast<double>(values[i].size());
  }
  ASSIGN_OR_RETURN(const mv1::GetSessionResponse stored,
                   StoredSession(system.memory_address, kSession));
  std::vector<int32_t> prompt(stored.token_ids().begin(), stored.token_ids().end());
  std::vector<double> set_seconds, get_seconds, save_seconds, restore_seconds;
  std::vector<double> save_ratios, restore_ratios;
  CpuMeter set_cpu, get_cpu, save_cpu, restore_cpu;
  const auto set = [&]() -> absl::Status {
    RETURN_IF_ERROR(set_cpu.Start(system));
    const absl::Time start = absl::Now();
    RETURN_IF_ERROR(CheckReplies(system.redis->RunPipeline(sets)));
    set_seconds.push_back(SecondsSince(start));
    return set_cpu.Stop(system);
  };
  // A new session with the same beginning takes its pages from the one that is hot, and has all of
  // them to store.
  const auto save = [&](const std::string& copy) -> absl::Status {
    RETURN_IF_ERROR(save_cpu.Start(system));
    ASSIGN_OR_RETURN(const DirectTurn saved, GenerateOne(system, copy, prompt));
    RETURN_IF_ERROR(save_cpu.Stop(system));
    if (saved.last.snapshot_id().empty() || saved.last.receipt().prefilled_tokens() > 16) {
      return absl::InternalError(
          absl::StrCat("not a save from hot pages: ", saved.last.receipt().ShortDebugString()));
    }
    const double moved = static_cast<double>(saved.last.receipt().bytes_moved());
    save_seconds.push_back(saved.after_last_token_seconds * bytes / moved);
    return absl::OkStatus();
  };
  const auto get = [&]() -> absl::Status {
    RETURN_IF_ERROR(get_cpu.Start(system));
    const absl::Time start = absl::Now();
    const absl::StatusOr<std::vector<redis::Reply>> replies = system.redis->RunPipeline(gets);
    get_seconds.push_back(SecondsSince(start));
    RETURN_IF_ERROR(get_cpu.Stop(system));
    return CheckReplies(replies);
  };
  const auto restore = [&]() -> absl::Status {
    RETURN_IF_ERROR(ForgetHotMemory(system));
    RETURN_IF_ERROR(restore_cpu.Start(system));
    ASSIGN_OR_RETURN(const DirectTurn restored, GenerateOne(system, kSession, prompt));
    RETURN_IF_ERROR(restore_cpu.Stop(system));
    const inference::v1::MemoryReceipt& receipt = restored.last.receipt();
    if (receipt.tier() != "redis" || receipt.prefilled_tokens() > 2) {
      return absl::InternalError(absl::StrCat("not restored: ", receipt.ShortDebugString()));
    }
    restore_seconds.push_back(receipt.ms().at("restore") / 1000 * bytes /
                              static_cast<double>(receipt.restored_tokens() * system.token_bytes));
    return absl::OkStatus();
  };
  for (int round = 0; round < kRounds; ++round) {
    // The first to write gets what Redis has freed lately, the second has the kernel clear new
    // pages, which takes a third of Redis' time: so they take turns.
    const std::string copy = absl::StrCat("copy-", round);
    if (round % 2 == 0) {
      RETURN_IF_ERROR(set());
      RETURN_IF_ERROR(save(copy));
      RETURN_IF_ERROR(get());
      RETURN_IF_ERROR(restore());
    } else {
      RETURN_IF_ERROR(save(copy));
      RETURN_IF_ERROR(set());
      RETURN_IF_ERROR(restore());
      RETURN_IF_ERROR(get());
    }
    RETURN_IF_ERROR(DeleteSession(system, copy));
    RETURN_IF_ERROR(system.redis->Run(remove).status());
    save_ratios.push_back(set_seconds.back() / save_seconds.back());
    restore_ratios.push_back(get_seconds.back() / restore_seconds.back());
  }
  const double megabytes = bytes / 1e6;
  std::printf("transfers of %.0f MB (%zu tokens), medians of %d rounds, MB/s:\n", megabytes,
              prompt.size(), kRounds);
  std::printf("       plain SET %.0f, save %.0f; plain GET %.0f, restore %.0f\n",
              megabytes / Median(set_seconds), megabytes / Median(save_seconds),
              megabytes / Median(get_seconds), megabytes / Median(restore_seconds));
  std::printf("       processor ms a round: SET: %s\n", set_cpu.PerRound(kRounds).c_str());
  std::printf("                            save: %s\n", save_cpu.PerRound(kRounds).c_str());
  std::printf("                             GET: %s\n", get_cpu.PerRound(kRounds).c_str());
  std::printf("                         restore: %s\n", restore_cpu.PerRound(kRounds).c_str());
  scores->AtLeast("save / plain SET", Median(save_ratios), 0.6);
  scores->AtLeast("restore / plain GET", Median(restore_ratios), 0.6);
  return absl::OkStatus();
}

absl::Status MeasureTurns(System& system, Scores* scores) {
  std::vector<double> after_ms, stage_ms, commit_ms;
  bool moves_own_bytes_only = true;
  ASSIGN_OR_RETURN(mv1::GetSessionResponse stored, StoredSession(system.memory_address, kSession));
  int64_t covered = stored.token_ids_size() - 1;
  for (int turn = 0; turn < kTurns; ++turn) {
    ASSIGN_OR_RETURN(
        const ChatReply reply,
        Chat(system, TellingTurn(kSession, absl::StrCat("And on day ", 1000 + turn, "?"))));
    if (reply.finish_reason != inference::v1::FINISH_REASON_LENGTH) {
      return absl::InternalError("an answer ended before its length");
    }
    after_ms.push_back(absl::ToDoubleMilliseconds(reply.done - reply.last_text));
    stage_ms.push_back(reply.receipt.ms().at("stage"));
    commit_ms.push_back(reply.receipt.ms().at("commit"));
    const int64_t now_covered = reply.usage.prompt_tokens() + reply.usage.completion_tokens() - 1;
    const int64_t own_bytes = (now_covered - covered) * system.token_bytes;
    covered = now_covered;
    if (reply.receipt.bytes_moved() != own_bytes) {
      moves_own_bytes_only = false;
      std::printf("turn %d moved %lld bytes, its own tokens have %lld\n", turn + 1,
                  static_cast<long long>(reply.receipt.bytes_moved()),
                  static_cast<long long>(own_bytes));
    }
  }
  std::printf("%d turns of a session of %lld tokens: stage p50 %.1f ms, commit p50 %.1f ms\n",
              kTurns, static_cast<long long>(covered), Median(stage_ms), Median(commit_ms));
  scores->Holds("each turn moves its own tokens' bytes and no other", moves_own_bytes_only);
  scores->AtMost("ms after the last token, p50", Median(after_ms), 20);
  return absl::OkStatus();
}

absl::StatusOr<double> Fork(System& system, const std::string& name) {
  gv1::ForkSessionRequest request;
  request.set_session_id(kSession);
  request.set_new_session_id(name);
  gv1::ForkSessionResponse response;
  const absl::Time start = absl::Now();
  RETURN_IF_ERROR(
      rpc::FromGrpc(system.client->sessions().ForkSession(NewCall().get(), request, &response)));
  return 1000 * SecondsSince(start);
}

absl::Status MeasureForks(System& system, Scores* scores) {
  ASSIGN_OR_RETURN(const int64_t before, UsedMemory(system));
  std::vector<double> fork_ms;
  for (int i = 0; i < kForks; ++i) {
    ASSIGN_OR_RETURN(const double ms, Fork(system, absl::StrCat("fork-", i)));
    fork_ms.push_back(ms);
  }
  ASSIGN_OR_RETURN(const int64_t after, UsedMemory(system));
  scores->AtMost("ms of a fork, p50", Median(fork_ms), 20);
  scores->AtMost("KiB of Redis' memory for a fork",
                 static_cast<double>(after - before) / kForks / 1024, 64);

  // Two forks are asked the same, the original something else.
  const auto log_of = [&](const std::string& session) {
    return StoredSession(system.memory_address, session);
  };
  ASSIGN_OR_RETURN(const mv1::GetSessionResponse original, log_of(kSession));
  ASSIGN_OR_RETURN(const ChatReply one, Chat(system, TellingTurn("fork-0", "Who had the boat?")));
  ASSIGN_OR_RETURN(const mv1::GetSessionResponse untouched, log_of(kSession));
  ASSIGN_OR_RETURN(const mv1::GetSessionResponse branch, log_of("fork-0"));
  ASSIGN_OR_RETURN(const ChatReply two, Chat(system, TellingTurn("fork-1", "Who had the boat?")));
  ASSIGN_OR_RETURN(const mv1::GetSessionResponse same_branch, log_of("fork-0"));
  scores->Holds("a branch's turn leaves the original as it was",
                untouched.SerializeAsString() == original.SerializeAsString() &&
                    branch.token_ids_size() > original.token_ids_size());
  scores->Holds(
      "another branch gives the same answer and leaves the first as it was",
      one.text == two.text && same_branch.SerializeAsString() == branch.SerializeAsString());
  return absl::OkStatus();
}

absl::Status MeasureResumption(System& system, const std::string& text, double first_from_text,
                               Scores* scores) {
  std::vector<double> resumed_ms;
  for (int i = 0; i < kResumptions; ++i) {
    RETURN_IF_ERROR(ForgetHotMemory(system));
    ASSIGN_OR_RETURN(const ChatReply reply, Chat(system, TellingTurn(absl::StrCat("fork-", 2 + i),
                                                                     "Who had the violin?")));
    if (reply.receipt.tier() != "redis") {
      return absl::InternalError(
          absl::StrCat("not resumed from Redis: ", reply.receipt.ShortDebugString()));
    }
    resumed_ms.push_back(absl::ToDoubleMilliseconds(reply.first_text));
  }
  RETURN_IF_ERROR(ForgetHotMemory(system));
  ASSIGN_OR_RETURN(const ChatReply again, Chat(system, TellingTurn("again", text)));
  if (again.receipt.prefilled_tokens() != again.usage.prompt_tokens()) {
    return absl::InternalError("the session from text was not computed from text");
  }
  // The faster one counts.
  const double text_ms = std::min(first_from_text, absl::ToDoubleMilliseconds(again.first_text));
  std::printf("time to the first token: from text %.0f ms, resumed %.0f ms\n", text_ms,
              Median(resumed_ms));
  scores->AtLeast("resumed faster than from text, times", text_ms / Median(resumed_ms), 10);
  return absl::OkStatus();
}

absl::Status Measure(int text_tokens, Scores* scores) {
  ASSIGN_OR_RETURN(System system, StartSystem(text_tokens));
  ASSIGN_OR_RETURN(const std::string append_only, ConfigOf(system, "appendonly"));
  ASSIGN_OR_RETURN(const std::string fsync, ConfigOf(system, "appendfsync"));
  std::printf("%u cores; Redis: appendonly %s, appendfsync %s\n",
              std::thread::hardware_concurrency(), append_only.c_str(), fsync.c_str());
  // A rewrite of the append-only file would fall on one side of a comparison.
  RETURN_IF_ERROR(
      system.redis->Run({"CONFIG", "SET", "auto-aof-rewrite-percentage", "0"}).status());
  ASSIGN_OR_RETURN(const std::string text, LongText(system));
  ASSIGN_OR_RETURN(const ChatReply first, Chat(system, TellingTurn(kSession, text)));
  RETURN_IF_ERROR(MeasureTurns(system, scores));
  RETURN_IF_ERROR(MeasureTransfers(system, scores));
  RETURN_IF_ERROR(MeasureForks(system, scores));
  return MeasureResumption(system, text, absl::ToDoubleMilliseconds(first.first_text), scores);
}

}  // namespace
}  // namespace mneme::testing

// --tokens=N measures a shorter session, for a look at where time goes; the bars are meant for the
// full one. Other arguments are those of all benchmarks and not looked at.
int main(int argc, char** argv) {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  mneme::testing::Scores scores;
  int text_tokens = mneme::testing::kTextTokens;
  for (int i = 1; i < argc; ++i) {
    absl::string_view argument = argv[i];
    if (absl::ConsumePrefix(&argument, "--tokens=") && !absl::SimpleAtoi(argument, &text_tokens)) {
      std::fprintf(stderr, "session_bench: --tokens is not a number\n");
      return 1;
    }
  }
  const absl::Status status = mneme::testing::Measure(text_tokens, &scores);
  if (!status.ok()) {
    std::fprintf(stderr, "session_bench: %s\n", status.ToString().c_str());
    return 1;
  }
  if (scores.missed() > 0) std::printf("%d bars missed\n", scores.missed());
  return scores.missed() > 0 ? 1 : 0;
}
