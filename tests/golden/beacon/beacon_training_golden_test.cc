// Losses and gradients as they are trained with, against every case file: where it has no labels,
// the loss of its logits.
//
// Tolerances are the golden set's own: 1e-5 for both.
#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/model/beacon_training.h"
#include "common/model/torch_status.h"
#include "tests/golden/beacon/golden_case.h"
#include "tests/support/temp_folder.h"

namespace mneme::testing {
namespace {

using nlohmann::json;

constexpr double kTolerance = 1e-5;
constexpr char kGradient[] = "grad.";

// Cases that are one call without padding: training knows no other.
std::vector<std::string> TrainableCaseNames() {
  std::vector<std::string> names = BeaconCaseNames();
  std::erase_if(names, [](const std::string& name) {
    const BeaconGolden golden(name);
    return golden.Has("attention_mask") || golden.Calls().size() != 1;
  });
  return names;
}

// Of the file's logits: each token's against the next.
double LossOfLogits(const BeaconGolden& golden, const weights::BeaconConfig& config) {
  const at::Tensor ids = golden.Tensor("input_ids");
  // Only interleaved beacons with full coverage learn from the first window.
  const bool learns_from_first = config.placement == weights::BeaconPlacement::kInterleave &&
                                 config.attention == weights::BeaconAttention::kFullCoverage;
  const int64_t first = learns_from_first ? 0 : config.window;
  const int64_t count = ids.size(1) - 1 - first;
  const at::Tensor logits = golden.Tensor("logits_raw").narrow(1, first, count);
  return at::cross_entropy_loss(logits.flatten(0, 1), ids.narrow(1, first + 1, count).flatten())
      .item<double>();
}

class BeaconTrainingGoldenTest : public ::testing::TestWithParam<std::string> {};

TEST_P(BeaconTrainingGoldenTest, LossAndGradientsEqualTheReference) {
  const BeaconGolden golden(GetParam());
  const TempFolder folder;
  const BeaconGoldenModel opened = OpenModel(golden, folder);
  const memory::BeaconSettings settings = golden.Settings();
  auto model = model::BeaconTraining::Load(opened.files, opened.adapter, settings.config, at::kCPU);
  ASSERT_TRUE(model.ok()) << model.status();
  memory::BeaconRatioState ratios = memory::FirstRatioState(settings);
  const at::Tensor ids = golden.Tensor("input_ids");
  const at::Tensor labels = golden.Has("labels") ? golden.Tensor("labels") : ids;
  const auto loss = (*model)->Loss(settings, ids, labels, &ratios);
  ASSERT_TRUE(loss.ok()) << loss.status();
  EXPECT_EQ(json(loss->ratios), golden.Json("ratios_chosen"));
  if (!golden.Has("loss")) {
    EXPECT_NEAR(loss->loss.item<double>(), LossOfLogits(golden, settings.config), kTolerance);
    return;
  }
  EXPECT_NEAR(loss->loss.item<double>(), golden.Tensor("loss")[0].item<double>(), kTolerance);
  EXPECT_LE((loss->sequence_losses - golden.Tensor("batch_loss")).abs().max().item<double>(),
            kTolerance);
  if (!golden.is_training()) return;

  EXPECT_EQ(golden.Json("valid_tokens"), json::array({loss->num_targets}));
  ASSERT_TRUE(CatchTorch("backward pass", [&] { loss->loss.backward(); }).ok());
  // Each gradient of the file, and of no other weight.
  std::vector<std::string> expected, actual;
  for (const weights::TensorView& tensor : golden.file().tensors()) {
    if (tensor.name.starts_with(kGradient)) expected.push_back(tensor.name);
  }
  double worst = 0;
  for (const auto& [name, value] : (*model)->parameters()) {
    const std::string gradient = kGradient + name;
    actual.push_back(gradient);
    ASSERT_TRUE(golden.Has(gradient)) << gradient;
    ASSERT_TRUE(value.grad().defined()) << name;
    worst = std::max(worst, (value.grad() - golden.Tensor(gradient)).abs().max().item<double>());
  }
  EXPECT_THAT(actual, ::testing::UnorderedElementsAreArray(expected));
  std::printf("worst difference of a gradient: %g\n", worst);
  EXPECT_LE(worst, kTolerance);
}

INSTANTIATE_TEST_SUITE_P(Files, BeaconTrainingGoldenTest, ::testing::ValuesIn(TrainableCaseNames()),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace mneme::testing
