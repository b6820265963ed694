// Memory with beacons is stored and comes back: at any split of a text it goes on identically, and
// so do forks and rewinds within a window. The model, pages and snapshots as the executor uses
// them.
#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "common/memory/beacon_policy.h"
#include "common/memory/kv_pool.h"
#include "common/memory/kv_sequence.h"
#include "common/memory/kv_tables.h"
#include "common/model/model.h"
#include "common/model/tiny_model.h"
#include "common/snapshot/chunk.h"
#include "common/snapshot/encoding.h"
#include "common/snapshot/manifest.h"
#include "common/weights/model_files.h"
#include "tests/support/temp_folder.h"

namespace mneme {
namespace {

using Proto = inference::v1::MemoryPolicy;

Proto BeaconProto(const std::vector<int32_t>& ratios) {
  Proto policy;
  policy.mutable_beacon()->mutable_ratios()->Assign(ratios.begin(), ratios.end());
  policy.mutable_beacon()->set_window(32);
  return policy;
}

// A sequence under a beacon policy, run as the scheduler runs it.
class BeaconSnapshotTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(model::WriteTinyModel(folder_.path(), {.context_length = 256}).ok());
    auto files = weights::ModelFiles::Open(folder_.path());
    ASSERT_TRUE(files.ok()) << files.status();
    auto model = model::Model::Load(std::shared_ptr(*std::move(files)), {.num_threads = 2});
    ASSERT_TRUE(model.ok()) << model.status();
    model_ = *std::move(model);
    resources_.shape = model_->kv_shape();
    resources_.beacons = std::make_shared<const memory::BeaconSettings>(model_->beacon_settings());
    pool_ = *memory::KvPool::Create(model_->PoolOptions(int64_t{32} << 20));
    tables_ = *memory::KvTables::Create(model_->kv_shape(), at::kCPU);
  }

  memory::KvSequence NewSequence(std::shared_ptr<const memory::MemoryPolicy> policy) {
    return memory::KvSequence(pool_.get(), model_->kv_shape(), std::move(policy));
  }

  // Feeds the tokens up to `end` in steps of random sizes; returns their logits. [T, V]
  at::Tensor Feed(memory::KvSequence& sequence, const std::vector<int32_t>& tokens, int64_t end,
                  std::mt19937& random) {
    std::vector<at::Tensor> logits;
    EXPECT_TRUE(sequence.Attach(*tables_).ok());
    while (sequence.num_tokens() < end) {
      const int64_t room = 1 + static_cast<int64_t>(random() % 40);
      const memory::ChunkLayout layout =
          sequence.policy().LayOut(sequence, end - sequence.num_tokens(), room);
      EXPECT_TRUE(sequence.Reserve(layout.pass->room(), layout.pass->first_rewritten).ok());
      const auto step = model_->Forward(
          {{.sequence = &sequence,
            .tokens = absl::MakeConstSpan(tokens).subspan(sequence.num_tokens(), layout.num_tokens),
            .num_logits = layout.num_tokens,
            .pass = layout.pass.get()}});
      EXPECT_TRUE(step.ok()) << step.status();
      if (!step.ok()) break;
      logits.push_back(step->clone());
      EXPECT_TRUE(sequence.Forget().ok());
    }
    return at::cat(logits);
  }

  // Stores a sequence and makes another of what was stored.
  memory::KvSequence ThroughStore(const memory::KvSequence& sequence,
                                  const std::vector<int32_t>& tokens) {
    const snapshot::v1::Encoding encoding = snapshot::ExactEncoding(at::kFloat);
    snapshot::v1::Lineage lineage;
    lineage.set_policy(sequence.policy().Describe());
    const int64_t num_entries = sequence.extent().num_entries;
    std::vector<snapshot::v1::Chunk> chunks;
    std::vector<std::string> payloads;
    const snapshot::ChunkPlan plan(sequence.shape(), encoding);
    for (int64_t begin = 0, end = 0; begin < num_entries; begin = end) {
      end = std::min({plan.FullEnd(begin), num_entries, begin + 16});
      for (const snapshot::ChunkRange& range : plan.Ranges(begin, end)) {
        auto chunk = snapshot::ExportChunk(sequence, range, encoding);
        EXPECT_TRUE(chunk.ok()) << chunk.status();
        (*chunk)->chunk.set_digest(std::string(16, 'd'));
        chunks.push_back((*chunk)->chunk);
        payloads.push_back((*chunk)->payload);
      }
    }
    const snapshot::v1::Manifest manifest =
        snapshot::MakeManifest(sequence, lineage, tokens, chunks, 1);
    const memory::MemoryPolicy& policy = sequence.policy();
    const absl::Status sound =
        snapshot::CheckManifest(manifest, lineage, sequence.shape(), policy, tokens);
    EXPECT_TRUE(sound.ok()) << sound;
    memory::KvSequence restored = NewSequence(policies_.back());
    const auto held = snapshot::HeldOf(manifest, sequence.shape());
    EXPECT_TRUE(restored
                    .Restore(static_cast<int64_t>(manifest.num_tokens()), *held,
                             snapshot::NumEntries(manifest))
                    .ok());
    for (size_t i = 0; i < payloads.size(); ++i) {
      EXPECT_TRUE(
          snapshot::ImportChunk(manifest.chunks(static_cast<int>(i)), payloads[i], &restored).ok());
    }
    EXPECT_TRUE(restored.RestoreState(manifest.policy_state()).ok());
    return restored;
  }

  std::shared_ptr<const memory::MemoryPolicy> Policy(const Proto& proto) {
    policies_.push_back(*memory::CreatePolicy(proto, resources_));
    return policies_.back();
  }

  testing::TempFolder folder_;
  std::unique_ptr<model::Model> model_;
  memory::PolicyResources resources_;
  std::unique_ptr<memory::KvPool> pool_;
  std::unique_ptr<memory::KvTables> tables_;
  std::vector<std::shared_ptr<const memory::MemoryPolicy>> policies_;
};

std::vector<int32_t> Tokens(size_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<int32_t> tokens(count);
  for (int32_t& token : tokens) token = static_cast<int32_t>(random() % 128);
  return tokens;
}

TEST_F(BeaconSnapshotTest, StoredAndRestoredAnywhereItGoesOnIdentically) {
  Proto drawn = BeaconProto({2, 4, 8});
  drawn.mutable_beacon()->set_mix(Proto::Beacon::MIX_STEP_RANDOM);
  Proto kept = BeaconProto({4, 0, 2});
  kept.mutable_beacon()->set_sinks(3);
  Proto bounded = BeaconProto({4});
  bounded.mutable_beacon()->set_max_beacons(12);
  std::mt19937 random(11);
  for (const Proto& proto : {BeaconProto({4}), drawn, kept, bounded}) {
    const auto policy = Policy(proto);
    const std::vector<int32_t> tokens = Tokens(200, random());
    memory::KvSequence whole = NewSequence(policy);
    const at::Tensor expected = Feed(whole, tokens, 200, random);
    for (int trial = 0; trial < 8; ++trial) {
      const auto split = 1 + static_cast<int64_t>(random() % 198);
      SCOPED_TRACE(split);
      memory::KvSequence first = NewSequence(policy);
      Feed(first, tokens, split, random);
      memory::KvSequence second = ThroughStore(first, tokens);
      ASSERT_EQ(second.num_tokens(), split);
      EXPECT_TRUE(
          at::equal(Feed(second, tokens, 200, random), expected.narrow(0, split, 200 - split)));
    }
  }
}

TEST_F(BeaconSnapshotTest, ForksAndRewindsWithinAWindowGoOnIdentically) {
  std::mt19937 random(5);
  const auto policy = Policy(BeaconProto({4, 2}));
  std::vector<int32_t> tokens = Tokens(150, 1);
  memory::KvSequence sequence = NewSequence(policy);
  Feed(sequence, tokens, 90, random);
  memory::KvSequence fork = sequence.Fork();
  ASSERT_TRUE(sequence.Truncate(70).ok());  // the window began at 64
  std::vector<int32_t> other(tokens.begin(), tokens.begin() + 70);
  for (const int32_t token : Tokens(60, 2)) other.push_back(token);
  memory::KvSequence afresh = NewSequence(policy);
  const at::Tensor expected_other = Feed(afresh, other, 130, random);
  EXPECT_TRUE(at::equal(Feed(sequence, other, 130, random), expected_other.narrow(0, 70, 60)));
  memory::KvSequence whole = NewSequence(policy);
  const at::Tensor expected = Feed(whole, tokens, 150, random);
  EXPECT_TRUE(at::equal(Feed(fork, tokens, 150, random), expected.narrow(0, 90, 60)));
  // What a closed window was made of is gone.
  EXPECT_EQ(fork.Truncate(100).code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(BeaconSnapshotTest, UnsoundStatesAreRefused) {
  const auto policy = Policy(BeaconProto({4}));
  const auto restore = [&](const std::string& bytes) {
    return policy->RestoreState(model_->kv_shape(), bytes).status().code();
  };
  memory::KvSequence sequence = NewSequence(policy);
  std::mt19937 random(1);
  Feed(sequence, Tokens(50, 1), 50, random);
  const std::string good = sequence.state()->Serialise();
  EXPECT_EQ(restore(good), absl::StatusCode::kOk);
  EXPECT_EQ(restore("nonsense"), absl::StatusCode::kInvalidArgument);
  // Cut and flipped bytes give a state or an error, never anything worse.
  for (size_t i = 0; i < good.size(); ++i) {
    restore(good.substr(0, i));
    std::string flipped = good;
    flipped[i] = static_cast<char>(flipped[i] ^ 0x40);
    restore(flipped);
  }
  EXPECT_EQ(memory::FullPolicy()->RestoreState(model_->kv_shape(), good).status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace mneme
