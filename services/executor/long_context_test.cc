// 32k tokens through the default model, whose context is 8k, in the memory of a few thousand: turns
// of a session that stays hot, in a pool that `full` would need ten times over.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "services/executor/policy_engine_fixture.h"
#include "services/executor/test_requests.h"

namespace mneme::executor {
namespace {

constexpr int kTurns = 16;
constexpr int kTurnTokens = 2048;

class LongContextTest : public PolicyEngineTest {
 protected:
  // The memory after each turn stays what it was after 16k tokens, and so does the most of a turn.
  void ExpectFlat(const Proto& policy, int64_t kv_budget_bytes) {
    config_ = DefaultModelConfig("bfloat16");
    const auto engine = NewEngine(/*step_tokens=*/512, kv_budget_bytes);
    ASSERT_NE(engine, nullptr) << "run the set-up to fetch the default model";
    EXPECT_LT(limits_.context_length, kTurns * kTurnTokens / 3);
    v1::GenerateRequest request;
    *request.mutable_memory_policy() = policy;
    request.set_tenant("t");
    request.set_session_id("s");
    request.mutable_sampling()->set_max_tokens(1);
    request.mutable_sampling()->set_temperature(0);
    request.mutable_sampling()->set_ignore_eos(true);
    std::vector<int64_t> resident;
    std::vector<int64_t> peak;
    for (int turn = 0; turn < kTurns; ++turn) {
      for (int i = 0; i < kTurnTokens; ++i) {
        request.add_prompt_ids(
            static_cast<int32_t>((request.prompt_ids_size() * 7919 + 17) % 40000));
      }
      request.set_parent_version(turn);
      const Answer answer = Read(*Submit(*engine, request));
      ASSERT_EQ(answer.tokens.size(), 1u);
      const inference::v1::MemoryReceipt& receipt = answer.end.receipt;
      EXPECT_EQ(receipt.tier(), turn == 0 ? "none" : "hot");
      EXPECT_EQ(receipt.prefilled_tokens(), kTurnTokens + (turn == 0 ? 0 : 1));
      resident.push_back(receipt.kv_bytes_resident());
      peak.push_back(receipt.kv_bytes_peak());
      request.add_prompt_ids(answer.tokens[0]);
      if (turn > 0) continue;
      EXPECT_LT(receipt.kv_bytes_full(), kv_budget_bytes) << "the first turn fits anyway";
    }
    // Turns end at different places within a page, and within a window of beacons.
    const int64_t slack =
        2 * 16 * limits_.policies.entry_bytes * limits_.policies.shape.num_heads();
    for (int turn = kTurns / 2; turn < kTurns; ++turn) {
      EXPECT_NEAR(resident[turn], resident[kTurns / 2 - 1], slack) << turn;
      EXPECT_LE(peak[turn], peak[kTurns / 2 - 1] + slack) << turn;
    }
    RecordProperty("resident_bytes", std::to_string(resident.back()));
    RecordProperty("peak_bytes", std::to_string(peak.back()));
    std::printf("resident %.1f MiB, peak %.1f MiB after %d tokens\n",
                static_cast<double>(resident.back()) / (1 << 20),
                static_cast<double>(peak.back()) / (1 << 20), request.prompt_ids_size());
  }
};

TEST_F(LongContextTest, WindowTakesTheSameMemoryForever) {
  Proto policy;
  policy.mutable_window()->set_sinks(4);
  policy.mutable_window()->set_recent(1020);
  ExpectFlat(policy, int64_t{72} << 20);
}

TEST_F(LongContextTest, BeaconsWithABoundTakeTheSameMemoryForever) {
  Proto policy;
  policy.mutable_beacon()->add_ratios(8);
  policy.mutable_beacon()->set_window(1024);
  policy.mutable_beacon()->set_max_beacons(1024);
  ExpectFlat(policy, int64_t{72} << 20);
}

}  // namespace
}  // namespace mneme::executor
