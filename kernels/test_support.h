// What the operators' tests share: random inputs with a fixed seed, weights as a file holds them,
// and the settings (instruction set, threads) under which every test runs.
#pragma once

#include <ATen/Functions.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "kernels/cpu_features.h"
#include "kernels/parallel.h"
#include "kernels/weight_type.h"

namespace mneme::kernels::testing {

inline constexpr WeightType kAllTypes[] = {WeightType::kF32,  WeightType::kF16,  WeightType::kBF16,
                                           WeightType::kQ8_0, WeightType::kQ4_0, WeightType::kQ4_1,
                                           WeightType::kQ5_0, WeightType::kQ5_1, WeightType::kQ4K,
                                           WeightType::kQ5K,  WeightType::kQ6K};

// Puts the instruction set and the thread count back when it goes.
class Settings {
 public:
  Settings() : variant_(CurrentVariant()), threads_(NumThreads()) {}
  ~Settings() {
    SetVariant(variant_);
    SetNumThreads(threads_);
  }
  Settings(const Settings&) = delete;
  Settings& operator=(const Settings&) = delete;

 private:
  Variant variant_;
  int threads_;
};

inline at::Tensor RandomFloats(std::mt19937& random, std::vector<int64_t> sizes) {
  at::Tensor result = at::empty(sizes, at::kFloat);
  std::normal_distribution<float> normal;
  auto* p = result.mutable_data_ptr<float>();
  for (int64_t i = 0; i < result.numel(); ++i) p[i] = normal(random);
  return result;
}

// Returns `rows` rows of random weights of about unit size, as they lie in a file: uint8 [bytes].
inline at::Tensor RandomWeight(std::mt19937& random, WeightType type, int64_t rows, int64_t k) {
  const int64_t row_bytes = RowBytes(type, k);
  at::Tensor result = at::empty({rows * row_bytes}, at::kByte);
  auto* p = result.mutable_data_ptr<uint8_t>();
  for (int64_t i = 0; i < result.numel(); ++i) p[i] = static_cast<uint8_t>(random());
  std::uniform_real_distribution<float> uniform(0.5f, 1.5f);
  const auto put_half = [&](uint8_t* at, float value) {
    const c10::Half half(value);
    std::memcpy(at, &half, 2);
  };
  const int64_t block = BlockBytes(type);
  for (uint8_t* b = p; b < p + result.numel(); b += block) {
    const float sign = random() % 2 == 0 ? 1.0f : -1.0f;
    switch (type) {
      case WeightType::kF32: {
        const float value = uniform(random) * sign;
        std::memcpy(b, &value, 4);
        break;
      }
      case WeightType::kF16:
        put_half(b, uniform(random) * sign);
        break;
      case WeightType::kBF16: {
        const c10::BFloat16 value(uniform(random) * sign);
        std::memcpy(b, &value, 2);
        break;
      }
      case WeightType::kQ8_0:
        put_half(b, uniform(random) / 64 * sign);
        break;
      case WeightType::kQ4_0:
      case WeightType::kQ5_0:
        put_half(b, uniform(random) / 8 * sign);
        break;
      case WeightType::kQ4_1:
      case WeightType::kQ5_1:
        put_half(b, uniform(random) / 8);
        put_half(b + 2, -uniform(random));
        break;
      case WeightType::kQ4K:
      case WeightType::kQ5K:
        put_half(b, uniform(random) / 256);
        put_half(b + 2, uniform(random) / 32);
        break;
      case WeightType::kQ6K:
        put_half(b + 208, uniform(random) / 2048 * sign);
        break;
    }
  }
  return result;
}

inline bool BitwiseEqual(const at::Tensor& a, const at::Tensor& b) {
  const at::Tensor x = a.contiguous();
  const at::Tensor y = b.contiguous();
  return x.sizes() == y.sizes() &&
         std::memcmp(x.const_data_ptr(), y.const_data_ptr(), static_cast<size_t>(x.nbytes())) == 0;
}

}  // namespace mneme::kernels::testing
