// One golden file: its tensors, its configuration, and comparisons at the tolerances of the set's
// README: |difference| <= tolerance * max(1, largest stored magnitude); whole numbers exactly.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "common/weights/safetensors.h"

namespace mneme::testing {

inline constexpr double kUnitTolerance = 1e-4;
inline constexpr double kEndToEndTolerance = 1e-3;

class GoldenFile {
 public:
  // Fails the running test where the file can't be read.
  explicit GoldenFile(const std::string& path);

  const nlohmann::json& config() const { return config_; }
  std::string kind() const { return config_["kind"]; }
  int64_t Integer(const char* field) const { return config_[field].get<int64_t>(); }
  double Number(const char* field) const { return config_[field].get<double>(); }

  bool Has(const std::string& name) const { return file_->FindTensor(name) != nullptr; }
  // Names of all tensors that begin with `prefix`.
  std::vector<std::string> Names(const std::string& prefix) const;
  // float32, float64, int64 or bool as stored; a failure and an empty tensor if it is missing.
  at::Tensor operator[](const std::string& name) const;
  std::vector<float> Floats(const std::string& name) const;

  // How many updates, chunks, layers, … the names count: the smallest number i from 0 on for which
  // no tensor begins with "<prefix>i.".
  int64_t Count(const std::string& prefix) const;

  // Compare with the stored tensor; shapes must agree but for dimensions of size 1 in front.
  void ExpectNear(const std::string& name, const at::Tensor& actual,
                  double tolerance = kUnitTolerance) const;
  void ExpectEqual(const std::string& name, const at::Tensor& actual) const;

 private:
  std::unique_ptr<weights::SafetensorsFile> file_;
  nlohmann::json config_;
};

// The folder of the golden set, $MNEME_GOLDEN/namm.
std::string NammGoldenFolder();

}  // namespace mneme::testing
