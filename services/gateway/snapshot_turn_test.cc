// What a session's turn says to memory service and executor about the key/value memory.
#include <thread>

#include "services/gateway/gateway_fixture.h"
#include "tests/support/time_limit.h"

namespace mneme::gateway {
namespace {

using ::testing::HasSubstr;

class SnapshotTurnTest : public GatewayTest {
 protected:
  Json Turn(const std::string& content, Json more = Json::object()) {
    more["session_id"] = "s";
    return Parse(Post("/v1/chat/completions", Chat(content, more)));
  }
  MapMemory::Stored Stored() { return memory_->Look("default/s"); }

  Upstream<ScriptedExecutor> second_;
};

TEST_F(SnapshotTurnTest, PlanSnapshotAndExecutorGoAround) {
  Start();
  const Json first = Turn("one");
  EXPECT_EQ(first["mneme"]["restored_tokens"], 7);
  EXPECT_EQ(first["mneme"]["snapshot_lost_reason"], "");
  const auto stored = Stored();
  const auto begun = executor_->requests()[0];
  EXPECT_EQ(begun.snapshot_version(), 0U);
  EXPECT_EQ(begun.snapshot_encoding(), snapshot::v1::ENCODING_BFLOAT16);
  EXPECT_EQ(begun.memory_policy().window().recent(), 512);
  EXPECT_EQ(stored.snapshots.at(1), absl::StrCat("snapshot-", begun.lease_token()));
  EXPECT_EQ(stored.executor, executor_.address());
  Turn("two", {{"memory_policy", {{"type", "full"}}}});
  const auto second = executor_->requests()[1];
  EXPECT_EQ(second.snapshot_version(), 1U);
  EXPECT_EQ(second.parent_version(), 1U);
  EXPECT_TRUE(second.memory_policy().has_full());
}

TEST_F(SnapshotTurnTest, HotExecutorIsPreferredWhileItIsReady) {
  config_.add_executor_addresses(second_.address());
  Start(2);
  memory_->SetExecutor("default/s", second_.address());
  for (int i = 0; i < 3; ++i) Turn("on");
  EXPECT_EQ(second_->calls, 3);
  memory_->SetExecutor("default/s", executor_.address());
  for (int i = 0; i < 3; ++i) Turn("on");
  EXPECT_EQ(executor_->calls, 3);
  executor_.Kill();
  EXPECT_EQ(Turn("on")["mneme"]["committed_version"], 7);
  EXPECT_EQ(second_->requests().back().snapshot_version(), 6U);
  EXPECT_EQ(Stored().executor, second_.address());
  // One that nobody knows is no reason to fail.
  memory_->SetExecutor("default/s", "10.0.0.1:1");
  EXPECT_EQ(Turn("on")["mneme"]["committed_version"], 8);
}

TEST_F(SnapshotTurnTest, StopStringFinishesTheGenerationAndKeepsItsSnapshot) {
  Start();
  const Json reply = Turn("one", {{"stop", "wor"}, {"ignore_eos", true}});
  EXPECT_EQ(reply["choices"][0]["message"]["content"], "Hello, ");
  EXPECT_EQ(reply["choices"][0]["finish_reason"], "stop");
  EXPECT_EQ(reply["mneme"]["tier"], "hot");
  ASSERT_EQ(executor_->finishes().size(), 1U);
  EXPECT_EQ(executor_->finishes()[0].num_tokens(), 7);
  EXPECT_EQ(executor_->finishes()[0].tenant(), "default");
  EXPECT_EQ(Stored().snapshots.size(), 1U);
}

TEST_F(SnapshotTurnTest, ExecutorThatDoesNotFinishCostsTheSnapshotOnly) {
  executor_->deaf = true;
  executor_->token_ms = 5;
  Start();
  const absl::Time begun = absl::Now();
  const Json reply = Turn("one", {{"stop", "wor"}, {"ignore_eos", true}});
  EXPECT_LT(absl::Now() - begun, testing::TimeLimit(absl::Seconds(5)));
  EXPECT_EQ(reply["choices"][0]["message"]["content"], "Hello, ");
  EXPECT_EQ(reply["mneme"]["persisted"], true);
  EXPECT_THAT(reply["mneme"]["snapshot_lost_reason"].get<std::string>(), HasSubstr("in time"));
  EXPECT_EQ(Stored().snapshots.size(), 0U);
  EXPECT_TRUE(Eventually([&] { return executor_->cancelled == 1; }));
}

TEST_F(SnapshotTurnTest, SnapshotThatTheStoreLosesIsSaidInBothFronts) {
  Start();
  memory_->lose_snapshots = true;
  const Json reply = Turn("one");
  EXPECT_EQ(reply["mneme"]["persisted"], true);
  EXPECT_EQ(reply["mneme"]["snapshot_lost_reason"], "the store is full");
  v1::ChatRequest request = GrpcRequest("two");
  request.set_session_id("s");
  const GrpcAnswer answer = GrpcChat(request);
  ASSERT_GE(answer.events.size(), 2U);
  const auto& receipt = answer.events[answer.events.size() - 2].receipt();
  EXPECT_TRUE(receipt.persisted());
  EXPECT_EQ(receipt.snapshot_lost_reason(), "the store is full");
  EXPECT_EQ(receipt.restored_tokens(), 7);
}

TEST_F(SnapshotTurnTest, MemoryThatTheExecutorCouldNotStoreIsSaidOfACommittedTurn) {
  executor_->loses_memory = true;
  Start();
  const Json reply = Turn("one");
  EXPECT_EQ(reply["mneme"]["persisted"], true);
  EXPECT_EQ(reply["mneme"]["not_persisted_reason"], "");
  EXPECT_EQ(reply["mneme"]["snapshot_lost_reason"], "the memory could not be stored");
}

TEST_F(SnapshotTurnTest, FailoverGoesOnFromTheCommittedHead) {
  config_.add_executor_addresses(second_.address());
  Start(2);
  Turn("one");
  memory_->SetExecutor("default/s", executor_.address());
  executor_->break_after = 5;
  EXPECT_EQ(Turn("two")["choices"][0]["message"]["content"], "Hello, world");
  const auto resumed = second_->requests().back();
  EXPECT_EQ(resumed.generated_ids_size(), 5);
  EXPECT_EQ(resumed.session_id(), "s");
  EXPECT_EQ(resumed.parent_version(), 1U);
  EXPECT_EQ(resumed.snapshot_version(), 1U);
  EXPECT_EQ(resumed.lease_token(), executor_->requests().back().lease_token());
  EXPECT_EQ(Stored().executor, second_.address());
  EXPECT_EQ(Stored().snapshots.size(), 2U);
}

}  // namespace
}  // namespace mneme::gateway
