#include "tests/golden/beacon/golden_case.h"

#include <ATen/Functions.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iostream>

#include "tests/golden/golden_folder.h"

namespace mneme::testing {
namespace {

namespace fs = std::filesystem;
using memory::BeaconPass;
using memory::BeaconRowKind;
using nlohmann::json;
using weights::SafetensorsFile;

at::ScalarType TypeOf(weights::TensorType type) {
  switch (type) {
    case weights::TensorType::kF32:
      return at::kFloat;
    case weights::TensorType::kI64:
      return at::kLong;
    case weights::TensorType::kU8:
      return at::kByte;
    default:
      std::cerr << "a golden tensor has an unexpected type\n";
      std::abort();
  }
}

}  // namespace

fs::path BeaconGoldenFolder() { return GoldenFolder("beacon"); }

std::vector<std::string> BeaconFileNames(const std::string& prefix) {
  std::vector<std::string> names;
  std::error_code error;
  for (fs::directory_iterator it(BeaconGoldenFolder(), error), end; !error && it != end;
       it.increment(error)) {
    const std::string name = it->path().stem().string();
    if (it->path().extension() == ".safetensors" && name.starts_with(prefix)) names.push_back(name);
  }
  std::sort(names.begin(), names.end());
  return names;
}

std::vector<std::string> BeaconCaseNames() {
  std::vector<std::string> names = BeaconFileNames("");
  std::erase_if(names,
                [](const std::string& name) { return BeaconGolden(name).Text("weights").empty(); });
  return names;
}

BeaconGolden::BeaconGolden(const std::string& name) {
  auto file = SafetensorsFile::Open((BeaconGoldenFolder() / (name + ".safetensors")).string());
  if (!file.ok()) {
    std::cerr << file.status() << "\n";
    std::abort();
  }
  file_ = *std::move(file);
}

at::Tensor BeaconGolden::Tensor(const std::string& name) const {
  const weights::TensorView* const view = file_->FindTensor(name);
  if (view == nullptr) {
    std::cerr << file_->path() << " has no tensor " << name << "\n";
    std::abort();
  }
  at::Tensor tensor = at::empty(view->shape, TypeOf(view->type));
  std::memcpy(tensor.mutable_data_ptr(), view->data, view->size_bytes);
  return tensor;
}

std::string BeaconGolden::Text(const std::string& key) const {
  const auto found = file_->metadata().find(key);
  return found == file_->metadata().end() ? "" : found->second;
}

memory::BeaconSettings BeaconGolden::Settings() const {
  const auto model = weights::ParseHuggingFaceConfig(Text("config"), "");
  if (!model.ok() || !model->beacon.has_value()) {
    std::cerr << file_->path() << ": " << model.status() << "\n";
    std::abort();
  }
  memory::BeaconSettings settings = memory::MakeBeaconSettings(*model, *model->beacon);
  settings.training = is_training();
  if (!Text("skip_first").empty()) settings.skip_first = std::stoll(Text("skip_first"));
  if (!Text("skip_last").empty()) settings.skip_last = std::stoll(Text("skip_last"));
  settings.overwrite_open_sink = true;
  settings.hide_first_states = true;
  return settings;
}

std::vector<int64_t> BeaconGolden::Calls() const {
  if (is_training()) return {file_->FindTensor("input_ids")->shape[1]};
  std::vector<int64_t> calls;
  for (const json& call : Json("calls")) calls.push_back(call["tokens"]);
  return calls;
}

BeaconGoldenModel OpenModel(const BeaconGolden& golden, const TempFolder& folder) {
  const auto make_folder = [&](const char* name, const std::string& weights) {
    const fs::path made = folder.File(name);
    fs::create_directory(made);
    std::ofstream(made / "config.json") << golden.Text("config");
    fs::create_symlink(fs::absolute(BeaconGoldenFolder() / (weights + ".safetensors")),
                       made / "model.safetensors");
    return made.string();
  };
  BeaconGoldenModel model;
  std::string base = golden.Text("weights");
  if (!BeaconGolden(base).Has("model.embed_tokens.weight")) {
    auto adapter = weights::BeaconAdapter::Open(make_folder("adapter", base));
    if (!adapter.ok()) {
      std::cerr << adapter.status() << "\n";
      std::abort();
    }
    model.adapter = *std::move(adapter);
    base = "weights_" + golden.Text("arch");
  }
  auto files = weights::ModelFiles::Open(make_folder("model", base));
  if (!files.ok()) {
    std::cerr << files.status() << "\n";
    std::abort();
  }
  model.files = *std::move(files);
  return model;
}

json StepMetadata(const BeaconPass& pass, int64_t index) {
  const memory::BeaconState& after = pass.after;
  return {{"step", index},
          {"new_len", pass.rows.size()},
          {"mem_len_before", pass.num_before},
          {"beacon_size", pass.ratio == 0 ? -1 : pass.num_beacons},
          {"is_full_window", pass.closes_window},
          {"sink_after", after.num_sink},
          {"beacon_after", after.num_beacons},
          {"raw_after", after.num_raw},
          {"start_after", after.start},
          {"end_after", after.end},
          {"remainder_after", after.remainder}};
}

std::vector<int64_t> BeaconIndices(const memory::BeaconState& before, const BeaconPass& pass) {
  std::vector<int64_t> indices;
  for (int64_t i = 0; i < before.num_raw; ++i) indices.push_back(IsOpenBeacon(before, i) ? 1 : 0);
  for (const memory::BeaconRow& row : pass.rows) indices.push_back(static_cast<int64_t>(row.kind));
  if (pass.closes_window && pass.ratio == 0) std::fill(indices.begin(), indices.end(), -1);
  return indices;
}

at::Tensor Visible(const BeaconPass& pass) {
  const auto rows = static_cast<int64_t>(pass.rows.size());
  at::Tensor visible = at::zeros({rows, pass.num_before + rows}, at::kByte);
  auto* cell = visible.mutable_data_ptr<uint8_t>();
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < pass.num_before + rows; ++c, ++cell) {
      const bool is_masked = !pass.visible.empty() && c >= pass.first_column;
      *cell = is_masked ? pass.visible[r * pass.num_columns() + c - pass.first_column]
                        : c <= pass.num_before + r;
    }
  }
  return visible;
}

void HidePadding(const at::Tensor& mask, BeaconPass* pass) {
  const auto rows = static_cast<int64_t>(pass->rows.size());
  pass->first_column = pass->num_before;
  pass->visible.assign(rows * rows, 0);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c <= r; ++c) {
      const memory::BeaconRow& row = pass->rows[c];
      pass->visible[r * rows + c] =
          row.kind != BeaconRowKind::kToken || mask[row.token].item<int64_t>() != 0;
    }
  }
}

}  // namespace mneme::testing
