// Training passes of Activation Beacon on a tiny model whose beacons are untrained: what gradients
// there are, and what is refused. The published implementation's numbers: tests/golden/beacon.
#include "common/model/beacon_training.h"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "common/model/tiny_model.h"
#include "common/model/torch_status.h"
#include "tests/support/temp_folder.h"

namespace mneme::model {
namespace {

using ::testing::AllOf;
using ::testing::EndsWith;
using ::testing::HasSubstr;

constexpr int64_t kTokens = 90;

class BeaconTrainingTest : public ::testing::Test {
 protected:
  void SetUp() override {
    // A bias on q, k and v.
    ASSERT_TRUE(WriteTinyModel(folder_.path(), {.model_type = "qwen2"}).ok());
    auto files = weights::ModelFiles::Open(folder_.path());
    ASSERT_TRUE(files.ok()) << files.status();
    files_ = *std::move(files);
    config_.window = config_.stride = 32;
    config_.ratios = {4};
    config_.has_q = config_.has_k = config_.has_v = config_.has_o = true;
    auto model = BeaconTraining::Load(files_, nullptr, config_, at::kCPU);
    ASSERT_TRUE(model.ok()) << model.status();
    model_ = *std::move(model);
    tokens_ = at::arange(2 * kTokens, at::kLong).mul(37).remainder(128).view({2, kTokens});
  }

  memory::BeaconSettings Settings() const {
    memory::BeaconSettings settings = memory::MakeBeaconSettings(files_->config(), config_);
    settings.training = true;
    return settings;
  }
  absl::StatusOr<BeaconLoss> Loss(const at::Tensor& tokens, const at::Tensor& labels) const {
    const memory::BeaconSettings settings = Settings();
    memory::BeaconRatioState ratios = memory::FirstRatioState(settings);
    return model_->Loss(settings, tokens, labels, &ratios);
  }
  static at::Tensor Ignored() { return at::full({2, kTokens}, -100, at::kLong); }

  const testing::TempFolder folder_;
  std::shared_ptr<const weights::ModelFiles> files_;
  weights::BeaconConfig config_;
  std::unique_ptr<BeaconTraining> model_;
  at::Tensor tokens_;  // [2, kTokens]
};

TEST_F(BeaconTrainingTest, OnlyBeaconsAreTrainedAndAllOfThem) {
  // q, k and v with bias, o without, in three layers, and the embedding.
  ASSERT_EQ(model_->parameters().size(), 3u * 7 + 1);
  const auto loss = Loss(tokens_, tokens_);
  ASSERT_TRUE(loss.ok()) << loss.status();
  ASSERT_TRUE(CatchTorch("backward pass", [&] { loss->loss.backward(); }).ok());
  for (const auto& [name, value] : model_->parameters()) {
    EXPECT_THAT(name, AllOf(HasSubstr("beacon_"),
                            ::testing::AnyOf(EndsWith(".weight"), EndsWith(".bias"))));
    ASSERT_TRUE(value.grad().defined()) << name;
    // What a beacon asks and passes on in the last layer is read by nobody: its keys and values
    // are what later windows see.
    const bool is_read = !name.starts_with("model.layers.2.") ||
                         name.find("_k_proj.weight") != std::string::npos ||
                         name.find("_v_proj") != std::string::npos;
    if (is_read && name.find("_k_proj.bias") == std::string::npos) {
      EXPECT_GT(value.grad().abs().max().item<double>(), 1e-9) << name;
    }
  }
}

TEST_F(BeaconTrainingTest, AGradientIsTheLossesSlope) {
  const auto loss = Loss(tokens_, tokens_);
  ASSERT_TRUE(loss.ok()) << loss.status();
  ASSERT_TRUE(CatchTorch("backward pass", [&] { loss->loss.backward(); }).ok());
  constexpr double kStep = 1e-2;
  for (const auto& [name, value] : model_->parameters()) {
    // Along the gradient itself, where the slope is its length.
    const at::Tensor gradient = value.grad();
    const double length = gradient.norm().item<double>();
    if (length < 1e-4) continue;
    const at::Tensor step = gradient * (kStep / length);
    value.detach().add_(step);
    const double above = Loss(tokens_, tokens_)->loss.item<double>();
    value.detach().sub_(step * 2);
    const double below = Loss(tokens_, tokens_)->loss.item<double>();
    value.detach().add_(step);
    EXPECT_NEAR((above - below) / (2 * kStep), length, 0.02 * length + 1e-4) << name;
  }
}

TEST_F(BeaconTrainingTest, SequencesOfABatchLearnAsAlone) {
  const auto both = Loss(tokens_, tokens_);
  ASSERT_TRUE(both.ok()) << both.status();
  EXPECT_EQ(both->num_targets, 2 * (kTokens - 1));
  for (int64_t b = 0; b < 2; ++b) {
    const at::Tensor alone = tokens_.narrow(0, b, 1);
    const auto loss = Loss(alone, alone);
    ASSERT_TRUE(loss.ok()) << loss.status();
    EXPECT_NEAR(loss->loss.item<double>(), both->sequence_losses[b].item<double>(), 1e-5);
  }
}

TEST_F(BeaconTrainingTest, OnlyLabelledTokensCount) {
  at::Tensor labels = Ignored();
  labels[0][40] = tokens_[0][40];
  const auto loss = Loss(tokens_, labels);
  ASSERT_TRUE(loss.ok()) << loss.status();
  EXPECT_EQ(loss->num_targets, 1);
  EXPECT_EQ(loss->sequence_losses[1].item<double>(), 0);
  EXPECT_EQ(loss->sequence_losses[0].item<double>(), loss->loss.item<double>());
}

TEST_F(BeaconTrainingTest, RatiosGoOnFromSequenceToSequence) {
  config_.ratios = {2, 4, 8};
  const memory::BeaconSettings settings = Settings();
  memory::BeaconRatioState ratios = memory::FirstRatioState(settings);
  std::vector<int64_t> drawn;
  for (int i = 0; i < 3; ++i) {
    const auto loss = model_->Loss(settings, tokens_, tokens_, &ratios);
    ASSERT_TRUE(loss.ok()) << loss.status();
    drawn.insert(drawn.end(), loss->ratios.begin(), loss->ratios.end());
  }
  // Two windows of each sequence are compressed; as the published generator draws with seed 42.
  EXPECT_THAT(drawn, ::testing::ElementsAre(2, 8, 4, 4, 4, 8));
}

TEST_F(BeaconTrainingTest, BadArgumentsAreNamed) {
  at::Tensor wrong = tokens_.clone();
  wrong[1][3] = 128;
  at::Tensor wrong_label = tokens_.clone();
  wrong_label[0][9] = -1;
  for (const auto& [tokens, labels, message] :
       {std::tuple(tokens_, Ignored(), "no target to learn from"),
        std::tuple(wrong, tokens_, "a token is not among the 128"),
        std::tuple(tokens_, wrong_label, "a label is neither -100 nor among the 128"),
        std::tuple(tokens_, tokens_.narrow(1, 0, 5), "int64 [B, T]"),
        std::tuple(tokens_.to(at::kInt), tokens_, "int64 [B, T]")}) {
    const auto loss = Loss(tokens, labels);
    EXPECT_EQ(loss.status().code(), absl::StatusCode::kInvalidArgument) << loss.status();
    EXPECT_THAT(std::string(loss.status().message()), HasSubstr(message));
  }
  config_.has_o = false;
  EXPECT_THAT(std::string(Loss(tokens_, tokens_).status().message()),
              HasSubstr("other beacon projections than were loaded"));
}

}  // namespace
}  // namespace mneme::model
