// Memory policy beacon in the engine, on a small model, float32: batches and preemption change
// nothing, the memory stays small, and wrong wishes are refused by name.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "common/model/tiny_model.h"
#include "common/status/annotate.h"
#include "services/executor/policy_engine_fixture.h"

namespace mneme::executor {
namespace {

using ::testing::Contains;
using ::testing::HasSubstr;
using Proto = inference::v1::MemoryPolicy;

Proto BeaconProto(const std::vector<int32_t>& ratios, int32_t window = 32) {
  Proto policy;
  policy.mutable_beacon()->mutable_ratios()->Assign(ratios.begin(), ratios.end());
  policy.mutable_beacon()->set_window(window);
  return policy;
}

class BeaconEngineTest : public PolicyEngineTest {
 protected:
  void SetUp() override {
    ASSERT_TRUE(model::WriteTinyModel(folder_.path(), {.context_length = 256}).ok());
    auto model = LoadedModel::Load(config_);
    ASSERT_TRUE(model.ok()) << model.status();
    limits_ = (*model)->limits();
    model_ = *std::move(model);
  }

  absl::Status Refused(const v1::GenerateRequest& request) const {
    return CheckGenerate(request, limits_).status();
  }

  std::unique_ptr<LoadedModel> model_;
};

TEST_F(BeaconEngineTest, EachGetsTheTokensThatItGetsAlone) {
  std::vector<Proto> policies = {BeaconProto({4}), Proto(), BeaconProto({2, 4, 0, 8}),
                                 BeaconProto({8}, 16), BeaconProto({2, 4})};
  policies[1].mutable_window()->set_sinks(4);
  policies[1].mutable_window()->set_recent(40);
  policies[2].mutable_beacon()->set_sinks(2);
  policies[4].mutable_beacon()->set_mix(Proto::Beacon::MIX_STEP_RANDOM);
  policies[4].mutable_beacon()->set_seed(7);
  std::vector<v1::GenerateRequest> requests;
  for (int i = 0; i < 15; ++i) {
    requests.push_back(
        Request(policies[i % policies.size()], i, 20 + i * 37 % 150, 12 + i * 5 % 40));
  }
  std::vector<Answer> alone;
  {
    const auto engine = NewEngine(/*step_tokens=*/512, int64_t{64} << 20);
    for (const auto& request : requests) alone.push_back(Read(*Submit(*engine, request)));
  }
  // Small steps, so that windows are cut; then so few pages that most requests wait for others.
  for (const int64_t budget : {int64_t{64} << 20, int64_t{3} << 16}) {
    const auto engine = NewEngine(/*step_tokens=*/24, budget);
    std::vector<std::shared_ptr<TokenStream>> streams;
    for (const auto& request : requests) streams.push_back(Submit(*engine, request));
    for (size_t i = 0; i < streams.size(); ++i) {
      EXPECT_EQ(Read(*streams[i]).tokens, alone[i].tokens) << "request " << i;
    }
  }
}

TEST_F(BeaconEngineTest, TextsRunPastTheContextInSmallMemory) {
  // Eight tokens make a beacon: 256 positions are enough for 1200 tokens.
  const auto engine = NewEngine(/*step_tokens=*/64, int64_t{64} << 20);
  const Answer answer = Read(*Submit(*engine, Request(BeaconProto({8}), 1, 1150, 50)));
  EXPECT_EQ(answer.tokens.size(), 50u);
  const auto& receipt = answer.end.receipt;
  EXPECT_LE(receipt.resident_tokens(), 1200 / 8 + 36);
  EXPECT_GT(receipt.compression_ratio(), 5);
  // Beacons, an open window and its beacons.
  EXPECT_LE(receipt.kv_bytes_peak(), receipt.kv_bytes_full() / 6);

  const auto too_long = CheckGenerate(Request(BeaconProto({8}), 1, 2000, 5), limits_);
  ASSERT_TRUE(too_long.ok());
  EXPECT_EQ(engine->Submit(*too_long).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(BeaconEngineTest, WithABoundTextsOfAnyLengthTakeTheSameMemory) {
  Proto policy = BeaconProto({8});
  policy.mutable_beacon()->set_max_beacons(24);
  // The window's tokens and beacons, the bound.
  const int64_t most = 32 + 4 + 24;
  std::vector<int64_t> resident;
  for (const int prompt : {1024, 2048, 4096}) {
    const auto engine = NewEngine(/*step_tokens=*/64, int64_t{1} << 20);
    const Answer answer = Read(*Submit(*engine, Request(policy, 1, prompt, 10)));
    EXPECT_EQ(answer.tokens.size(), 10u);
    const auto& receipt = answer.end.receipt;
    EXPECT_LE(receipt.resident_tokens(), most);
    EXPECT_LE(receipt.kv_bytes_peak(), limits_.policies.entry_bytes *
                                           limits_.policies.shape.num_heads() * ((most + 15) / 16) *
                                           16);
    resident.push_back(receipt.kv_bytes_resident());
  }
  EXPECT_EQ(resident[0], resident[1]);
  EXPECT_EQ(resident[0], resident[2]);
}

TEST_F(BeaconEngineTest, WrongWishesAreRefusedByName) {
  EXPECT_THAT(model_->Describe().memory_policies(), Contains("beacon"));
  const auto expect = [](const absl::Status& status, const char* field, const char* message) {
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_EQ(status::PayloadOf(status, status::kFieldPayload), field);
    EXPECT_THAT(status.message(), HasSubstr(message));
  };
  expect(Refused(Request(BeaconProto({}), 1, 5, 5)), "memory_policy.beacon.ratios", "one ratio");
  expect(Refused(Request(BeaconProto({4, 5}), 1, 5, 5)), "memory_policy.beacon.ratios",
         "divide the window of 32 tokens: 5");
  expect(Refused(Request(BeaconProto({64}), 1, 5, 5)), "memory_policy.beacon.ratios", "divide");
  expect(Refused(Request(BeaconProto({-1}), 1, 5, 5)), "memory_policy.beacon.ratios", "from 0");
  expect(Refused(Request(BeaconProto({4}, -2), 1, 5, 5)), "memory_policy.beacon.window", "from 0");
  Proto sinks = BeaconProto({4});
  sinks.mutable_beacon()->set_sinks(33);
  expect(Refused(Request(sinks, 1, 5, 5)), "memory_policy.beacon.sinks", "window");
  Proto bounded = BeaconProto({4});
  bounded.mutable_beacon()->set_max_beacons(7);
  expect(Refused(Request(bounded, 1, 5, 5)), "memory_policy.beacon.max_beacons",
         "at least what one window leaves, 8");
  bounded.mutable_beacon()->set_max_beacons(-1);
  expect(Refused(Request(bounded, 1, 5, 5)), "memory_policy.beacon.max_beacons", "from 0");
  v1::GenerateRequest many = Request(BeaconProto({4}), 1, 5, 5);
  many.mutable_sampling()->set_n(2);
  expect(Refused(many), "sampling.n", "beacon");
  limits_.policies.beacons = nullptr;
  EXPECT_EQ(Refused(Request(BeaconProto({4}), 1, 5, 5)).code(),
            absl::StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace mneme::executor
