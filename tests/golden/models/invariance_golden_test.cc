// The default model's results don't depend, to the last bit, on chunks, batches or threads. Beside
// the golden numbers because it needs the real weights: quantised, with 30 layers and odd head
// counts.
#include <ATen/Functions.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "common/memory/kv_pool.h"
#include "common/memory/kv_sequence.h"
#include "common/memory/kv_tables.h"
#include "common/memory/memory_policy.h"
#include "common/model/model.h"
#include "common/weights/model_files.h"
#include "kernels/parallel.h"
#include "tests/golden/golden_folder.h"

namespace mneme::model {
namespace {

using memory::KvSequence;
using memory::MemoryPolicy;

class InvarianceGoldenTest : public ::testing::TestWithParam<ComputeType> {
 protected:
  void SetUp() override {
    const std::string cache = testing::EnvironmentOr(
        "MNEME_CACHE", testing::EnvironmentOr("HOME", "/") + "/.cache/mneme");
    auto files = weights::ModelFiles::Open(
        cache + "/models/smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf");
    ASSERT_TRUE(files.ok()) << files.status() << ": run deploy/setup.sh";
    auto model =
        Model::Load(std::shared_ptr(*std::move(files)), {.compute = GetParam(), .num_threads = 2});
    ASSERT_TRUE(model.ok()) << model.status();
    model_ = *std::move(model);
    pool_ = *memory::KvPool::Create(model_->PoolOptions(int64_t{1} << 29));
    tables_ = *memory::KvTables::Create(model_->kv_shape(), model_->device());
  }

  static std::vector<int32_t> Tokens(size_t count, uint32_t seed) {
    std::mt19937 random(seed);
    std::vector<int32_t> tokens(count);
    for (int32_t& token : tokens) token = static_cast<int32_t>(random() % 49152);
    return tokens;
  }

  // The logits of the last `wanted` tokens, fed in chunks of `chunk`, the last `wanted` singly.
  at::Tensor Alone(const std::vector<int32_t>& tokens, size_t wanted, size_t chunk,
                   std::shared_ptr<const MemoryPolicy> policy) {
    KvSequence sequence(pool_.get(), model_->kv_shape(), std::move(policy));
    EXPECT_TRUE(sequence.Attach(*tables_).ok());
    std::vector<at::Tensor> rows;
    for (size_t begin = 0; begin < tokens.size();) {
      const size_t prompt = tokens.size() - wanted;
      const size_t size = begin < prompt ? std::min(chunk, prompt - begin) : 1;
      EXPECT_TRUE(sequence.Reserve(static_cast<int64_t>(size)).ok());
      const auto logits =
          model_->Forward({{.sequence = &sequence,
                            .tokens = absl::MakeConstSpan(tokens).subspan(begin, size),
                            .num_logits = begin < prompt ? 0 : 1}});
      EXPECT_TRUE(logits.ok()) << logits.status();
      if (begin >= prompt) rows.push_back(logits->clone());
      EXPECT_TRUE(sequence.Forget().ok());
      begin += size;
    }
    return at::cat(rows);
  }

  std::unique_ptr<Model> model_;
  std::unique_ptr<memory::KvPool> pool_;
  std::unique_ptr<memory::KvTables> tables_;
};

TEST_P(InvarianceGoldenTest, ChunksAndThreadsDoNotMatter) {
  const std::vector<int32_t> tokens = Tokens(150, 1);
  const auto window = *memory::WindowPolicy(4, 60);
  const at::Tensor full_once = Alone(tokens, 3, 147, memory::FullPolicy());
  const at::Tensor window_once = Alone(tokens, 3, 147, window);
  for (const int threads : {1, 2}) {
    kernels::SetNumThreads(threads);
    for (const size_t chunk : {1, 37}) {
      EXPECT_TRUE(at::equal(Alone(tokens, 3, chunk, memory::FullPolicy()), full_once));
      EXPECT_TRUE(at::equal(Alone(tokens, 3, chunk, window), window_once));
    }
  }
  EXPECT_FALSE(at::equal(full_once, window_once));
}

TEST_P(InvarianceGoldenTest, BatchesDoNotMatter) {
  constexpr size_t kSequences = 9;
  constexpr size_t kDecodes = 4;
  std::vector<std::vector<int32_t>> tokens;
  std::vector<at::Tensor> alone;
  std::vector<KvSequence> sequences;
  for (size_t s = 0; s < kSequences; ++s) {
    const auto policy = s % 3 == 1 ? *memory::WindowPolicy(4, 16) : memory::FullPolicy();
    tokens.push_back(Tokens(10 + 5 * s, static_cast<uint32_t>(s)));
    alone.push_back(Alone(tokens[s], kDecodes, 1000, policy));
    sequences.emplace_back(pool_.get(), model_->kv_shape(), policy);
    ASSERT_TRUE(sequences[s].Attach(*tables_).ok());
  }
  // A new sequence joins at every step with its whole prompt, while the others decode.
  std::vector<std::vector<at::Tensor>> rows(kSequences);
  std::vector<size_t> fed(kSequences, 0);
  for (size_t time = 0; time < kSequences + kDecodes; ++time) {
    std::vector<SequenceStep> steps;
    std::vector<size_t> members;
    for (size_t s = 0; s <= std::min(time, kSequences - 1); ++s) {
      const size_t size = fed[s] == 0 ? tokens[s].size() - kDecodes : 1;
      if (fed[s] == tokens[s].size()) continue;
      ASSERT_TRUE(sequences[s].Reserve(static_cast<int64_t>(size)).ok());
      steps.push_back({.sequence = &sequences[s],
                       .tokens = absl::MakeConstSpan(tokens[s]).subspan(fed[s], size),
                       .num_logits = fed[s] == 0 ? 0 : 1});
      members.push_back(s);
    }
    if (steps.empty()) break;
    const auto logits = model_->Forward(steps);
    ASSERT_TRUE(logits.ok()) << logits.status();
    int64_t row = 0;
    for (size_t i = 0; i < steps.size(); ++i) {
      if (steps[i].num_logits == 1) {
        rows[members[i]].push_back(logits->narrow(0, row++, 1).clone());
      }
      fed[members[i]] += steps[i].tokens.size();
      ASSERT_TRUE(sequences[members[i]].Forget().ok());
    }
  }
  for (size_t s = 0; s < kSequences; ++s) {
    ASSERT_EQ(rows[s].size(), kDecodes);
    EXPECT_TRUE(at::equal(at::cat(rows[s]), alone[s])) << "sequence " << s;
  }
}

INSTANTIATE_TEST_SUITE_P(Compute, InvarianceGoldenTest,
                         ::testing::Values(ComputeType::kFloat32, ComputeType::kBFloat16),
                         [](const auto& info) {
                           return info.param == ComputeType::kFloat32 ? "Float32" : "BFloat16";
                         });

}  // namespace
}  // namespace mneme::model
