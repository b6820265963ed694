// A session under every memory policy goes from process to process: each of its turns runs in an
// executor that was started for it, on memory that comes from Redis, and gives the tokens and the
// log-probabilities, bit for bit, of a sequence that was never interrupted. Where turns end is
// drawn at random.
#include <cstdlib>
#include <map>
#include <random>

#include "common/memory/untrained_namm.h"
#include "tests/integration/stored_session_fixture.h"

namespace mneme::testing {
namespace {

using Proto = inference::v1::MemoryPolicy;

constexpr int kTurns = 4;

class PolicyProcessTest : public StoredSessionTest {
 protected:
  void SetUp() override {
    ASSERT_TRUE(memory::WriteUntrainedNamm(folder_.File("mine.safetensors")).ok());
    namm_artifacts_.emplace_back();
    namm_artifacts_[0].set_name("mine");
    namm_artifacts_[0].set_path(folder_.File("mine.safetensors"));
    StoredSessionTest::SetUp();
  }

  static std::map<std::string, Proto> Policies() {
    std::map<std::string, Proto> policies;
    policies["full"].mutable_full();
    policies["window"].mutable_window()->set_sinks(4);
    policies["window"].mutable_window()->set_recent(40);
    policies["h2o"].mutable_h2o()->mutable_budget()->set_tokens(48);
    policies["h2o"].mutable_h2o()->set_interval(16);
    policies["snapkv"].mutable_snapkv()->mutable_budget()->set_fraction(0.5);
    policies["snapkv"].mutable_snapkv()->set_window(8);
    policies["snapkv"].mutable_snapkv()->set_interval(32);
    policies["l2norm"].mutable_l2norm()->mutable_budget()->set_tokens(32);
    policies["l2norm"].mutable_l2norm()->set_skip_layers(1);
    policies["l2norm"].mutable_l2norm()->set_interval(48);
    policies["namm"].mutable_namm()->set_artifact("mine");
    policies["namm"].mutable_namm()->set_cache_size(64);
    policies["beacon"].mutable_beacon()->add_ratios(4);
    policies["beacon"].mutable_beacon()->add_ratios(8);
    policies["beacon"].mutable_beacon()->set_window(32);
    policies["beacon-bounded"] = policies["beacon"];
    policies["beacon-bounded"].mutable_beacon()->set_max_beacons(12);
    return policies;
  }

  TempFolder folder_;
};

TEST_F(PolicyProcessTest, EachProcessGoesOnWhereTheLastOneStopped) {
  const char* const given = std::getenv("MNEME_SEED");
  const unsigned seed = given == nullptr ? std::random_device()() : std::stoul(given);
  SCOPED_TRACE(absl::StrCat("MNEME_SEED=", seed));
  std::mt19937 random(seed);
  std::vector<int32_t> text;
  for (const auto& prompt : prompts_) text.insert(text.end(), prompt.begin(), prompt.end());
  const std::map<std::string, Proto> policies = Policies();
  for (int turn = 0; turn < kTurns; ++turn) {
    executor_.Kill();
    StartExecutor();
    for (const auto& [name, policy] : policies) {
      SCOPED_TRACE(absl::StrCat(name, ", turn ", turn));
      std::vector<int32_t> tokens;
      const auto num_new = static_cast<int>(1 + random() % 60);
      for (int i = 0; i < num_new; ++i) tokens.push_back(text[random() % text.size()]);
      const inference::v1::MemoryReceipt receipt =
          Turn(name, tokens, static_cast<int>(1 + random() % 40), policy);
      EXPECT_EQ(receipt.tier(), turn == 0 ? "none" : "redis");
      // All but the last token of the turn before, which no step has read yet.
      EXPECT_EQ(receipt.prefilled_tokens(), num_new + (turn == 0 ? 0 : 1));
    }
  }
}

}  // namespace
}  // namespace mneme::testing
