// The model with beacons, over paged memory, against every case file: logits, loss, memory and
// greedy continuations.
//
// Tolerances are the golden set's own: logits 1e-4, loss 1e-5, the rest exact. Of memory it names
// none: keys and values are held to the logits' 1e-4.
#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>

#include <utility>

#include "common/memory/kv_pool.h"
#include "common/memory/kv_sequence.h"
#include "common/memory/kv_tables.h"
#include "common/memory/memory_policy.h"
#include "common/model/model.h"
#include "common/model/rotary_tables.h"
#include "kernels/rotary.h"
#include "tests/golden/beacon/golden_case.h"
#include "tests/support/temp_folder.h"

namespace mneme::testing {
namespace {

using memory::BeaconPass;
using memory::BeaconRowKind;
using memory::BeaconState;
using memory::KvSequence;
using nlohmann::json;

constexpr double kLogitTolerance = 1e-4;
constexpr double kLossTolerance = 1e-5;
constexpr int64_t kManyRows = 1 << 20;

double WorstDifference(const at::Tensor& a, const at::Tensor& b) {
  EXPECT_EQ(a.sizes(), b.sizes());
  if (a.sizes() != b.sizes()) return INFINITY;
  return a.numel() == 0 ? 0 : (a - b).abs().max().item<double>();
}

class BeaconModelGoldenTest : public ::testing::TestWithParam<std::string> {
 protected:
  // One sequence of the batch.
  struct Row {
    std::vector<int32_t> tokens;
    BeaconState state;
    KvSequence memory;
    std::vector<at::Tensor> logits;       // of all tokens so far, a tensor per pass
    std::vector<at::Tensor> last_logits;  // of the last pass
    std::vector<int64_t> targets;         // one per row of logits
    double loss = 0;
    int64_t num_targets = 0;
  };

  BeaconModelGoldenTest() : golden_(GetParam()), settings_(golden_.Settings()) {}

  void SetUp() override {
    const BeaconGoldenModel opened = OpenModel(golden_, folder_);
    auto model = model::Model::Load(opened.files, {.compute = model::ComputeType::kFloat32,
                                                   .num_threads = 2,
                                                   .beacon_adapter = opened.adapter});
    ASSERT_TRUE(model.ok()) << model.status();
    model_ = *std::move(model);
    pool_ = *memory::KvPool::Create(model_->PoolOptions(int64_t{1} << 24));
    tables_ = *memory::KvTables::Create(model_->kv_shape(), model_->device());

    const at::Tensor ids = golden_.Tensor("input_ids");
    for (int64_t b = 0; b < ids.size(0); ++b) {
      rows_.push_back(
          {.state = FirstBeaconState(settings_),
           .memory = KvSequence(pool_.get(), model_->kv_shape(), memory::FullPolicy())});
      for (int64_t t = 0; t < ids.size(1); ++t) {
        rows_[b].tokens.push_back(ids[b][t].item<int32_t>());
      }
    }
  }

  // Runs the sequences, all together, until `num_tokens` of each are processed.
  void RunTo(int64_t num_tokens) {
    while (rows_[0].state.end < num_tokens) {
      std::vector<BeaconPass> passes;
      std::vector<model::SequenceStep> steps;
      for (size_t b = 0; b < rows_.size(); ++b) {
        auto pass = PlanBeaconPass(settings_, rows_[b].state, num_tokens, kManyRows);
        ASSERT_TRUE(pass.ok()) << pass.status();
        if (golden_.Has("attention_mask")) {
          HidePadding(golden_.Tensor("attention_mask")[static_cast<int64_t>(b)], &*pass);
        }
        passes.push_back(*std::move(pass));
      }
      for (size_t b = 0; b < rows_.size(); ++b) {
        Row& row = rows_[b];
        ASSERT_TRUE(row.memory.Attach(*tables_).ok());
        ASSERT_TRUE(row.memory.Reserve(passes[b].room(), passes[b].first_rewritten).ok());
        steps.push_back(
            {.sequence = &row.memory,
             .tokens = absl::MakeConstSpan(row.tokens).subspan(row.state.end, passes[b].num_tokens),
             .num_logits = passes[b].num_tokens,
             .pass = &passes[b]});
      }
      const auto logits = model_->Forward(steps);
      ASSERT_TRUE(logits.ok()) << logits.status();
      int64_t first = 0;
      for (size_t b = 0; b < rows_.size(); ++b) {
        rows_[b].last_logits = {logits->narrow(0, first, passes[b].num_tokens).clone()};
        rows_[b].logits.push_back(rows_[b].last_logits[0]);
        first += passes[b].num_tokens;
        NoteLoss(passes[b], static_cast<int64_t>(b));
        rows_[b].state = passes[b].after;
        ASSERT_EQ(rows_[b].memory.length(0, 0), rows_[b].state.num_entries());
        ASSERT_EQ(rows_[b].memory.num_tokens(), rows_[b].state.end);
      }
      ++num_passes_;
    }
  }

  // Sums the losses of a pass and compares their mean with the file's.
  void NoteLoss(const BeaconPass& pass, int64_t b) {
    if (!golden_.Has("labels")) return;
    const at::Tensor labels = golden_.Tensor("labels")[b].contiguous();
    const std::vector<int64_t> all =
        BeaconTargets(pass, absl::MakeConstSpan(labels.const_data_ptr<int64_t>(), labels.numel()));
    Row& row = rows_[b];
    const at::Tensor log_probabilities = at::log_softmax(row.last_logits[0].to(at::kDouble), -1);
    double loss = 0;
    int64_t count = 0;
    int64_t token = 0;
    for (size_t i = 0; i < all.size(); ++i) {
      if (pass.rows[i].kind != BeaconRowKind::kToken) continue;
      if (all[i] >= 0) {
        loss -= log_probabilities[token][all[i]].item<double>();
        ++count;
      }
      ++token;
    }
    row.loss += loss;
    row.num_targets += count;
    const json step = golden_.Json(golden_.is_training() ? "steps" : "prefill_steps")[num_passes_];
    // Nothing to predict counts as no loss.
    EXPECT_NEAR(count == 0 ? 0 : loss / static_cast<double>(count),
                step["batch_loss"][b].get<double>(), kLossTolerance)
        << "step " << num_passes_;
  }

  // Compares a part of a layer's memory, its keys turned back to position 0.
  void ExpectMemory(const std::string& prefix, int64_t b, int64_t layer) {
    const Row& row = rows_[b];
    int64_t begin = 0;
    for (const auto& [segment, size] :
         {std::pair("sink", row.state.num_sink), std::pair("beacon", row.state.num_beacons),
          std::pair("raw", row.state.num_raw)}) {
      const std::string name = prefix + ".mem.layer" + std::to_string(layer) + "." + segment;
      std::vector<int64_t> indices, positions;
      for (int64_t i = begin; i < begin + size; ++i) {
        indices.push_back(i);
        positions.push_back(BeaconEntryPosition(settings_, row.state, i));
      }
      begin += size;
      if (!golden_.Has(name + ".key")) continue;
      const std::vector<int64_t> zeros(positions.size(), 0);
      const auto table = model_->rotary().TurnTable({.from_positions = positions,
                                                     .from_length = row.state.rope_length,
                                                     .to_positions = zeros,
                                                     .to_length = row.state.rope_length});
      ASSERT_TRUE(table.ok()) << table.status();
      // What the keys were multiplied by beside being rotated.
      const auto options = at::TensorOptions().dtype(at::kFloat);
      const at::Tensor cos = at::empty({1, table->first.size(1)}, options);
      const at::Tensor sin = at::empty({1, table->first.size(1)}, options);
      ASSERT_TRUE(model_->rotary().Fill({0}, {row.state.rope_length}, cos, sin).ok());
      const double scale = cos[0][0].item<double>();
      for (int64_t head = 0; head < model_->kv_shape().num_kv_heads; ++head) {
        const auto entries = row.memory.Read(layer, head, indices);
        ASSERT_TRUE(entries.ok()) << entries.status();
        const at::Tensor keys = entries->first.unsqueeze(1).contiguous();
        kernels::RotaryOut(keys, table->first, table->second, keys);
        EXPECT_LE(WorstDifference(keys.squeeze(1) / scale, golden_.Tensor(name + ".key")[b][head]),
                  kLogitTolerance)
            << name << ", head " << head;
        EXPECT_LE(WorstDifference(entries->second, golden_.Tensor(name + ".value")[b][head]),
                  kLogitTolerance)
            << name << ", head " << head;
      }
    }
  }

  void ExpectMemories(const std::string& prefix) {
    for (int64_t b = 0; b < static_cast<int64_t>(rows_.size()); ++b) {
      for (int64_t layer = 0; layer < model_->kv_shape().num_layers; ++layer) {
        ExpectMemory(prefix, b, layer);
      }
    }
  }

  const BeaconGolden golden_;
  const memory::BeaconSettings settings_;
  const TempFolder folder_;
  std::unique_ptr<model::Model> model_;
  std::unique_ptr<memory::KvPool> pool_;
  std::unique_ptr<memory::KvTables> tables_;
  std::vector<Row> rows_;
  int64_t num_passes_ = 0;
};

TEST_P(BeaconModelGoldenTest, LogitsLossMemoryAndGreedyTokensEqualTheReference) {
  int64_t num_tokens = 0;
  for (const int64_t call : golden_.Calls()) {
    num_tokens += call;
    RunTo(num_tokens);
    if (HasFatalFailure()) return;
  }
  double worst = 0;
  double loss = 0;
  int64_t num_targets = 0;
  const auto batch = static_cast<int64_t>(rows_.size());
  for (int64_t b = 0; b < batch; ++b) {
    const Row& row = rows_[b];
    at::Tensor raw = at::cat(row.logits);
    at::Tensor expected = golden_.Tensor("logits_raw")[b];
    if (golden_.Has("attention_mask")) {
      // Padding that sees nothing gets zeros here and the mean of all values there.
      const at::Tensor mask = golden_.Tensor("attention_mask")[b].to(at::kBool);
      raw = raw.index({mask});
      expected = expected.index({mask});
    }
    worst = std::max(worst, WorstDifference(raw, expected));
    if (golden_.Has("logits_returned")) {
      worst = std::max(worst,
                       WorstDifference(row.last_logits[0], golden_.Tensor("logits_returned")[b]));
    }
    if (golden_.Has("batch_loss")) {
      EXPECT_NEAR(row.loss / static_cast<double>(row.num_targets),
                  golden_.Tensor("batch_loss")[b].item<double>(), kLossTolerance);
    }
    loss += row.loss;
    num_targets += row.num_targets;
  }
  if (golden_.Has("loss")) {
    EXPECT_NEAR(loss / static_cast<double>(num_targets), golden_.Tensor("loss")[0].item<double>(),
                kLossTolerance);
  }
  if (golden_.is_training()) {
    EXPECT_EQ(golden_.Json("valid_tokens"), json::array({num_targets}));
  }
  ExpectMemories("prefill");

  if (golden_.Has("generated")) {
    const at::Tensor generated = golden_.Tensor("generated");
    const at::Tensor logits = golden_.Tensor("generated_logits");
    for (int64_t i = 0; i < generated.size(1); ++i) {
      for (int64_t b = 0; b < batch; ++b) {
        const at::Tensor last = rows_[b].last_logits[0][-1];
        worst = std::max(worst, WorstDifference(last, logits[b][i]));
        rows_[b].tokens.push_back(last.argmax().item<int32_t>());
        EXPECT_EQ(rows_[b].tokens.back(), generated[b][i].item<int32_t>()) << "token " << i;
      }
      // The last one is not fed back.
      if (i + 1 < generated.size(1)) RunTo(static_cast<int64_t>(rows_[0].tokens.size()));
      if (HasFatalFailure()) return;
    }
    ExpectMemories("decoded");
  }
  std::printf("worst difference of a logit: %g\n", worst);
  EXPECT_LE(worst, kLogitTolerance);
}

INSTANTIATE_TEST_SUITE_P(Files, BeaconModelGoldenTest, ::testing::ValuesIn(BeaconCaseNames()),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace mneme::testing
