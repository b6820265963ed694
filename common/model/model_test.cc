// The forward pass on tiny models: against transformers (testdata/), and its promises about chunks,
// batches, threads and memory policies. The default model's numbers: tests/golden/models.
#include "common/model/model.h"

#include <ATen/Functions.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "common/memory/kv_pool.h"
#include "common/memory/kv_sequence.h"
#include "common/memory/kv_tables.h"
#include "common/memory/memory_policy.h"
#include "common/model/tiny_model.h"
#include "common/weights/model_files.h"
#include "common/weights/safetensors.h"
#include "kernels/parallel.h"
#include "tests/support/temp_folder.h"

namespace mneme::model {
namespace {

using memory::FullPolicy;
using memory::KvSequence;
using memory::WindowPolicy;
using ::testing::HasSubstr;

using Policy = std::shared_ptr<const memory::MemoryPolicy>;

std::string TestData(const std::string& name) {
  const char* source = std::getenv("MNEME_SOURCE");
  return std::string(source == nullptr ? MNEME_SOURCE_DIR : source) + "/common/model/testdata/" +
         name;
}

std::vector<int32_t> RandomTokens(size_t count, int32_t vocab_size, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<int32_t> tokens(count);
  for (int32_t& token : tokens) token = static_cast<int32_t>(random() % vocab_size);
  return tokens;
}

// A model with pages and tables.
struct Engine {
  std::unique_ptr<Model> model;
  std::unique_ptr<memory::KvPool> pool;
  std::unique_ptr<memory::KvTables> tables;

  KvSequence NewSequence(Policy policy = FullPolicy()) {
    KvSequence sequence(pool.get(), model->kv_shape(), std::move(policy));
    EXPECT_TRUE(sequence.Attach(*tables).ok());
    return sequence;
  }

  // Feeds tokens in chunks of these sizes, the last one repeated; returns the logits of all. [T, V]
  at::Tensor Feed(KvSequence& sequence, const std::vector<int32_t>& tokens,
                  const std::vector<size_t>& chunks) {
    std::vector<at::Tensor> logits;
    size_t begin = 0;
    for (size_t i = 0; begin < tokens.size(); ++i) {
      const size_t size = std::min(chunks[std::min(i, chunks.size() - 1)], tokens.size() - begin);
      EXPECT_TRUE(sequence.Reserve(static_cast<int64_t>(size)).ok());
      const auto step = model->Forward({{.sequence = &sequence,
                                         .tokens = absl::MakeConstSpan(tokens).subspan(begin, size),
                                         .num_logits = static_cast<int64_t>(size)}});
      EXPECT_TRUE(step.ok()) << step.status();
      logits.push_back(step->clone());
      EXPECT_TRUE(sequence.Forget().ok());
      begin += size;
    }
    return at::cat(logits);
  }

  at::Tensor Run(const std::vector<int32_t>& tokens, const std::vector<size_t>& chunks,
                 Policy policy = FullPolicy()) {
    KvSequence sequence = NewSequence(std::move(policy));
    return Feed(sequence, tokens, chunks);
  }
};

absl::StatusOr<Engine> Open(const std::string& path, ComputeType compute) {
  Engine engine;
  auto files = weights::ModelFiles::Open(path);
  if (!files.ok()) return files.status();
  auto model = Model::Load(std::shared_ptr(*std::move(files)), {.compute = compute});
  if (!model.ok()) return model.status();
  engine.model = *std::move(model);
  engine.pool = *memory::KvPool::Create(engine.model->PoolOptions(16 << 20));
  engine.tables = *memory::KvTables::Create(engine.model->kv_shape(), engine.model->device(), 2, 2);
  return engine;
}

double Difference(const at::Tensor& a, const at::Tensor& b) {
  return at::max(at::abs(at::sub(a, b))).item<double>();
}

// --- Against transformers.
// -------------------------------------------------------------------------

class TransformersTest : public ::testing::TestWithParam<const char*> {
 protected:
  static at::Tensor Expected(const std::string& name) {
    static const auto file = *weights::SafetensorsFile::Open(TestData("expected.safetensors"));
    const weights::TensorView* view = file->FindTensor(name);
    EXPECT_NE(view, nullptr) << name;
    const at::ScalarType type = view->type == weights::TensorType::kI32 ? at::kInt : at::kFloat;
    return at::from_blob(const_cast<uint8_t*>(view->data), view->shape,
                         at::TensorOptions().dtype(type))
        .clone();
  }
  static std::vector<int32_t> ExpectedIds(const std::string& name) {
    const at::Tensor ids = Expected(name);
    return {ids.const_data_ptr<int32_t>(), ids.const_data_ptr<int32_t>() + ids.numel()};
  }
};

TEST_P(TransformersTest, LogitsAgreeAndChunksDoNotMatter) {
  const std::string name = GetParam();
  auto engine = Open(TestData(name), ComputeType::kFloat32);
  ASSERT_TRUE(engine.ok()) << engine.status();
  const std::vector<int32_t> ids = ExpectedIds(name + ".ids");
  const at::Tensor expected = Expected(name + ".logits");
  const at::Tensor whole = engine->Run(ids, {ids.size()});
  EXPECT_LE(Difference(whole, expected), 1e-4);
  EXPECT_TRUE(at::equal(engine->Run(ids, {1}), whole));
  EXPECT_TRUE(at::equal(engine->Run(ids, {17, 3, 5}), whole));
}

TEST_P(TransformersTest, FastPathStaysClose) {
  const std::string name = GetParam();
  auto engine = Open(TestData(name), ComputeType::kBFloat16);
  ASSERT_TRUE(engine.ok()) << engine.status();
  const std::vector<int32_t> ids = ExpectedIds(name + ".ids");
  // bfloat16 keys and values: three decimal digits, on logits of size about 1.
  EXPECT_LE(Difference(engine->Run(ids, {ids.size()}), Expected(name + ".logits")), 0.1);
}

INSTANTIATE_TEST_SUITE_P(Cases, TransformersTest,
                         ::testing::Values("llama_gqa", "llama_bias", "llama_linear",
                                           "llama_llama3", "llama_yarn", "llama_dynamic",
                                           "mistral_window", "qwen2_window"),
                         [](const auto& info) { return std::string(info.param); });

using WindowTest = TransformersTest;

TEST_F(WindowTest, EqualsAStreamingCache) {
  auto engine = *Open(TestData("llama_llama3"), ComputeType::kFloat32);
  const std::vector<int32_t> ids = ExpectedIds("llama_llama3.ids");
  const at::Tensor expected = Expected("llama_llama3.streaming");
  const Policy policy = *WindowPolicy(/*sinks=*/3, /*recent=*/9);
  const at::Tensor whole = engine.Run(ids, {ids.size()}, policy);
  EXPECT_LE(Difference(whole, expected), 1e-4);
  // It matters: without the policy the numbers are others.
  EXPECT_GE(Difference(engine.Run(ids, {ids.size()}), expected), 1e-2);
}

// --- Promises, on a random model.
// ------------------------------------------------------------------

class ModelTest : public ::testing::TestWithParam<ComputeType> {
 protected:
  void SetUp() override {
    kernels::SetNumThreads(2);
    ASSERT_TRUE(WriteTinyModel(folder_.path(), {}).ok());
    auto engine = Open(folder_.path(), GetParam());
    ASSERT_TRUE(engine.ok()) << engine.status();
    engine_ = *std::move(engine);
  }

  static std::vector<int32_t> Tokens(size_t count, uint32_t seed = 1) {
    return RandomTokens(count, 128, seed);
  }

  testing::TempFolder folder_;
  Engine engine_;
};

TEST_P(ModelTest, ResultsDoNotDependOnChunksBitwise) {
  const std::vector<int32_t> tokens = Tokens(700);  // more than one split of the attention kernel
  for (const Policy& policy : {FullPolicy(), *WindowPolicy(4, 60), *WindowPolicy(0, 33)}) {
    const at::Tensor whole = engine_.Run(tokens, {tokens.size()}, policy);
    EXPECT_TRUE(at::equal(engine_.Run(tokens, {256, 1, 100, 16}, policy), whole));
    EXPECT_TRUE(at::equal(engine_.Run(tokens, {1}, policy), whole));
  }
}

TEST_P(ModelTest, ResultsDoNotDependOnThreadsBitwise) {
  const std::vector<int32_t> tokens = Tokens(300);
  kernels::SetNumThreads(1);
  const at::Tensor one = engine_.Run(tokens, {200, 1});
  kernels::SetNumThreads(3);
  EXPECT_TRUE(at::equal(engine_.Run(tokens, {200, 1}), one));
  kernels::SetNumThreads(2);
  EXPECT_TRUE(at::equal(engine_.Run(tokens, {64}), one));
}

TEST_P(ModelTest, ResultsDoNotDependOnTheBatchBitwise) {
  // Sequences of different ages and policies, decodes and chunks mixed in every step.
  constexpr size_t kSequences = 7;
  std::vector<std::vector<int32_t>> tokens;
  std::vector<at::Tensor> alone;
  std::vector<KvSequence> sequences;
  std::vector<std::vector<at::Tensor>> together(kSequences);
  const std::vector<Policy> policies = {FullPolicy(), *WindowPolicy(4, 20), *WindowPolicy(0, 15)};
  for (size_t s = 0; s < kSequences; ++s) {
    const Policy& policy = policies[s % policies.size()];
    tokens.push_back(Tokens(40 + 9 * s, static_cast<uint32_t>(s)));
    alone.push_back(engine_.Run(tokens[s], {tokens[s].size()}, policy));
    sequences.push_back(engine_.NewSequence(policy));
  }
  std::mt19937 random(5);
  std::vector<size_t> fed(kSequences, 0);
  for (;;) {
    std::vector<SequenceStep> steps;
    std::vector<size_t> members;
    for (size_t s = 0; s < kSequences; ++s) {
      const size_t left = tokens[s].size() - fed[s];
      if (left == 0 || (random() % 4 == 0 && !members.empty())) continue;
      const size_t size = random() % 2 == 0 ? 1 : std::min<size_t>(left, 1 + random() % 30);
      ASSERT_TRUE(sequences[s].Reserve(static_cast<int64_t>(size)).ok());
      steps.push_back({.sequence = &sequences[s],
                       .tokens = absl::MakeConstSpan(tokens[s]).subspan(fed[s], size),
                       .num_logits = static_cast<int64_t>(size)});
      members.push_back(s);
    }
    if (steps.empty()) break;
    const auto logits = engine_.model->Forward(steps);
    ASSERT_TRUE(logits.ok()) << logits.status();
    int64_t row = 0;
    for (size_t i = 0; i < steps.size(); ++i) {
      together[members[i]].push_back(logits->narrow(0, row, steps[i].num_logits).clone());
      row += steps[i].num_logits;
      fed[members[i]] += steps[i].tokens.size();
      ASSERT_TRUE(sequences[members[i]].Forget().ok());
    }
    EXPECT_EQ(row, logits->size(0));
  }
  for (size_t s = 0; s < kSequences; ++s) {
    EXPECT_TRUE(at::equal(at::cat(together[s]), alone[s])) << "sequence " << s;
  }
}

TEST_P(ModelTest, OnlyWantedRowsAreReturnedAndTheyAreTheSame) {
  const std::vector<int32_t> a = Tokens(50, 1), b = Tokens(20, 2), c = Tokens(30, 3);
  const at::Tensor all_a = engine_.Run(a, {50}), all_c = engine_.Run(c, {30});
  KvSequence sa = engine_.NewSequence(), sb = engine_.NewSequence(), sc = engine_.NewSequence();
  ASSERT_TRUE(sa.Reserve(50).ok() && sb.Reserve(20).ok() && sc.Reserve(30).ok());
  const auto logits = engine_.model->Forward({{.sequence = &sa, .tokens = a, .num_logits = 3},
                                              {.sequence = &sb, .tokens = b, .num_logits = 0},
                                              {.sequence = &sc, .tokens = c, .num_logits = 1}});
  ASSERT_TRUE(logits.ok()) << logits.status();
  EXPECT_EQ(logits->sizes(), at::IntArrayRef({4, 128}));
  EXPECT_TRUE(at::equal(*logits, at::cat({all_a.narrow(0, 47, 3), all_c.narrow(0, 29, 1)})));
}

TEST_P(ModelTest, StepWithoutLogitsStillFillsMemory) {
  const std::vector<int32_t> tokens = Tokens(60);
  const at::Tensor whole = engine_.Run(tokens, {60});
  KvSequence sequence = engine_.NewSequence();
  ASSERT_TRUE(sequence.Reserve(59).ok());
  const auto none = engine_.model->Forward(
      {{.sequence = &sequence, .tokens = absl::MakeConstSpan(tokens).first(59), .num_logits = 0}});
  ASSERT_TRUE(none.ok());
  EXPECT_EQ(none->size(0), 0);
  EXPECT_TRUE(at::equal(engine_.Feed(sequence, {tokens[59]}, {1}), whole.narrow(0, 59, 1)));
}

TEST_P(ModelTest, ForkAndRewindContinueAsIfComputedAfresh) {
  const std::vector<int32_t> tokens = Tokens(90);
  std::vector<int32_t> other(tokens.begin(), tokens.begin() + 70);
  for (const int32_t token : Tokens(25, 9)) other.push_back(token);
  const at::Tensor whole = engine_.Run(tokens, {90}), whole_other = engine_.Run(other, {95});

  KvSequence sequence = engine_.NewSequence();
  engine_.Feed(sequence, {tokens.begin(), tokens.begin() + 70}, {70});
  KvSequence fork = sequence.Fork();
  ASSERT_TRUE(fork.Attach(*engine_.tables).ok());
  EXPECT_TRUE(at::equal(engine_.Feed(fork, {other.begin() + 70, other.end()}, {10}),
                        whole_other.narrow(0, 70, 25)));
  EXPECT_TRUE(at::equal(engine_.Feed(sequence, {tokens.begin() + 70, tokens.end()}, {20}),
                        whole.narrow(0, 70, 20)));
  ASSERT_TRUE(sequence.Truncate(70).ok());
  EXPECT_TRUE(at::equal(engine_.Feed(sequence, {other.begin() + 70, other.end()}, {25}),
                        whole_other.narrow(0, 70, 25)));
}

TEST_P(ModelTest, WindowThatIsNeverFullEqualsFull) {
  const std::vector<int32_t> tokens = Tokens(100);
  EXPECT_TRUE(
      at::equal(engine_.Run(tokens, {100}, *WindowPolicy(4, 100)), engine_.Run(tokens, {100})));
}

TEST_P(ModelTest, CompactedMemoryIsAttendedAtItsOriginalPositions) {
  // A window of 16 without sinks, once by the mask and once by dropping the entries themselves.
  const std::vector<int32_t> tokens = Tokens(50);
  const std::vector<int32_t> past(tokens.begin(), tokens.end() - 1);
  KvSequence masked = engine_.NewSequence(*WindowPolicy(0, 16));
  engine_.Feed(masked, past, {49});
  const at::Tensor expected = engine_.Feed(masked, {tokens.back()}, {1});
  KvSequence compacted = engine_.NewSequence(*WindowPolicy(0, 16));
  engine_.Feed(compacted, past, {1});
  memory::Retention retention;
  for (int64_t layer = 0; layer < 3; ++layer) {
    for (int64_t head = 0; head < 2; ++head) {
      std::vector<int64_t> indices;
      for (int64_t i = 49 - 15; i < 49; ++i) indices.push_back(i);
      retention.kept.push_back({.layer = layer, .head = head, .indices = std::move(indices)});
    }
  }
  ASSERT_TRUE(compacted.Apply(retention).ok());
  EXPECT_EQ(compacted.num_pages(), 6);
  EXPECT_LE(Difference(engine_.Feed(compacted, {tokens.back()}, {1}), expected), 2e-5);
}

TEST_P(ModelTest, MemoryOfAWindowIsBoundedWhateverTheLength) {
  KvSequence sequence = engine_.NewSequence(*WindowPolicy(4, 60));
  engine_.Feed(sequence, Tokens(900), {64});
  const int64_t bound = sequence.policy().EstimatePeakPages(sequence.shape(), 900, 64);
  EXPECT_LE(sequence.peak_bytes(), bound * engine_.pool->page_bytes());
  EXPECT_LE(bound, 6 * 10);
}

TEST_P(ModelTest, WrongStepsAreRefusedAndNothingAdvances) {
  KvSequence sequence = engine_.NewSequence();
  const std::vector<int32_t> tokens = {1, 2, 3};
  const auto code = [&](std::vector<SequenceStep> steps) {
    return engine_.model->Forward(steps).status().code();
  };
  EXPECT_EQ(code({}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code({{&sequence, tokens, 1}}), absl::StatusCode::kFailedPrecondition);  // no room
  ASSERT_TRUE(sequence.Reserve(3).ok());
  EXPECT_EQ(code({{&sequence, {}, 0}}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code({{&sequence, tokens, 4}}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code({{&sequence, tokens, 1}, {&sequence, tokens, 1}}),
            absl::StatusCode::kInvalidArgument);
  const std::vector<int32_t> beyond = {1, 128}, negative = {-1};
  EXPECT_EQ(code({{&sequence, beyond, 1}}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code({{&sequence, negative, 1}}), absl::StatusCode::kInvalidArgument);
  KvSequence detached(engine_.pool.get(), engine_.model->kv_shape(), FullPolicy());
  ASSERT_TRUE(detached.Reserve(3).ok());
  EXPECT_EQ(code({{&detached, tokens, 1}}), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(sequence.num_tokens(), 0);
  EXPECT_EQ(code({{&sequence, tokens, 1}}), absl::StatusCode::kOk);
  EXPECT_EQ(sequence.num_tokens(), 3);
}

INSTANTIATE_TEST_SUITE_P(Compute, ModelTest,
                         ::testing::Values(ComputeType::kFloat32, ComputeType::kBFloat16),
                         [](const auto& info) {
                           return info.param == ComputeType::kFloat32 ? "Float32" : "BFloat16";
                         });

// --- Families and files.
// ---------------------------------------------------------------------------

TEST(ModelFamiliesTest, SlidingWindowForgetsAndEqualsTheWindowPolicyWithoutSinks) {
  const testing::TempFolder with, without;
  ASSERT_TRUE(WriteTinyModel(with.path(), {.model_type = "mistral", .sliding_window = 24}).ok());
  ASSERT_TRUE(WriteTinyModel(without.path(), {.model_type = "mistral"}).ok());
  Engine windowed = *Open(with.path(), ComputeType::kFloat32);
  Engine plain = *Open(without.path(), ComputeType::kFloat32);
  const std::vector<int32_t> tokens = RandomTokens(120, 128, 3);
  KvSequence sequence = windowed.NewSequence();
  EXPECT_TRUE(at::equal(windowed.Feed(sequence, tokens, {50}),
                        plain.Run(tokens, {50}, *WindowPolicy(0, 24))));
  EXPECT_LE(sequence.num_pages(), 6 * 3);
}

TEST(ModelFamiliesTest, EveryFamilyLoadsAndRuns) {
  for (const char* family : {"llama", "mistral", "qwen2"}) {
    for (const bool tied : {false, true}) {
      const testing::TempFolder folder;
      ASSERT_TRUE(
          WriteTinyModel(folder.path(), {.model_type = family, .tie_word_embeddings = tied}).ok());
      auto engine = Open(folder.path(), ComputeType::kFloat32);
      ASSERT_TRUE(engine.ok()) << engine.status();
      const at::Tensor logits = engine->Run({1, 2, 3, 4}, {4});
      EXPECT_TRUE(at::isfinite(logits).all().item<bool>());
      EXPECT_GT(at::std(logits).item<double>(), 0.1);
    }
  }
}

TEST(ModelFamiliesTest, WrongTensorIsNamed) {
  const std::string name = "model.layers.1.mlp.up_proj.weight";
  const testing::TempFolder missing, wrong;
  ASSERT_TRUE(WriteTinyModel(missing.path(), {.missing_tensor = name}).ok());
  ASSERT_TRUE(WriteTinyModel(wrong.path(), {.short_tensor = name}).ok());
  for (const std::string& path : {missing.path(), wrong.path()}) {
    const auto engine = Open(path, ComputeType::kFloat32);
    EXPECT_EQ(engine.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(engine.status().message()), HasSubstr(name));
  }
}

TEST(ModelFamiliesTest, HeadSizeWithoutKernelIsRefused) {
  const testing::TempFolder folder;
  ASSERT_TRUE(WriteTinyModel(folder.path(), {.head_size = 12}).ok());
  EXPECT_EQ(Open(folder.path(), ComputeType::kFloat32).status().code(),
            absl::StatusCode::kUnimplemented);
}

}  // namespace
}  // namespace mneme::model
