// The model with beacons: its promises about chunks, batches, forks and memory, on a tiny model
// with random beacon weights. The published implementation's numbers: tests/golden/beacon.
#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "common/memory/beacon_pass.h"
#include "common/memory/kv_pool.h"
#include "common/memory/kv_sequence.h"
#include "common/memory/kv_tables.h"
#include "common/memory/memory_policy.h"
#include "common/model/model.h"
#include "common/model/tiny_model.h"
#include "common/weights/beacon_adapter.h"
#include "common/weights/model_files.h"
#include "common/weights/safetensors.h"
#include "kernels/parallel.h"
#include "tests/support/temp_folder.h"

namespace mneme::model {
namespace {

using memory::BeaconPass;
using memory::BeaconSettings;
using memory::BeaconState;
using memory::KvSequence;
using ::testing::HasSubstr;

constexpr int64_t kWindow = 32;
constexpr int64_t kManyRows = 1 << 20;

// Writes an adapter with random q, k and v projections of the tiny model.
void WriteAdapter(const testing::TempFolder& folder, const weights::ModelFiles& base) {
  std::ofstream(folder.File("config.json"))
      << R"({"beacon_window": 32, "beacon_ratio": [4], "beacon_param": ["q", "k", "v"]})";
  std::mt19937 random(3);
  std::normal_distribution<float> normal(0, 0.12f);
  std::vector<std::vector<float>> values;
  std::vector<weights::TensorView> views;
  const auto add = [&](std::string name, std::vector<int64_t> shape) {
    std::vector<float>& data = values.emplace_back(*weights::CountElements(shape));
    for (float& value : data) value = normal(random);
    views.push_back({.name = std::move(name), .shape = std::move(shape)});
  };
  add("model.beacon_embed_tokens.weight", {1, base.config().hidden_size});
  for (const std::string& name : base.names()) {
    const size_t at = name.find("self_attn.");
    if (at == std::string::npos || absl::StrContains(name, "o_proj")) continue;
    std::string own = name;
    add(own.insert(at + 10, "beacon_"), base.Find(name)->view.shape);
  }
  for (size_t i = 0; i < views.size(); ++i) {
    views[i].data = reinterpret_cast<const uint8_t*>(values[i].data());
    views[i].size_bytes = values[i].size() * sizeof(float);
  }
  ASSERT_TRUE(weights::WriteSafetensors(folder.File("model.safetensors"), views, {}).ok());
}

class BeaconModelTest : public ::testing::TestWithParam<ComputeType> {
 protected:
  // A sequence and where it stands.
  struct Stream {
    BeaconState state;
    KvSequence memory;
  };

  void SetUp() override {
    kernels::SetNumThreads(2);
    ASSERT_TRUE(WriteTinyModel(folder_.path(), {}).ok());
    auto files = weights::ModelFiles::Open(folder_.path());
    ASSERT_TRUE(files.ok()) << files.status();
    WriteAdapter(adapter_folder_, **files);
    auto adapter = weights::BeaconAdapter::Open(adapter_folder_.path());
    ASSERT_TRUE(adapter.ok()) << adapter.status();
    auto model = Model::Load(std::shared_ptr(*std::move(files)),
                             {.compute = GetParam(), .beacon_adapter = *std::move(adapter)});
    ASSERT_TRUE(model.ok()) << model.status();
    model_ = *std::move(model);
    pool_ = *memory::KvPool::Create(model_->PoolOptions(16 << 20));
    tables_ = *memory::KvTables::Create(model_->kv_shape(), model_->device(), 2, 2);
    settings_ = memory::MakeBeaconSettings(model_->config(), *model_->beacon_config());
  }

  static std::vector<int32_t> Tokens(size_t count, uint32_t seed = 1) {
    std::mt19937 random(seed);
    std::vector<int32_t> tokens(count);
    for (int32_t& token : tokens) token = static_cast<int32_t>(random() % 128);
    return tokens;
  }

  Stream NewStream() {
    Stream stream{.state = FirstBeaconState(settings_),
                  .memory = KvSequence(pool_.get(), model_->kv_shape(), memory::FullPolicy())};
    EXPECT_TRUE(stream.memory.Attach(*tables_).ok());
    return stream;
  }

  BeaconPass Plan(Stream& stream, int64_t num_tokens, int64_t max_rows = kManyRows) const {
    auto pass = PlanBeaconPass(settings_, stream.state, num_tokens, max_rows);
    EXPECT_TRUE(pass.ok()) << pass.status();
    EXPECT_TRUE(stream.memory.Reserve(pass->room(), pass->first_rewritten).ok());
    return *std::move(pass);
  }

  SequenceStep StepOf(Stream& stream, const std::vector<int32_t>& tokens, const BeaconPass& pass) {
    return {.sequence = &stream.memory,
            .tokens = absl::MakeConstSpan(tokens).subspan(stream.state.end, pass.num_tokens),
            .num_logits = pass.num_tokens,
            .pass = &pass};
  }

  // Feeds tokens in calls of these sizes, the last one repeated; returns the logits of all. [T, V]
  at::Tensor Feed(Stream& stream, const std::vector<int32_t>& tokens,
                  const std::vector<int64_t>& calls, int64_t max_rows = kManyRows) {
    std::vector<at::Tensor> logits;
    const auto size = static_cast<int64_t>(tokens.size());
    for (size_t i = 0; stream.state.end < size; ++i) {
      const int64_t known = std::min(size, stream.state.end + calls[std::min(i, calls.size() - 1)]);
      while (stream.state.end < known) {
        const BeaconPass pass = Plan(stream, known, max_rows);
        const auto step = model_->Forward({StepOf(stream, tokens, pass)});
        EXPECT_TRUE(step.ok()) << step.status();
        if (!step.ok()) return at::Tensor();
        logits.push_back(step->clone());
        stream.state = pass.after;
        EXPECT_EQ(stream.memory.length(2, 1), stream.state.num_entries());
        EXPECT_EQ(stream.memory.num_tokens(), stream.state.end);
      }
    }
    return at::cat(logits);
  }

  at::Tensor Run(const std::vector<int32_t>& tokens, const std::vector<int64_t>& calls,
                 int64_t max_rows = kManyRows) {
    Stream stream = NewStream();
    return Feed(stream, tokens, calls, max_rows);
  }

  testing::TempFolder folder_, adapter_folder_;
  std::unique_ptr<Model> model_;
  std::unique_ptr<memory::KvPool> pool_;
  std::unique_ptr<memory::KvTables> tables_;
  BeaconSettings settings_;
};

TEST_P(BeaconModelTest, ResultsDoNotDependOnChunksOrThreadsBitwise) {
  const std::vector<int32_t> tokens = Tokens(300);
  settings_.config.ratios = {2, 4, 8, 0};
  settings_.config.sink_size = 2;
  const at::Tensor whole = Run(tokens, {300});
  EXPECT_TRUE(at::equal(Run(tokens, {1}), whole));
  EXPECT_TRUE(at::equal(Run(tokens, {40, 3, 100, 1}), whole));
  kernels::SetNumThreads(1);
  EXPECT_TRUE(at::equal(Run(tokens, {300}, /*max_rows=*/13), whole));
}

TEST_P(BeaconModelTest, BatchesWithPlainSequencesDoNotMatterBitwise) {
  const std::vector<int32_t> a = Tokens(90, 1), b = Tokens(100, 2), plain = Tokens(80, 3);
  const at::Tensor alone_a = Run(a, {90}), alone_b = Run(b, {100});
  const auto feed_plain = [&](KvSequence& sequence, int64_t begin, int64_t count) {
    EXPECT_TRUE(sequence.Reserve(count).ok());
    return SequenceStep{.sequence = &sequence,
                        .tokens = absl::MakeConstSpan(plain).subspan(begin, count),
                        .num_logits = count};
  };
  const auto new_plain = [&] {
    KvSequence sequence(pool_.get(), model_->kv_shape(), memory::FullPolicy());
    EXPECT_TRUE(sequence.Attach(*tables_).ok());
    return sequence;
  };
  KvSequence alone = new_plain();
  const at::Tensor alone_plain = model_->Forward({feed_plain(alone, 0, 80)})->clone();

  Stream sa = NewStream(), sb = NewStream();
  KvSequence sequence = new_plain();
  std::vector<at::Tensor> got_a, got_b, got_plain;
  for (int64_t time = 0; sequence.num_tokens() < 80; ++time) {
    std::vector<SequenceStep> steps;
    const BeaconPass pass_a = Plan(sa, std::min<int64_t>(90, sa.state.end + 11));
    steps.push_back(StepOf(sa, a, pass_a));
    steps.push_back(feed_plain(sequence, sequence.num_tokens(), time % 2 == 0 ? 9 : 1));
    const BeaconPass pass_b = Plan(sb, std::min<int64_t>(100, sb.state.end + 7));
    steps.push_back(StepOf(sb, b, pass_b));
    const auto logits = model_->Forward(steps);
    ASSERT_TRUE(logits.ok()) << logits.status();
    int64_t row = 0;
    for (auto* got : {&got_a, &got_plain, &got_b}) {
      const int64_t count = steps[got == &got_a ? 0 : got == &got_plain ? 1 : 2].num_logits;
      got->push_back(logits->narrow(0, row, count).clone());
      row += count;
    }
    sa.state = pass_a.after;
    sb.state = pass_b.after;
    if (sa.state.end == 90 || sb.state.end == 100) break;
  }
  const at::Tensor all_a = at::cat(got_a), all_b = at::cat(got_b), all_plain = at::cat(got_plain);
  EXPECT_GT(all_a.size(0), 80);
  EXPECT_TRUE(at::equal(all_a, alone_a.narrow(0, 0, all_a.size(0))));
  EXPECT_TRUE(at::equal(all_b, alone_b.narrow(0, 0, all_b.size(0))));
  EXPECT_TRUE(at::equal(all_plain, alone_plain.narrow(0, 0, all_plain.size(0))));
}

TEST_P(BeaconModelTest, ForksInsideAWindowGoOnAsIfComputedAfresh) {
  const std::vector<int32_t> tokens = Tokens(120);
  std::vector<int32_t> other(tokens.begin(), tokens.begin() + 45);
  for (const int32_t token : Tokens(60, 9)) other.push_back(token);
  const at::Tensor whole = Run(tokens, {120}), whole_other = Run(other, {105});

  Stream stream = NewStream();
  Feed(stream, {tokens.begin(), tokens.begin() + 45}, {45});
  Stream fork{.state = stream.state, .memory = stream.memory.Fork()};
  ASSERT_TRUE(fork.memory.Attach(*tables_).ok());
  // Closing the window of one must not move the entries of the other.
  EXPECT_TRUE(at::equal(Feed(fork, other, {60}), whole_other.narrow(0, 45, 60)));
  EXPECT_TRUE(at::equal(Feed(stream, tokens, {75}), whole.narrow(0, 45, 75)));
}

TEST_P(BeaconModelTest, MemoryShrinksByTheRatioAndPagesComeBack) {
  settings_.config.ratios = {8};
  Stream stream = NewStream();
  Feed(stream, Tokens(10 * kWindow), {100});
  EXPECT_EQ(stream.state.num_entries(), 10 * kWindow / 8);
  EXPECT_EQ(stream.memory.num_pages(), 6 * 3);  // 40 entries in each of 6 heads
  EXPECT_EQ(stream.memory.resident_entries(), 6 * 40);
  // Beacons of all windows and one window with its own.
  EXPECT_LE(stream.memory.peak_bytes(), 6 * 5 * pool_->page_bytes());
}

TEST_P(BeaconModelTest, AnUntrainedBeaconIsAnEndTokenInTheText) {
  auto model = Model::Load(std::shared_ptr(*weights::ModelFiles::Open(folder_.path())),
                           {.compute = GetParam()});
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_FALSE((*model)->beacon_config().has_value());
  model_ = *std::move(model);
  settings_.config.ratios = {4};
  const std::vector<int32_t> tokens = Tokens(30);
  Stream stream = NewStream();
  const at::Tensor logits = Feed(stream, tokens, {30});

  std::vector<int32_t> text;
  std::vector<int64_t> rows;
  for (size_t t = 0; t < tokens.size(); ++t) {
    rows.push_back(static_cast<int64_t>(text.size()));
    text.push_back(tokens[t]);
    if (t % 4 == 3) text.push_back(2);
  }
  KvSequence sequence(pool_.get(), model_->kv_shape(), memory::FullPolicy());
  ASSERT_TRUE(sequence.Attach(*tables_).ok());
  const auto count = static_cast<int64_t>(text.size());
  ASSERT_TRUE(sequence.Reserve(count).ok());
  const auto plain =
      model_->Forward({{.sequence = &sequence, .tokens = text, .num_logits = count}});
  ASSERT_TRUE(plain.ok()) << plain.status();
  EXPECT_TRUE(at::equal(logits, plain->index_select(0, at::tensor(rows, at::kLong))));
}

TEST_P(BeaconModelTest, ParallelWindowsAgreeWithSequentialOnes) {
  if (GetParam() != ComputeType::kFloat32) GTEST_SKIP() << "rounds beacons before they are read";
  settings_.config.ratios = {2, 4, 8};
  const std::vector<int32_t> tokens = Tokens(5 * kWindow + 7);
  for (const int64_t sink : {0, 1, 3}) {
    settings_.config.sink_size = sink;
    settings_.config.parallel_windows = 1;
    const at::Tensor sequential = Run(tokens, {1000});
    settings_.config.parallel_windows = 2;
    EXPECT_LE((Run(tokens, {1000}) - sequential).abs().max().item<double>(), 1e-4);
    EXPECT_LE((Run(tokens, {10, 1000}) - sequential).abs().max().item<double>(), 1e-4);
  }
}

TEST_P(BeaconModelTest, PassesOfAnotherSequenceAreRefused) {
  const std::vector<int32_t> tokens = Tokens(50);
  Stream stream = NewStream();
  BeaconPass pass = Plan(stream, 20);
  Feed(stream, {tokens.begin(), tokens.begin() + 10}, {10});
  ASSERT_TRUE(stream.memory.Reserve(60).ok());
  const auto late = model_->Forward({{.sequence = &stream.memory,
                                      .tokens = absl::MakeConstSpan(tokens).first(20),
                                      .pass = &pass}});
  EXPECT_EQ(late.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(late.status().message(), HasSubstr("not of this sequence"));
  EXPECT_EQ(stream.memory.num_tokens(), 10);
}

INSTANTIATE_TEST_SUITE_P(Compute, BeaconModelTest,
                         ::testing::Values(ComputeType::kFloat32, ComputeType::kBFloat16),
                         [](const auto& info) {
                           return info.param == ComputeType::kFloat32 ? "Float32" : "BFloat16";
                         });

TEST(BeaconAdapterTest, FoldersWithoutBeaconsAreRefused) {
  const testing::TempFolder folder;
  EXPECT_EQ(weights::BeaconAdapter::Open(folder.path()).status().code(),
            absl::StatusCode::kNotFound);
  ASSERT_TRUE(WriteTinyModel(folder.path(), {}).ok());
  EXPECT_EQ(weights::BeaconAdapter::Open(folder.path()).status().code(),
            absl::StatusCode::kInvalidArgument);
  std::ofstream(folder.File("config.json")) << R"({"beacon_param": ["q"]})";
  const auto none = weights::BeaconAdapter::Open(folder.path());
  EXPECT_EQ(none.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(none.status().message(), HasSubstr("no beacon weights"));
}

}  // namespace
}  // namespace mneme::model
