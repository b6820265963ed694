// Beacon weights that a checkpoint lacks are those of its base, exactly.
#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>

#include <fstream>

#include "common/model/weight_loader.h"
#include "common/weights/model_files.h"
#include "kernels/linear.h"
#include "tests/golden/beacon/golden_case.h"
#include "tests/support/temp_folder.h"

namespace mneme::testing {
namespace {

class BeaconLoadGoldenTest : public ::testing::TestWithParam<std::string> {
 protected:
  BeaconLoadGoldenTest() : golden_(GetParam()), base_("weights_" + golden_.Text("arch")) {}

  // Loads the weights of the case's base without the tensors that `is_left_out` names.
  template <typename Predicate>
  absl::StatusOr<model::ModelWeights> LoadWithout(Predicate is_left_out) {
    std::vector<weights::TensorView> kept;
    for (const weights::TensorView& view : base_.file().tensors()) {
      if (!is_left_out(view.name)) kept.push_back(view);
    }
    std::ofstream(folder_.File("config.json")) << golden_.Text("config");
    EXPECT_TRUE(weights::WriteSafetensors(folder_.File("model.safetensors"), kept, {}).ok());
    auto files = weights::ModelFiles::Open(folder_.path());
    if (!files.ok()) return files.status();
    return model::LoadWeights(std::shared_ptr(*std::move(files)), /*adapter=*/nullptr, at::kCPU);
  }

  static at::Tensor RowsOf(const kernels::PackedLinear& matrix) {
    at::Tensor rows = at::empty({matrix.n(), matrix.k()}, at::kFloat);
    kernels::EmbeddingOut(at::arange(matrix.n(), at::kInt), matrix, rows);
    return rows;
  }

  // The projections that beacons have in layer `index`, their own or the ordinary ones.
  static at::Tensor Projections(const model::ModelWeights& weights, int64_t index) {
    const auto& own = weights.beacon.layers[index].qkv;
    return RowsOf(own.has_value() ? *own : weights.layers[index].qkv);
  }

  at::Tensor Stacked(const BeaconGolden& golden, const std::string& prefix, const char* part) {
    std::vector<at::Tensor> parts;
    for (const char* letter : {"q", "k", "v"}) {
      parts.push_back(golden.Tensor(prefix + letter + "_proj." + part));
    }
    return at::cat(parts);
  }

  const BeaconGolden golden_;
  const BeaconGolden base_;
  const TempFolder folder_;
};

TEST_P(BeaconLoadGoldenTest, MissingBeaconWeightsAreTheBases) {
  const auto weights =
      LoadWithout([](const std::string& name) { return name.find("beacon") != std::string::npos; });
  ASSERT_TRUE(weights.ok()) << weights.status();
  EXPECT_FALSE(weights->beacon.is_trained);
  EXPECT_TRUE(
      at::equal(weights->beacon.embedding, golden_.Tensor("model.beacon_embed_tokens.weight")));
  const std::string layer = "model.layers.0.self_attn.beacon_";
  EXPECT_TRUE(at::equal(Projections(*weights, 0), Stacked(golden_, layer, "weight")));
  if (golden_.Has(layer + "q_proj.bias")) {
    const auto& own = weights->beacon.layers[0].qkv_bias;
    EXPECT_TRUE(at::equal(own.has_value() ? *own : *weights->layers[0].qkv_bias,
                          Stacked(golden_, layer, "bias")));
  }
}

TEST_P(BeaconLoadGoldenTest, AKindThatLacksOneTensorIsTheBasesInAllLayers) {
  const auto weights = LoadWithout([](const std::string& name) {
    return name == "model.layers.1.self_attn.beacon_k_proj.weight";
  });
  ASSERT_TRUE(weights.ok()) << weights.status();
  EXPECT_TRUE(weights->beacon.is_trained);
  EXPECT_TRUE(
      at::equal(weights->beacon.embedding, base_.Tensor("model.beacon_embed_tokens.weight")));
  for (int64_t i = 0; i < 3; ++i) {
    const std::string layer = "model.layers." + std::to_string(i) + ".self_attn.";
    EXPECT_TRUE(at::equal(Projections(*weights, i),
                          at::cat({base_.Tensor(layer + "beacon_q_proj.weight"),
                                   base_.Tensor(layer + "k_proj.weight"),
                                   base_.Tensor(layer + "beacon_v_proj.weight")})));
  }
}

INSTANTIATE_TEST_SUITE_P(Files, BeaconLoadGoldenTest, ::testing::ValuesIn(BeaconFileNames("init_")),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace mneme::testing
