// Compares the forward pass with what transformers answers in float32 for the same files, and the
// fast path with its perplexity. The numbers and how they were made: README.md beside them.
//
// Tolerances are the golden set's own: logits 1e-3, perplexity 0.1 % (float32) and 1 % (fast path,
// whose products round their inputs to 8 bits; its texts may differ).
#include <ATen/Functions.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "common/memory/kv_pool.h"
#include "common/memory/kv_sequence.h"
#include "common/memory/kv_tables.h"
#include "common/memory/memory_policy.h"
#include "common/model/model.h"
#include "common/weights/model_files.h"
#include "tests/golden/golden_folder.h"

namespace mneme::model {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr int64_t kPoolBytes = int64_t{1} << 30;
constexpr size_t kChunk = 256;

std::vector<std::string> GoldenNames() {
  std::vector<std::string> names;
  std::error_code error;
  for (fs::directory_iterator it(testing::GoldenFolder("models"), error), end; !error && it != end;
       it.increment(error)) {
    if (it->path().extension() == ".json") names.push_back(it->path().stem().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

// Finds a file of this name among the registered models.
fs::path FindModel(const std::string& file_name) {
  const std::string cache =
      testing::EnvironmentOr("MNEME_CACHE", testing::EnvironmentOr("HOME", "/") + "/.cache/mneme");
  std::error_code error;
  for (fs::recursive_directory_iterator it(fs::path(cache) / "models", error), end;
       !error && it != end; it.increment(error)) {
    if (it->path().filename() == file_name) return it->path();
  }
  return {};
}

std::vector<int32_t> Ids(const json& ids) { return ids.get<std::vector<int32_t>>(); }

class ModelsGoldenTest : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    std::ifstream file(testing::GoldenFolder("models") / (GetParam() + ".json"));
    golden_ = json::parse(file);
    const std::string type = golden_["config"]["model_type"];
    const std::string gguf = golden_["gguf_file"];
    if (type != "llama" && type != "qwen2") {
      GTEST_SKIP() << "architecture " << type << " is not of the Llama family: not supported";
    }
    if (type == "qwen2") {
      path_ = testing::EnvironmentOr("MNEME_QWEN_GGUF", "");
      if (path_.empty()) GTEST_SKIP() << "MNEME_QWEN_GGUF does not name the file " << gguf;
    } else {
      path_ = FindModel(gguf);
      ASSERT_FALSE(path_.empty()) << gguf << " is not in the cache: run deploy/setup.sh";
    }
  }

  void Load(ComputeType compute) {
    auto files = weights::ModelFiles::Open(path_.string());
    ASSERT_TRUE(files.ok()) << files.status();
    auto model = Model::Load(std::shared_ptr(*std::move(files)), {.compute = compute});
    ASSERT_TRUE(model.ok()) << model.status();
    model_ = *std::move(model);
    auto pool = memory::KvPool::Create(model_->PoolOptions(kPoolBytes));
    ASSERT_TRUE(pool.ok()) << pool.status();
    pool_ = *std::move(pool);
    auto tables = memory::KvTables::Create(model_->kv_shape(), model_->device());
    ASSERT_TRUE(tables.ok()) << tables.status();
    tables_ = *std::move(tables);
  }

  std::unique_ptr<memory::KvSequence> NewSequence() {
    auto sequence =
        std::make_unique<memory::KvSequence>(pool_.get(), model_->kv_shape(), memory::FullPolicy());
    EXPECT_TRUE(sequence->Attach(*tables_).ok());
    return sequence;
  }

  at::Tensor Step(memory::KvSequence& sequence, absl::Span<const int32_t> ids, int64_t num_logits) {
    EXPECT_TRUE(sequence.Reserve(static_cast<int64_t>(ids.size())).ok());
    auto logits =
        model_->Forward({{.sequence = &sequence, .tokens = ids, .num_logits = num_logits}});
    EXPECT_TRUE(logits.ok()) << logits.status();
    return *logits;
  }

  // Returns the negative log-likelihoods of ids 1, 2, …, fed in chunks.
  std::vector<double> Nll(const std::vector<int32_t>& ids) {
    auto sequence = NewSequence();
    std::vector<double> nll;
    for (size_t begin = 0; begin < ids.size(); begin += kChunk) {
      const auto chunk = absl::MakeConstSpan(ids).subspan(begin, kChunk);
      const at::Tensor log_probabilities = at::log_softmax(
          Step(*sequence, chunk, static_cast<int64_t>(chunk.size())).to(at::kDouble), -1);
      for (size_t i = 0; i < chunk.size() && begin + i + 1 < ids.size(); ++i) {
        nll.push_back(
            -log_probabilities[static_cast<int64_t>(i)][ids[begin + i + 1]].item<double>());
      }
    }
    return nll;
  }

  double Perplexity() {
    double sum = 0;
    const std::vector<double> nll = Nll(Ids(golden_["teacher_forced"]["ids"]));
    EXPECT_EQ(nll.size(), golden_["teacher_forced"]["n_predicted"].get<size_t>());
    for (const double value : nll) sum += value;
    return std::exp(sum / static_cast<double>(nll.size()));
  }

  json golden_;
  fs::path path_;
  std::unique_ptr<Model> model_;
  std::unique_ptr<memory::KvPool> pool_;
  std::unique_ptr<memory::KvTables> tables_;
};

TEST_P(ModelsGoldenTest, Float32GreedyIdsAndLogitsEqualTheReference) {
  Load(ComputeType::kFloat32);
  double worst = 0;
  for (const json& prompt : golden_["generation"]) {
    SCOPED_TRACE(prompt["prompt"].get<std::string>());
    auto sequence = NewSequence();
    std::vector<int32_t> next = Ids(prompt["prompt_ids"]);
    std::vector<int32_t> generated;
    const std::vector<int32_t> expected = Ids(prompt["generated_ids"]);
    for (size_t step = 0; step < expected.size(); ++step) {
      const at::Tensor logits = Step(*sequence, next, 1)[0];
      for (const json& top : prompt["top5_logits_per_step"][step]) {
        const double difference =
            std::abs(logits[top[0].get<int64_t>()].item<double>() - top[1].get<double>());
        worst = std::max(worst, difference);
        EXPECT_LE(difference, 1e-3) << "step " << step << ", id " << top[0];
      }
      generated.push_back(logits.argmax().item<int32_t>());
      next = {generated.back()};
    }
    EXPECT_EQ(generated, expected);
  }
  RecordProperty("worst_logit_difference", std::to_string(worst));
  std::printf("worst difference of a logit: %g\n", worst);
}

TEST_P(ModelsGoldenTest, Float32PromptLikelihoodsEqualTheReference) {
  Load(ComputeType::kFloat32);
  for (const json& prompt : golden_["generation"]) {
    double sum = 0;
    for (const double nll : Nll(Ids(prompt["prompt_ids"]))) sum += nll;
    const double expected = prompt["prompt_nll_sum"];
    std::printf("%.5f expected %.5f\n", sum, expected);
    EXPECT_NEAR(sum, expected, 2e-3) << prompt["prompt"];
  }
}

TEST_P(ModelsGoldenTest, Float32PerplexityIsWithinOnePerMille) {
  Load(ComputeType::kFloat32);
  const double expected = golden_["teacher_forced"]["ppl"];
  const double actual = Perplexity();
  std::printf("perplexity %.5f, reference %.5f\n", actual, expected);
  EXPECT_NEAR(actual, expected, 1e-3 * expected);
}

TEST_P(ModelsGoldenTest, FastPerplexityIsWithinOnePercent) {
  Load(ComputeType::kBFloat16);
  const double expected = golden_["teacher_forced"]["ppl"];
  const double actual = Perplexity();
  std::printf("perplexity %.5f, reference %.5f\n", actual, expected);
  EXPECT_NEAR(actual, expected, 1e-2 * expected);
}

INSTANTIATE_TEST_SUITE_P(Files, ModelsGoldenTest, ::testing::ValuesIn(GoldenNames()),
                         [](const ::testing::TestParamInfo<std::string>& info) {
                           std::string name = info.param;
                           for (char& c : name) c = std::isalnum(c) ? c : '_';
                           return name;
                         });

// The suite above is empty where the folder is missing: that must not look like success.
TEST(ModelsGoldenFolderTest, HoldsTheDefaultModel) {
  EXPECT_THAT(GoldenNames(), ::testing::Contains("smollm2-135m-instruct-q4_1"))
      << "no golden numbers in " << testing::GoldenFolder("models") << ": set MNEME_GOLDEN";
}

}  // namespace
}  // namespace mneme::model
