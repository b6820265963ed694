#include "tests/golden/namm/golden_file.h"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "tests/golden/golden_folder.h"

namespace mneme::testing {
namespace {

at::ScalarType TypeOf(weights::TensorType type) {
  switch (type) {
    case weights::TensorType::kF64:
      return at::kDouble;
    case weights::TensorType::kI64:
      return at::kLong;
    case weights::TensorType::kBool:
      return at::kBool;
    default:
      return at::kFloat;
  }
}

// Without leading dimensions of size 1.
at::Tensor Plain(at::Tensor tensor) {
  while (tensor.dim() > 0 && tensor.size(0) == 1) tensor = tensor.squeeze(0);
  return tensor;
}

}  // namespace

std::string NammGoldenFolder() { return GoldenFolder("namm").string(); }

GoldenFile::GoldenFile(const std::string& path) {
  auto file = weights::SafetensorsFile::Open(path);
  if (!file.ok()) {
    ADD_FAILURE() << file.status();
    return;
  }
  file_ = *std::move(file);
  config_ = nlohmann::json::parse(file_->metadata().at("config"));
}

std::vector<std::string> GoldenFile::Names(const std::string& prefix) const {
  std::vector<std::string> names;
  for (const weights::TensorView& tensor : file_->tensors()) {
    if (absl::StartsWith(tensor.name, prefix)) names.push_back(tensor.name);
  }
  return names;
}

at::Tensor GoldenFile::operator[](const std::string& name) const {
  const weights::TensorView* const view = file_->FindTensor(name);
  if (view == nullptr) {
    ADD_FAILURE() << "the file has no tensor " << name;
    return at::empty({0});
  }
  at::Tensor tensor = at::empty(view->shape, TypeOf(view->type));
  if (static_cast<uint64_t>(tensor.nbytes()) != view->size_bytes) {
    ADD_FAILURE() << "a type that these tests don't know: " << view->Describe();
    return tensor;
  }
  if (view->size_bytes > 0) std::memcpy(tensor.data_ptr(), view->data, view->size_bytes);
  return tensor;
}

std::vector<float> GoldenFile::Floats(const std::string& name) const {
  const at::Tensor tensor = (*this)[name].to(at::kFloat).contiguous();
  const float* const data = tensor.const_data_ptr<float>();
  return {data, data + tensor.numel()};
}

int64_t GoldenFile::Count(const std::string& prefix) const {
  int64_t count = 0;
  while (!Names(absl::StrCat(prefix, count, ".")).empty()) ++count;
  return count;
}

void GoldenFile::ExpectNear(const std::string& name, const at::Tensor& actual,
                            double tolerance) const {
  const at::Tensor expected = Plain((*this)[name]).to(at::kDouble);
  const at::Tensor plain = Plain(actual).to(at::kDouble);
  ASSERT_EQ(plain.sizes(), expected.sizes()) << name;
  if (expected.numel() == 0) return;
  const double bound = tolerance * std::max(1.0, expected.abs().max().item<double>());
  const double difference = (plain - expected).abs().max().item<double>();
  // Written so that NaN fails.
  EXPECT_TRUE(difference <= bound) << name << " differs by " << difference << ", at most " << bound;
}

void GoldenFile::ExpectEqual(const std::string& name, const at::Tensor& actual) const {
  const at::Tensor expected = Plain((*this)[name]).to(at::kLong);
  const at::Tensor plain = Plain(actual).to(at::kLong);
  ASSERT_EQ(plain.sizes(), expected.sizes()) << name;
  EXPECT_TRUE(at::equal(plain, expected)) << name;
}

}  // namespace mneme::testing
