// A session's key/value memory outlives the executor, the memory service and Redis.
#include <functional>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/redis/client.h"
#include "services/memory/family.h"
#include "services/memory/master_key.h"
#include "services/memory/tenant_keys.h"
#include "tests/integration/stored_session_fixture.h"
#include "tests/support/time_limit.h"

namespace mneme::testing {
namespace {

class SessionMemoryTest : public StoredSessionTest {
 protected:
  inference::v1::MemoryReceipt Turn(size_t index, bool is_undisturbed = true) {
    return StoredSessionTest::Turn("s", prompts_[index], 12, {}, is_undisturbed);
  }

  // The memory service makes the session smaller and the executor forgets it, as the gateway has
  // it.
  memory::v1::CompactSessionResponse Compact(memory::v1::CompactSessionRequest request) {
    request.set_tenant("t");
    request.set_session_id("s");
    memory::v1::CompactSessionResponse response;
    grpc::ClientContext context;
    const grpc::Status status = memory::v1::MemoryService::NewStub(memory_.channel())
                                    ->CompactSession(&context, request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    executor::v1::ForgetMemoryRequest forget;
    forget.set_tenant("t");
    forget.set_session_id("s");
    executor::v1::ForgetMemoryResponse forgotten;
    grpc::ClientContext forget_context;
    EXPECT_TRUE(executor::v1::ExecutorService::NewStub(executor_.channel())
                    ->ForgetMemory(&forget_context, forget, &forgotten)
                    .ok());
    return response;
  }

  // Changes the manifest of the session's latest turn where it is stored, as another version of the
  // memory service might have written it.
  void ChangeManifest(const std::function<void(snapshot::v1::Manifest*)>& change) {
    const absl::Time deadline = absl::Now() + absl::Seconds(10);
    redis::Client client({.address = redis_->address()});
    const auto text = [&](const redis::Command& command) {
      const auto reply = client.Run(command, deadline);
      EXPECT_TRUE(reply.ok()) << reply.status();
      return reply.ok() ? reply->text() : "";
    };
    const auto master_key = memory::LoadMasterKey(memory_.File("master.key"));
    ASSERT_TRUE(master_key.ok()) << master_key.status();
    memory::TenantKeys keys(client, *master_key, "the test's");
    const auto key = keys.Find("t", /*again=*/false, deadline);
    ASSERT_TRUE(key.ok()) << key.status();
    const memory::Family family(*key, "t", text({"HGET", "mneme:2:{t}:families", "s"}));
    const std::string turn = text({"LINDEX", family.TurnsKey("s"), "-1"});
    const std::string field = absl::StrCat("m", turn);
    const auto opened = family.OpenManifest(text({"HGET", family.BodiesKey(), field}), turn);
    ASSERT_TRUE(opened.ok()) << opened.status();
    snapshot::v1::Manifest manifest;
    ASSERT_TRUE(manifest.ParseFromString(*opened));
    change(&manifest);
    const auto stored = client.Run({"HSET", family.BodiesKey(), field,
                                    family.SealManifest(manifest.SerializeAsString(), turn)},
                                   deadline);
    ASSERT_TRUE(stored.ok()) << stored.status();
  }

  // Waits until Redis has none of the session's chunks.
  void WaitUntilDemoted() {
    redis::Client client({.address = redis_->address()});
    const absl::Time deadline = absl::Now() + TimeLimit(absl::Seconds(30));
    while (!client.Run({"KEYS", "*:c:*"})->elements().empty()) {
      ASSERT_LT(absl::Now(), deadline);
      absl::SleepFor(absl::Milliseconds(10));
    }
  }
};

TEST_F(SessionMemoryTest, OutlivesExecutorMemoryServiceAndRedis) {
  EXPECT_EQ(Turn(0).tier(), "none");
  int64_t stored = num_tokens_ - 1;  // all but the last generated token
  inference::v1::MemoryReceipt receipt = Turn(1);
  EXPECT_EQ(receipt.tier(), "hot");
  EXPECT_EQ(receipt.reused_tokens(), stored);

  executor_.Kill();
  StartExecutor();
  stored = num_tokens_ - 1;
  receipt = Turn(2);
  EXPECT_EQ(receipt.tier(), "redis");
  EXPECT_EQ(receipt.restored_tokens(), stored);
  EXPECT_EQ(receipt.prefilled_tokens(), static_cast<int64_t>(prompts_[2].size()) + 1);

  // Everything at once.
  executor_.Kill();
  memory_.Kill();
  redis_->Kill();
  ASSERT_TRUE(redis_->Restart().ok());
  StartMemory();
  StartExecutor();
  stored = num_tokens_ - 1;
  receipt = Turn(3);
  EXPECT_EQ(receipt.tier(), "redis");
  EXPECT_EQ(receipt.restored_tokens(), stored);

  // Only the memory service: the hot memory goes on, and its chunks are still known.
  memory_.Kill();
  StartMemory();
  stored = num_tokens_ - 1;
  receipt = Turn(4);
  EXPECT_EQ(receipt.tier(), "hot");
  EXPECT_EQ(receipt.reused_tokens(), stored);

  // Redis has no room for it any more, and the executor has lost its own.
  memory_.Kill();
  tiers_.set_redis_budget_bytes(1);
  tiers_.set_disk_path(memory_.File("disk"));
  StartMemory();
  WaitUntilDemoted();
  executor_.Kill();
  StartExecutor();
  stored = num_tokens_ - 1;
  receipt = Turn(0);
  EXPECT_EQ(receipt.tier(), "disk");
  EXPECT_EQ(receipt.restored_tokens(), stored);
}

TEST_F(SessionMemoryTest, MemoryOfAnotherModelIsNotUsed) {
  EXPECT_EQ(Turn(0).tier(), "none");
  for (const char* const compute : {"bfloat16", "float32"}) {
    // The same weights, but other numbers.
    executor_.Kill();
    compute_ = compute;
    StartExecutor();
    const inference::v1::MemoryReceipt receipt = Turn(1);
    EXPECT_EQ(receipt.tier(), "rebuilt");
    EXPECT_EQ(receipt.restored_tokens(), 0);
    EXPECT_EQ(receipt.prefilled_tokens() + 12, num_tokens_);
  }
  // What this model has stored by now is.
  executor_.Kill();
  StartExecutor();
  const int64_t stored = num_tokens_ - 1;
  const inference::v1::MemoryReceipt receipt = Turn(2);
  EXPECT_EQ(receipt.tier(), "redis");
  EXPECT_EQ(receipt.restored_tokens(), stored);
}

TEST_F(SessionMemoryTest, MemoryInAnotherFormatIsNotUsed) {
  Turn(0);
  for (const uint32_t format : {0, 2}) {
    ChangeManifest([&](snapshot::v1::Manifest* manifest) {
      EXPECT_EQ(manifest->format_version(), 1U);
      manifest->set_format_version(format);
    });
    executor_.Kill();
    StartExecutor();
    const inference::v1::MemoryReceipt receipt = Turn(1);
    EXPECT_EQ(receipt.tier(), "rebuilt") << format;
    EXPECT_EQ(receipt.restored_tokens(), 0) << format;
    EXPECT_EQ(receipt.prefilled_tokens() + 12, num_tokens_) << format;
  }
}

TEST_F(SessionMemoryTest, CompactedMemoryIsRestoredAndGoesOnUnderItsWindow) {
  for (const size_t index : {0, 1, 2, 3}) Turn(index);
  const int64_t stored = num_tokens_ - 1;
  ASSERT_GT(stored, 100);

  // Fewer bits: the numbers are others from here on, the place is not.
  memory::v1::CompactSessionRequest request;
  request.set_encoding(snapshot::v1::ENCODING_INT8);
  const memory::v1::CompactSessionResponse rounded = Compact(request);
  EXPECT_LT(rounded.kv_bytes_after(), rounded.kv_bytes_before() / 3);
  EXPECT_EQ(rounded.entries_after(), stored);
  inference::v1::MemoryReceipt receipt = Turn(4, /*is_undisturbed=*/false);
  EXPECT_EQ(receipt.tier(), "redis");
  EXPECT_EQ(receipt.restored_tokens(), stored);
  EXPECT_EQ(receipt.prefilled_tokens(), static_cast<int64_t>(prompts_[4].size()) + 1);

  // A window.
  const int64_t covered = num_tokens_ - 1;
  request.Clear();
  request.mutable_memory_policy()->mutable_window()->set_sinks(4);
  request.mutable_memory_policy()->mutable_window()->set_recent(44);
  const memory::v1::CompactSessionResponse shrunk = Compact(request);
  EXPECT_EQ(shrunk.entries_before(), covered);
  EXPECT_LE(shrunk.entries_after(), 16 + 44 + 16);
  EXPECT_LT(shrunk.kv_bytes_after(), shrunk.kv_bytes_before());
  receipt = Turn(0, /*is_undisturbed=*/false);
  EXPECT_EQ(receipt.tier(), "redis");
  EXPECT_EQ(receipt.restored_tokens(), covered);
  EXPECT_LE(receipt.resident_tokens(), 16 + 44 + 16);
  EXPECT_EQ(Turn(1, /*is_undisturbed=*/false).tier(), "hot");
}

}  // namespace
}  // namespace mneme::testing
