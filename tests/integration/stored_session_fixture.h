// The real mneme-memory, mneme-executor and redis-server, and the gateway's part of a turn (lease,
// commit) played by the test: for what becomes of a session's memory when a process ends.
#pragma once

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/config/config.h"
#include "common/redis/client.h"
#include "common/rpc/client.h"
#include "common/rpc/grpc_status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "mneme/executor/v1/config.pb.h"
#include "mneme/executor/v1/executor.grpc.pb.h"
#include "mneme/memory/v1/config.pb.h"
#include "mneme/memory/v1/memory.grpc.pb.h"
#include "services/executor/test_requests.h"
#include "tests/support/free_port.h"
#include "tests/support/redis_server.h"
#include "tests/support/temp_folder.h"
#include "tests/support/time_limit.h"

namespace mneme::testing {

// One of our processes on a fixed port. It ends with this object.
class Service {
 public:
  explicit Service(std::string name) : name_(std::move(name)) {}
  ~Service() { Kill(); }

  // Returns when the process answers.
  template <typename Config>
  void Start(Config config) {
    if (port_ == 0) port_ = *FreePort();
    config.set_listen(address());
    const std::string path = folder_.File("config.json");
    ASSERT_TRUE(config::WriteFileAtomically(path, config::ToJson(config)).ok());
    const std::string binary = absl::StrCat(std::getenv("MNEME_BIN"), "/", name_);
    const std::string log = folder_.File("log");
    const char* const arguments[] = {binary.c_str(), "--config", path.c_str(), nullptr};
    pid_ = fork();
    if (pid_ == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      dup2(open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600), 2);
      execv(binary.c_str(), const_cast<char* const*>(arguments));
      _exit(127);
    }
    ASSERT_TRUE(rpc::WaitForConnection(*channel(), absl::Minutes(2)))
        << config::ReadFile(log)->c_str();
  }

  void Kill() {
    if (pid_ < 0) return;
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
    pid_ = -1;
  }

  std::string address() const { return absl::StrCat("127.0.0.1:", port_); }
  std::shared_ptr<grpc::Channel> channel() const { return rpc::ConnectTo(address()); }
  std::string File(const std::string& name) const { return folder_.File(name); }

 private:
  const std::string name_;
  TempFolder folder_;
  int port_ = 0;
  pid_t pid_ = -1;
};

class StoredSessionTest : public ::testing::Test {
 protected:
  void SetUp() override {
    redis_ = *RedisServer::Start({.append_fsync = "always"});
    ASSERT_TRUE(
        config::WriteFileAtomically(memory_.File("master.key"), std::string(64, 'a'), 0600).ok());
    StartMemory();
    StartExecutor();
    for (const executor::GoldenPrompt& prompt : executor::GoldenPrompts()) {
      prompts_.push_back(prompt.prompt_ids);
    }
    ASSERT_GE(prompts_.size(), 5U);
  }

  void StartMemory() {
    memory::v1::MemoryConfig config;
    config.mutable_redis()->set_address(redis_->address());
    config.set_master_key_file(memory_.File("master.key"));
    *config.mutable_tiers() = tiers_;
    config.set_sweep_interval_ms(50);
    memory_.Start(config);
  }

  void StartExecutor() {
    executor::v1::ExecutorConfig config = executor::DefaultModelConfig(compute_);
    config.set_kv_budget_bytes(int64_t{256} << 20);
    config.set_memory_address(memory_.address());
    for (const auto& artifact : namm_artifacts_) *config.add_namm_artifacts() = artifact;
    executor_.Start(config);
  }

  struct Answer {
    std::vector<int32_t> ids;
    std::vector<float> logprobs;
    executor::v1::GenerateResponse last;
  };

  Answer Generate(const executor::v1::GenerateRequest& request) {
    for (;;) {
      Answer answer;
      grpc::ClientContext context;
      const auto stub = executor::v1::ExecutorService::NewStub(executor_.channel());
      const auto reader = stub->Generate(&context, request);
      executor::v1::GenerateResponse response;
      while (reader->Read(&response)) {
        answer.ids.insert(answer.ids.end(), response.token_ids().begin(),
                          response.token_ids().end());
        for (const auto& token : response.logprobs()) answer.logprobs.push_back(token.logprob());
        answer.last = response;
      }
      const grpc::Status status = reader->Finish();
      if (status.ok()) return answer;
      // The model is being loaded.
      EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE) << status.error_message();
      if (status.error_code() != grpc::StatusCode::UNAVAILABLE) return answer;
      absl::SleepFor(absl::Milliseconds(50));
    }
  }

  // A turn of session `session` with new tokens, committed. Its tokens, and what the model thought
  // of them, are those of a request that has never had a session, unless its memory was made
  // smaller meanwhile. `policy` unset: the session's.
  inference::v1::MemoryReceipt Turn(const std::string& session, const std::vector<int32_t>& tokens,
                                    int max_tokens, const inference::v1::MemoryPolicy& policy = {},
                                    bool is_undisturbed = true) {
    const auto stub = memory::v1::MemoryService::NewStub(memory_.channel());
    memory::v1::AcquireLeaseRequest acquire;
    acquire.set_tenant("t");
    acquire.set_session_id(session);
    acquire.set_holder("test");
    acquire.set_create(true);
    acquire.set_model("smollm2-135m-instruct");
    acquire.set_with_history(true);
    acquire.set_ttl_ms(600'000);  // nobody renews it, and sanitizers are slow
    memory::v1::AcquireLeaseResponse lease;
    grpc::ClientContext lease_context;
    lease_context.set_wait_for_ready(true);
    const grpc::Status leased = stub->AcquireLease(&lease_context, acquire, &lease);
    EXPECT_TRUE(leased.ok()) << leased.error_message();

    executor::v1::GenerateRequest request;
    request.mutable_prompt_ids()->Assign(lease.token_ids().begin(), lease.token_ids().end());
    request.mutable_prompt_ids()->Add(tokens.begin(), tokens.end());
    const bool has_policy =
        policy.policy_case() != inference::v1::MemoryPolicy::PolicyCase::POLICY_NOT_SET;
    *request.mutable_memory_policy() = has_policy ? policy : lease.plan().policy();
    request.mutable_sampling()->set_max_tokens(max_tokens);
    request.mutable_sampling()->set_temperature(0.7F);
    request.mutable_sampling()->set_seed(lease.session().version());
    request.mutable_sampling()->set_ignore_eos(true);
    request.mutable_sampling()->set_logprobs(0);
    const Answer expected = Generate(request);
    request.set_tenant("t");
    request.set_session_id(session);
    request.set_lease_token(lease.lease_token());
    request.set_parent_version(lease.session().version());
    request.set_snapshot_version(lease.snapshot_version());
    const Answer answer = Generate(request);
    if (is_undisturbed) {
      EXPECT_EQ(answer.ids, expected.ids);
      EXPECT_EQ(answer.logprobs, expected.logprobs);
      EXPECT_EQ(answer.last.receipt().resident_tokens(), expected.last.receipt().resident_tokens());
    }
    EXPECT_NE(answer.last.snapshot_id(), "") << answer.last.receipt().not_persisted_reason();

    memory::v1::CommitTurnRequest commit;
    commit.set_tenant("t");
    commit.set_session_id(session);
    commit.set_lease_token(lease.lease_token());
    commit.set_parent_version(lease.session().version());
    commit.set_snapshot_id(answer.last.snapshot_id());
    commit.set_release(true);
    commit.mutable_turn()->mutable_token_ids()->Add(tokens.begin(), tokens.end());
    commit.mutable_turn()->mutable_token_ids()->Add(answer.ids.begin(), answer.ids.end());
    commit.mutable_turn()->add_messages()->set_role("assistant");
    memory::v1::CommitTurnResponse committed;
    grpc::ClientContext commit_context;
    const grpc::Status status = stub->CommitTurn(&commit_context, commit, &committed);
    EXPECT_TRUE(status.ok()) << status.error_message();
    EXPECT_EQ(committed.snapshot_lost_reason(), "");
    num_tokens_ = request.prompt_ids_size() + static_cast<int64_t>(answer.ids.size());
    return answer.last.receipt();
  }

  std::unique_ptr<RedisServer> redis_;
  memory::v1::TierConfig tiers_;
  Service memory_{"mneme-memory"};
  Service executor_{"mneme-executor"};
  std::string compute_ = "float32";
  std::vector<executor::v1::ExecutorConfig::NammArtifact> namm_artifacts_;
  std::vector<std::vector<int32_t>> prompts_;
  int64_t num_tokens_ = 0;  // of the log of the session that had the last turn
};

}  // namespace mneme::testing
