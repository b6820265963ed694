#include "kernels/linear.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <tuple>

#include "kernels/silu_mul.h"
#include "kernels/test_support.h"

namespace mneme::kernels {
namespace {

using ::mneme::kernels::testing::BitwiseEqual;
using ::mneme::kernels::testing::kAllTypes;
using ::mneme::kernels::testing::RandomFloats;
using ::mneme::kernels::testing::RandomWeight;

PackedLinear Pack(WeightType type, const at::Tensor& data, int64_t rows, int64_t k) {
  return PackedLinear::Create({{type, rows, data, {}}}, k);
}

std::vector<float> Dequantized(WeightType type, const at::Tensor& data, int64_t rows, int64_t k) {
  std::vector<float> result(static_cast<size_t>(rows * k));
  for (int64_t r = 0; r < rows; ++r) {
    DequantizeRow(type, data.const_data_ptr<uint8_t>() + r * RowBytes(type, k), k,
                  result.data() + r * k);
  }
  return result;
}

// What Precision::kFast makes of an input row, by the definition in linear_kernels.h.
std::vector<double> Rounded(const float* x, int64_t k) {
  std::vector<double> result(static_cast<size_t>(k));
  for (int64_t b = 0; b < k; b += 32) {
    float max = 0;
    for (int64_t i = b; i < b + 32; ++i) max = std::max(max, std::fabs(x[i]));
    for (int64_t i = b; i < b + 32; ++i) {
      result[i] = max == 0 ? 0.0 : double{max / 127.0f} * std::nearbyint(x[i] * (127.0f / max));
    }
  }
  return result;
}

// Checks out against a product in double. Each output may be off by 2e-6 of the sum of the absolute
// products, which is what float32 sums of a few thousand terms may lose.
void ExpectNearReference(const at::Tensor& x, WeightType type, const at::Tensor& data, int64_t rows,
                         Precision precision, const at::Tensor& out) {
  const int64_t k = x.size(1);
  const std::vector<float> w = Dequantized(type, data, rows, k);
  const bool rounded = precision == Precision::kFast && BlockElements(type) > 1;
  for (int64_t m = 0; m < x.size(0); ++m) {
    const float* row = x.const_data_ptr<float>() + m * x.stride(0);
    const std::vector<double> inputs =
        rounded ? Rounded(row, k) : std::vector<double>(row, row + k);
    for (int64_t n = 0; n < rows; ++n) {
      double sum = 0;
      double size = 0;
      for (int64_t i = 0; i < k; ++i) {
        sum += inputs[i] * w[n * k + i];
        // Offsets are summed apart from the quants: both are about as large as the largest weight.
        size += std::fabs(inputs[i]) * (std::fabs(w[n * k + i]) + 1);
      }
      ASSERT_NEAR(out.const_data_ptr<float>()[m * out.stride(0) + n], sum, 2e-6 * size + 1e-30)
          << WeightTypeName(type) << " row " << m << " column " << n;
    }
  }
}

// Each test goes through all weight types and precisions.
class LinearTest : public ::testing::TestWithParam<Variant> {
 protected:
  void SetUp() override {
    if (!SetVariant(GetParam())) {
      GTEST_SKIP() << "this processor has no " << VariantName(GetParam());
    }
  }

  template <typename Body>
  void ForAll(const Body& body) {
    for (const WeightType type : kAllTypes) {
      for (const Precision precision : {Precision::kExact, Precision::kFast}) {
        SCOPED_TRACE(std::string(WeightTypeName(type)) +
                     (precision == Precision::kExact ? " exact" : " fast"));
        body(type, precision);
        if (HasFatalFailure()) return;
      }
    }
  }

  const testing::Settings settings_;
  std::mt19937 random_{20261121};
};

TEST_P(LinearTest, MatchesProductInDouble) {
  ForAll([&](WeightType type, Precision precision) {
    const int64_t unit = std::max<int64_t>(BlockElements(type), 1);
    for (const auto& [m, n, k] :
         std::vector<std::tuple<int64_t, int64_t, int64_t>>{{1, 16, unit},
                                                            {1, 5, 3 * unit},
                                                            {3, 33, 2 * unit},
                                                            {9, 64, 4 * unit},
                                                            {70, 17, unit}}) {
      const at::Tensor data = RandomWeight(random_, type, n, k);
      const at::Tensor x = RandomFloats(random_, {m, k});
      const at::Tensor out = at::full({m, n}, 99.0f);
      LinearOut(x, Pack(type, data, n, k), precision, out);
      ExpectNearReference(x, type, data, n, precision, out);
    }
  });
}

TEST_P(LinearTest, RowDoesNotDependOnTheRestOfTheCall) {
  ForAll([&](WeightType type, Precision precision) {
    constexpr int64_t kRows = 131;
    const int64_t n = 83;
    const int64_t k = BlockElements(type) == 1 ? 173 : 512;
    const PackedLinear weight = Pack(type, RandomWeight(random_, type, n, k), n, k);
    const at::Tensor x = RandomFloats(random_, {kRows, k});
    SetNumThreads(1);
    const at::Tensor expected = at::empty({kRows, n}, at::kFloat);
    for (int64_t r = 0; r < kRows; ++r) {
      LinearOut(x.narrow(0, r, 1), weight, precision, expected.narrow(0, r, 1));
    }
    for (int trial = 0; trial < 12; ++trial) {
      SetNumThreads(1 + trial % 4);
      const at::Tensor out = at::empty({kRows, n}, at::kFloat);
      for (int64_t r = 0; r < kRows;) {
        const int64_t longest = trial == 0 ? kRows : std::min<int64_t>(kRows - r, 70);
        const int64_t count = trial == 0 ? kRows : 1 + static_cast<int64_t>(random_() % longest);
        LinearOut(x.narrow(0, r, count), weight, precision, out.narrow(0, r, count));
        r += count;
      }
      ASSERT_TRUE(BitwiseEqual(out, expected)) << "trial " << trial;
    }
  });
}

TEST_P(LinearTest, AddsBiasAndAccumulates) {
  ForAll([&](WeightType type, Precision precision) {
    const int64_t n = 37;
    const int64_t k = 256;
    const PackedLinear weight = Pack(type, RandomWeight(random_, type, n, k), n, k);
    const at::Tensor x = RandomFloats(random_, {5, k});
    const at::Tensor bias = RandomFloats(random_, {n});
    const at::Tensor before = RandomFloats(random_, {5, n});
    const at::Tensor plain = at::empty({5, n}, at::kFloat);
    LinearOut(x, weight, precision, plain);
    const at::Tensor with_bias = at::empty({5, n}, at::kFloat);
    LinearOut(x, weight, precision, with_bias, bias);
    EXPECT_TRUE(BitwiseEqual(with_bias, plain.add(bias)));
    const at::Tensor both = before.clone();
    LinearOut(x, weight, precision, both, bias, /*accumulate=*/true);
    EXPECT_TRUE(BitwiseEqual(both, before.add(plain.add(bias))));
  });
}

TEST_P(LinearTest, FusedGateEqualsSeparateSteps) {
  ForAll([&](WeightType type, Precision precision) {
    const int64_t n = 45;
    const int64_t k = 256;
    const at::Tensor gate = RandomWeight(random_, type, n, k);
    const at::Tensor up = RandomWeight(random_, WeightType::kQ8_0, n, k);
    const PackedLinear weight =
        PackedLinear::Create({{type, n, gate, {}}, {WeightType::kQ8_0, n, up, {}}}, k);
    const at::Tensor x = RandomFloats(random_, {11, k}).mul_(0.1);
    const at::Tensor both = at::empty({11, 2 * n}, at::kFloat);
    LinearOut(x, weight, precision, both);
    const at::Tensor expected = at::empty({11, n}, at::kFloat);
    SiluMulOut(both.narrow(1, 0, n), both.narrow(1, n, n), expected);
    const at::Tensor actual = at::empty({11, n}, at::kFloat);
    LinearSiluMulOut(x, weight, precision, actual);
    EXPECT_TRUE(BitwiseEqual(actual, expected));
  });
}

TEST_P(LinearTest, EmbeddingIsExact) {
  ForAll([&](WeightType type, Precision) {
    const int64_t n = 50;
    const int64_t k = 512;
    const at::Tensor data = RandomWeight(random_, type, n, k);
    const PackedLinear weight = Pack(type, data, n, k);
    for (const at::ScalarType id_type : {at::kInt, at::kLong}) {
      const at::Tensor ids = at::arange(n, id_type);
      const at::Tensor out = at::empty({n, k}, at::kFloat);
      EmbeddingOut(ids, weight, out);
      const std::vector<float> expected = Dequantized(type, data, n, k);
      EXPECT_EQ(std::memcmp(out.const_data_ptr(), expected.data(), expected.size() * 4), 0);
    }
  });
}

INSTANTIATE_TEST_SUITE_P(Variants, LinearTest,
                         ::testing::Values(Variant::kPortable, Variant::kAvx2, Variant::kAvx512Vnni,
                                           Variant::kAmx),
                         [](const auto& info) { return VariantName(info.param); });

class LinearArgumentTest : public ::testing::Test {
 protected:
  std::mt19937 random_{7};
};

TEST_F(LinearArgumentTest, ConcatenatedMatricesEqualSeparateOnes) {
  const int64_t k = 256;
  std::vector<WeightRows> segments;
  std::vector<at::Tensor> parts;
  const at::Tensor x = RandomFloats(random_, {6, k});
  int64_t rows = 19;
  for (const WeightType type : {WeightType::kQ4_1, WeightType::kQ6K, WeightType::kF16}) {
    segments.push_back({type, rows, RandomWeight(random_, type, rows, k), {}});
    parts.push_back(at::empty({6, rows}, at::kFloat));
    LinearOut(x, PackedLinear::Create({segments.back()}, k), Precision::kFast, parts.back());
    rows += 13;
  }
  const PackedLinear weight = PackedLinear::Create(segments, k);
  const at::Tensor out = at::empty({6, weight.n()}, at::kFloat);
  LinearOut(x, weight, Precision::kFast, out);
  EXPECT_TRUE(BitwiseEqual(out, at::cat(parts, 1)));
}

TEST_F(LinearArgumentTest, RowOrderPermutesRows) {
  const int64_t k = 64;
  const at::Tensor order = at::arange(20, at::kLong).flip(0).contiguous();
  for (const WeightType type : {WeightType::kQ4_1, WeightType::kF32}) {
    const at::Tensor data = RandomWeight(random_, type, 20, k);
    const at::Tensor x = RandomFloats(random_, {2, k});
    const at::Tensor plain = at::empty({2, 20}, at::kFloat);
    LinearOut(x, Pack(type, data, 20, k), Precision::kExact, plain);
    const at::Tensor ordered = at::empty({2, 20}, at::kFloat);
    LinearOut(x, PackedLinear::Create({{type, 20, data, order}}, k), Precision::kExact, ordered);
    EXPECT_TRUE(BitwiseEqual(ordered, plain.flip(1)));
  }
}

TEST_F(LinearArgumentTest, StridedRowsEqualContiguousOnes) {
  const int64_t k = 96;
  const PackedLinear weight =
      Pack(WeightType::kQ4_1, RandomWeight(random_, WeightType::kQ4_1, 24, k), 24, k);
  const at::Tensor wide = RandomFloats(random_, {7, 3 * k});
  const at::Tensor x = wide.narrow(1, k, k);
  for (const Precision precision : {Precision::kExact, Precision::kFast}) {
    const at::Tensor expected = at::empty({7, 24}, at::kFloat);
    LinearOut(x.contiguous(), weight, precision, expected);
    const at::Tensor out = at::zeros({7, 100}, at::kFloat);
    LinearOut(x, weight, precision, out.narrow(1, 30, 24));
    EXPECT_TRUE(BitwiseEqual(out.narrow(1, 30, 24), expected));
    EXPECT_EQ(out.narrow(1, 0, 30).abs().sum().item<float>(), 0.0f);
    EXPECT_EQ(out.narrow(1, 54, 46).abs().sum().item<float>(), 0.0f);
  }
}

TEST_F(LinearArgumentTest, NoRowsIsNoWork) {
  const PackedLinear weight =
      Pack(WeightType::kQ4_1, RandomWeight(random_, WeightType::kQ4_1, 16, 32), 16, 32);
  LinearOut(at::empty({0, 32}, at::kFloat), weight, Precision::kFast,
            at::empty({0, 16}, at::kFloat));
  EmbeddingOut(at::empty({0}, at::kInt), weight, at::empty({0, 32}, at::kFloat));
}

TEST_F(LinearArgumentTest, PackedSizeIsAboutTheFileSize) {
  for (const WeightType type : kAllTypes) {
    const at::Tensor data = RandomWeight(random_, type, 64, 1024);
    EXPECT_LE(static_cast<double>(Pack(type, data, 64, 1024).num_bytes()),
              1.03 * static_cast<double>(data.numel()))
        << WeightTypeName(type);
  }
}

template <typename Body>
std::string MessageOf(const Body& body) {
  try {
    body();
  } catch (const c10::Error& error) {
    return error.what_without_backtrace();
  }
  return "no error";
}

TEST_F(LinearArgumentTest, WrongArgumentsAreRefused) {
  using ::testing::HasSubstr;
  const at::Tensor data = RandomWeight(random_, WeightType::kQ4_1, 16, 64);
  const PackedLinear weight = Pack(WeightType::kQ4_1, data, 16, 64);
  const at::Tensor out = at::empty({2, 16}, at::kFloat);
  const auto linear = [&](const at::Tensor& x, const at::Tensor& y) {
    return MessageOf([&] { LinearOut(x, weight, Precision::kFast, y); });
  };
  EXPECT_THAT(linear(at::zeros({2, 63}), out), HasSubstr("x must have size 64 in dimension 1"));
  EXPECT_THAT(linear(at::zeros({2, 64}, at::kDouble), out), HasSubstr("x must be Float"));
  EXPECT_THAT(linear(at::zeros({2, 64}), at::zeros({2, 17})), HasSubstr("out must have size 16"));
  EXPECT_THAT(linear(at::zeros({64, 2}).t(), out), HasSubstr("stride 1"));
  EXPECT_THAT(linear(at::Tensor(), out), HasSubstr("x is missing"));
  EXPECT_THAT(MessageOf([&] { Pack(WeightType::kQ4_1, data, 16, 60); }),
              HasSubstr("a row of Q4_1 weights must be a multiple of 32 long, not 60"));
  EXPECT_THAT(MessageOf([&] { Pack(WeightType::kQ4K, data, 16, 64); }),
              HasSubstr("multiple of 256"));
  EXPECT_THAT(MessageOf([&] { Pack(WeightType::kQ4_1, data, 17, 64); }),
              HasSubstr("needs 680 bytes"));
  EXPECT_THAT(MessageOf([&] { Pack(static_cast<WeightType>(77), data, 16, 64); }),
              HasSubstr("weight type"));
  EXPECT_THAT(
      MessageOf([&] {
        PackedLinear::Create({{WeightType::kQ4_1, 16, data, at::full({16}, 16, at::kLong)}}, 64);
      }),
      HasSubstr("row_order holds 16"));
  EXPECT_THAT(MessageOf([&] {
                EmbeddingOut(at::full({1}, 16, at::kInt), weight, at::empty({1, 64}, at::kFloat));
              }),
              HasSubstr("token id 16 is not one of 16"));
  EXPECT_THAT(MessageOf([&] {
                EmbeddingOut(at::full({1}, -1, at::kLong), weight, at::empty({1, 64}, at::kFloat));
              }),
              HasSubstr("token id -1"));
  EXPECT_THAT(MessageOf([&] {
                LinearSiluMulOut(at::zeros({2, 64}), weight, Precision::kFast, out);
              }),
              HasSubstr("two matrices of equal height"));
}

}  // namespace
}  // namespace mneme::kernels
