// The window machine alone against every case file: which tokens and beacons each pass takes, at
// which positions, what it sees, and what the memory has afterwards. Exact.
#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/golden/beacon/golden_case.h"

namespace mneme::testing {
namespace {

using memory::BeaconPass;
using memory::BeaconRowKind;
using memory::BeaconState;
using nlohmann::json;

class BeaconPassGoldenTest : public ::testing::TestWithParam<std::string> {
 protected:
  BeaconPassGoldenTest() : golden_(GetParam()), settings_(golden_.Settings()) {
    const at::Tensor ids = golden_.Tensor("input_ids");
    tokens_ = ids;
    if (golden_.Has("generated")) tokens_ = at::cat({ids, golden_.Tensor("generated")}, 1);
    num_prompt_ = ids.size(1);
    vocab_size_ = golden_.Json("config")["vocab_size"];
  }

  // Compares a pass with everything that the file says about it.
  void ExpectPass(const BeaconState& before, BeaconPass pass, int64_t index, json expected) {
    SCOPED_TRACE(index);
    expected.erase("batch_loss");
    EXPECT_EQ(StepMetadata(pass, index), expected);
    const std::string step = "step" + std::to_string(index) + ".";
    if (golden_.Has(step + "input_ids")) {
      std::vector<at::Tensor> columns;
      for (const memory::BeaconRow& row : pass.rows) {
        columns.push_back(row.kind == BeaconRowKind::kToken
                              ? tokens_.select(1, row.token)
                              : at::full({tokens_.size(0)}, vocab_size_, at::kLong));
      }
      EXPECT_TRUE(at::equal(at::stack(columns, 1), golden_.Tensor(step + "input_ids")));
    }
    if (golden_.Has(step + "position_ids")) {
      std::vector<int64_t> positions;
      for (int64_t i = 0; i < pass.num_before; ++i) {
        positions.push_back(BeaconEntryPosition(settings_, before, i));
      }
      for (const memory::BeaconRow& row : pass.rows) positions.push_back(row.position);
      const at::Tensor expected_positions = golden_.Tensor(step + "position_ids");
      for (int64_t b = 0; b < tokens_.size(0); ++b) {
        EXPECT_TRUE(at::equal(at::tensor(positions, at::kLong), expected_positions[b]));
      }
    }
    if (golden_.Has(step + "beacon_indices")) {
      EXPECT_TRUE(at::equal(at::tensor(BeaconIndices(before, pass), at::kLong),
                            golden_.Tensor(step + "beacon_indices")));
    }
    if (golden_.Has(step + "visible")) {
      for (int64_t b = 0; b < tokens_.size(0); ++b) {
        if (golden_.Has("attention_mask")) {
          HidePadding(golden_.Tensor("attention_mask")[b], &pass);
        }
        EXPECT_TRUE(at::equal(Visible(pass), golden_.Tensor(step + "visible")[b]));
      }
    }
    if (golden_.Has(step + "labels")) {
      const at::Tensor labels = golden_.Tensor("labels");
      const at::Tensor targets = golden_.Tensor(step + "labels");
      for (int64_t b = 0; b < tokens_.size(0); ++b) {
        const at::Tensor row = labels[b].contiguous();
        const std::vector<int64_t> actual =
            BeaconTargets(pass, absl::MakeConstSpan(row.const_data_ptr<int64_t>(), row.numel()));
        EXPECT_TRUE(at::equal(at::tensor(actual, at::kLong), targets[b]));
      }
    }
  }

  const BeaconGolden golden_;
  const memory::BeaconSettings settings_;
  at::Tensor tokens_;  // int64 [B, n], generated ones included
  int64_t num_prompt_ = 0;
  int64_t vocab_size_ = 0;
};

TEST_P(BeaconPassGoldenTest, PassesAndMemorySizesEqualTheReference) {
  ASSERT_TRUE(memory::CheckBeaconSettings(settings_).ok());
  const json steps = golden_.Json(golden_.is_training() ? "steps" : "prefill_steps");
  const json decode_steps =
      golden_.Text("decode_steps").empty() ? json::array() : golden_.Json("decode_steps");
  BeaconState state = FirstBeaconState(settings_);
  std::vector<int64_t> ratios;
  int64_t index = 0;
  int64_t num_returned = 0;
  const auto run_to = [&](int64_t num_tokens, const json& expected, int64_t first) {
    while (state.end < num_tokens) {
      auto pass = PlanBeaconPass(settings_, state, num_tokens, /*max_rows=*/1 << 20);
      ASSERT_TRUE(pass.ok()) << pass.status();
      ASSERT_LT(index - first, static_cast<int64_t>(expected.size()));
      ratios.insert(ratios.end(), pass->ratios.begin(), pass->ratios.end());
      num_returned = pass->num_tokens;
      ExpectPass(state, *pass, index, expected[index - first]);
      state = pass->after;
      ++index;
    }
  };
  int64_t num_tokens = 0;
  const std::vector<int64_t> calls = golden_.Calls();
  for (size_t i = 0; i < calls.size(); ++i) {
    num_tokens += calls[i];
    run_to(num_tokens, steps, 0);
    if (golden_.is_training()) continue;
    const json call = golden_.Json("calls")[i];
    EXPECT_EQ(call["last_step"], index - 1);
    EXPECT_EQ(call["returned_positions"], num_returned);
    EXPECT_EQ(call["memory"], json::array({state.num_sink, state.num_beacons, state.num_raw}));
  }
  EXPECT_EQ(index, static_cast<int64_t>(steps.size()));
  EXPECT_EQ(num_tokens, num_prompt_);
  EXPECT_EQ(json(ratios), golden_.Json("ratios_chosen"));

  const int64_t first = index;
  // The last generated token is not fed back.
  for (int64_t n = num_prompt_ + 1; n < tokens_.size(1); ++n) run_to(n, decode_steps, first);
  EXPECT_EQ(index - first, static_cast<int64_t>(decode_steps.size()));
  if (golden_.Text("decoded_memory").empty()) return;
  EXPECT_EQ(golden_.Json("decoded_memory"),
            json::array({state.num_sink, state.num_beacons, state.num_raw}));
  EXPECT_EQ(json(ratios), golden_.Json("ratios_chosen_incl_decode"));
}

INSTANTIATE_TEST_SUITE_P(Files, BeaconPassGoldenTest, ::testing::ValuesIn(BeaconCaseNames()),
                         [](const auto& info) { return info.param; });

// The suites are empty where the folder is missing: that must not look like success.
TEST(BeaconGoldenFolderTest, HoldsCases) {
  EXPECT_THAT(BeaconCaseNames(), ::testing::Contains("llama_r4_prefill150_gen40"))
      << "no golden numbers in " << BeaconGoldenFolder() << ": set MNEME_GOLDEN";
}

}  // namespace
}  // namespace mneme::testing
