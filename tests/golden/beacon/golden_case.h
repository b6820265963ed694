// The files of golden/beacon: numbers that the published implementation of Activation Beacon
// computes. Their format, cases and tolerances are described in the README.md beside them.
#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "common/memory/beacon_pass.h"
#include "common/weights/beacon_adapter.h"
#include "common/weights/model_config.h"
#include "common/weights/model_files.h"
#include "common/weights/safetensors.h"
#include "tests/support/temp_folder.h"

namespace mneme::testing {

std::filesystem::path BeaconGoldenFolder();
// Stems of the case files that are there, sorted: those whose metadata name their weights.
std::vector<std::string> BeaconCaseNames();
// Stems of the files that begin with `prefix`.
std::vector<std::string> BeaconFileNames(const std::string& prefix);

// One file of the folder.
class BeaconGolden {
 public:
  // Ends the process where the file is broken.
  explicit BeaconGolden(const std::string& name);

  const weights::SafetensorsFile& file() const { return *file_; }
  bool Has(const std::string& tensor) const { return file_->FindTensor(tensor) != nullptr; }
  at::Tensor Tensor(const std::string& name) const;  // a copy
  // Metadata: as text, "" where there is none, and as JSON.
  std::string Text(const std::string& key) const;
  nlohmann::json Json(const std::string& key) const { return nlohmann::json::parse(Text(key)); }

  // Of a case: how its sequences are compressed, as the published implementation does it.
  memory::BeaconSettings Settings() const;
  // Tokens of each forward call; a training case has one.
  std::vector<int64_t> Calls() const;
  bool is_training() const { return Text("mode") == "train"; }

 private:
  std::unique_ptr<weights::SafetensorsFile> file_;
};

// The model of a case, opened; the beacons' weights apart where their file holds nothing else.
struct BeaconGoldenModel {
  std::shared_ptr<const weights::ModelFiles> files;
  std::shared_ptr<const weights::BeaconAdapter> adapter;  // may be null
};
// Makes its folders in `folder`. Ends the process where a file is broken.
BeaconGoldenModel OpenModel(const BeaconGolden& golden, const TempFolder& folder);

// What a pass says about itself, in the words of the golden files.
nlohmann::json StepMetadata(const memory::BeaconPass& pass, int64_t index);
// int64 [c + q]
std::vector<int64_t> BeaconIndices(const memory::BeaconState& before,
                                   const memory::BeaconPass& pass);
// 1 where a row sees a column. uint8 [q, m + q]
at::Tensor Visible(const memory::BeaconPass& pass);
// Hides the columns of the pass that are padding: `mask` [n] is 0 there. Only for causal passes.
void HidePadding(const at::Tensor& mask, memory::BeaconPass* pass);

}  // namespace mneme::testing
