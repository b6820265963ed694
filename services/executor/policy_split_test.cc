// A sequence may be stored and taken up again between any two steps: what comes after is the same
// to the last bit, under every policy. On a small model, float32.
#include <ATen/Functions.h>
#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/memory/eviction_policy.h"
#include "common/memory/kv_tables.h"
#include "common/memory/namm_policy.h"
#include "common/model/model.h"
#include "common/model/tiny_model.h"
#include "common/snapshot/test_memory.h"
#include "common/weights/model_files.h"
#include "kernels/parallel.h"
#include "tests/support/temp_folder.h"

namespace mneme::executor {
namespace {

using memory::KvSequence;
using PolicyPointer = std::shared_ptr<const memory::MemoryPolicy>;

constexpr int64_t kTokens = 150;

PolicyPointer RandomNamm(std::optional<int64_t> cache_size) {
  memory::NammConfig config;
  config.spectrogram = {.n_fft = 16, .hop = 8};
  config.delay = 24;
  config.network.input_size = config.recency_dim + 9;
  config.network.hidden_size = 16;
  config.selection.cache_size = cache_size;
  std::mt19937 random(3);
  std::normal_distribution<float> normal(0, 0.3f);
  std::vector<float> parameters(memory::BamNetwork::NumParameters(config.network));
  for (float& value : parameters) value = normal(random);
  return *memory::NammPolicy(std::make_shared<const memory::NammModel>(
      *memory::NammModel::Create(config, parameters, {})));
}

class PolicySplitTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(
        model::WriteTinyModel(folder_.path(), {.num_layers = 2, .num_heads = 4, .num_kv_heads = 2})
            .ok());
    auto files = weights::ModelFiles::Open(folder_.path());
    ASSERT_TRUE(files.ok()) << files.status();
    auto loaded = model::Model::Load(std::shared_ptr(*std::move(files)), {});
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    model_ = *std::move(loaded);
    tables_ = *memory::KvTables::Create(model_->kv_shape(), model_->device());
    std::mt19937 random(9);
    for (int64_t i = 0; i < kTokens; ++i) {
      tokens_.push_back(static_cast<int32_t>(3 + random() % 120));
    }
  }

  std::unique_ptr<memory::KvPool> NewPool() const {
    auto pool = *memory::KvPool::Create(model_->PoolOptions(int64_t{1} << 18));
    snapshot::FillWithNoise(*pool, 5);
    return pool;
  }

  KvSequence NewSequence(memory::KvPool* pool, PolicyPointer policy) {
    return KvSequence(pool, model_->kv_shape(), std::move(policy));
  }

  // Goes on to `end` tokens in steps of at most `step`; returns the logits of them all.
  at::Tensor Run(KvSequence& sequence, int64_t end, int64_t step) {
    EXPECT_TRUE(sequence.Attach(*tables_).ok());
    std::vector<at::Tensor> logits;
    while (sequence.num_tokens() < end) {
      const int64_t begin = sequence.num_tokens();
      const int64_t size = sequence.policy().LayOut(sequence, end - begin, step).num_tokens;
      EXPECT_TRUE(sequence.Reserve(size).ok());
      auto rows = model_->Forward({{.sequence = &sequence,
                                    .tokens = absl::MakeConstSpan(tokens_).subspan(begin, size),
                                    .num_logits = size}});
      EXPECT_TRUE(rows.ok()) << rows.status();
      logits.push_back(rows->clone());
      EXPECT_TRUE(sequence.Forget().ok());
    }
    return logits.empty() ? at::empty({0, model_->config().vocab_size}) : at::cat(logits);
  }

  static std::vector<PolicyPointer> Policies() {
    return {memory::FullPolicy(),
            *memory::WindowPolicy(4, 30),
            *memory::H2oPolicy({.budget = {.tokens = 24}, .interval = 16}),
            *memory::H2oPolicy({.budget = {.fraction = 0.4}, .recent = 5, .interval = 10}),
            *memory::SnapKvPolicy({.budget = {.tokens = 20}, .window = 6, .interval = 20}),
            *memory::L2NormPolicy({.budget = {.tokens = 18}, .skip_layers = 1, .interval = 12}),
            RandomNamm(std::nullopt),
            RandomNamm(30)};
  }

  testing::TempFolder folder_;
  std::unique_ptr<model::Model> model_;
  std::unique_ptr<memory::KvTables> tables_;
  std::vector<int32_t> tokens_;
};

TEST_F(PolicySplitTest, StepsAndThreadsDoNotMatter) {
  const int threads = kernels::NumThreads();
  for (const PolicyPointer& policy : Policies()) {
    SCOPED_TRACE(policy->Describe());
    const auto pool = NewPool();
    KvSequence whole = NewSequence(pool.get(), policy);
    const at::Tensor expected = Run(whole, kTokens, 512);
    for (const int64_t step : {1, 7, 33}) {
      kernels::SetNumThreads(step == 7 ? 1 : 3);
      KvSequence cut = NewSequence(pool.get(), policy);
      EXPECT_TRUE(at::equal(Run(cut, kTokens, step), expected)) << step;
      EXPECT_EQ(cut.resident_entries(), whole.resident_entries());
    }
    kernels::SetNumThreads(threads);
    if (policy->moves_entries()) {
      EXPECT_LT(whole.resident_entries(), kTokens * model_->kv_shape().num_heads());
    }
  }
}

TEST_F(PolicySplitTest, StoredMemoryGoesOnAsIfItHadNeverBeenAway) {
  std::mt19937 random(17);
  for (const PolicyPointer& policy : Policies()) {
    SCOPED_TRACE(policy->Describe());
    snapshot::v1::Lineage lineage;
    lineage.set_policy(policy->Describe());
    const auto pool = NewPool();
    KvSequence whole = NewSequence(pool.get(), policy);
    const at::Tensor expected = Run(whole, kTokens, 512);
    for (int round = 0; round < 6; ++round) {
      const int64_t first = 1 + static_cast<int64_t>(random() % (kTokens - 2));
      const int64_t second = first + 1 + static_cast<int64_t>(random() % (kTokens - 1 - first));
      SCOPED_TRACE(absl::StrCat("split at ", first, " and ", second));
      // Two turns: chunks of the first are listed again by the second, though entries of theirs may
      // have been dropped since.
      snapshot::Stored stored;
      std::string manifest;
      for (const auto& [begin, end] : {std::pair(int64_t{0}, first), std::pair(first, second)}) {
        const auto its_pool = NewPool();
        KvSequence sequence = NewSequence(its_pool.get(), policy);
        if (begin > 0) {
          ASSERT_TRUE(stored.manifest.ParseFromString(manifest));
          const absl::Status checked =
              snapshot::CheckManifest(stored.manifest, lineage, model_->kv_shape(), *policy,
                                      absl::MakeConstSpan(tokens_).first(end));
          ASSERT_TRUE(checked.ok()) << checked;
          const absl::Status restored = snapshot::Restore(stored, &sequence);
          ASSERT_TRUE(restored.ok()) << restored;
        }
        const at::Tensor logits = Run(sequence, end, 1 + static_cast<int64_t>(random() % 40));
        EXPECT_TRUE(at::equal(logits, expected.narrow(0, begin, end - begin)));
        snapshot::Store(sequence, begin, end, snapshot::v1::ENCODING_FLOAT32, &stored);
        manifest = snapshot::MakeManifest(sequence, lineage, tokens_, stored.chunks, 1)
                       .SerializeAsString();
      }
      const auto last_pool = NewPool();
      KvSequence last = NewSequence(last_pool.get(), policy);
      ASSERT_TRUE(stored.manifest.ParseFromString(manifest));
      ASSERT_TRUE(snapshot::Restore(stored, &last).ok());
      EXPECT_TRUE(at::equal(Run(last, kTokens, 64), expected.narrow(0, second, kTokens - second)));
      snapshot::ExpectSameMemory(last, whole);
    }
  }
}

}  // namespace
}  // namespace mneme::executor
