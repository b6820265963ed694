// rms_norm, silu_mul and rotary.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "kernels/rms_norm.h"
#include "kernels/rotary.h"
#include "kernels/silu_mul.h"
#include "kernels/test_support.h"

namespace mneme::kernels {
namespace {

using ::mneme::kernels::testing::BitwiseEqual;
using ::mneme::kernels::testing::RandomFloats;
using ::testing::HasSubstr;

class ElementwiseTest : public ::testing::TestWithParam<Variant> {
 protected:
  void SetUp() override {
    if (!SetVariant(GetParam())) {
      GTEST_SKIP() << "this processor has no " << VariantName(GetParam());
    }
  }

  const testing::Settings settings_;
  std::mt19937 random_{20261121};
};

template <typename Body>
std::string MessageOf(const Body& body) {
  try {
    body();
  } catch (const c10::Error& error) {
    return error.what_without_backtrace();
  }
  return "no error";
}

TEST_P(ElementwiseTest, RmsNormMatchesFormulaForAnyBatch) {
  for (const int64_t width : {1, 7, 64, 576, 1000}) {
    const at::Tensor wide = RandomFloats(random_, {40, width + 3});
    const at::Tensor x = wide.narrow(1, 1, width);
    const at::Tensor weight = RandomFloats(random_, {width});
    const at::Tensor out = at::empty({40, width}, at::kFloat);
    RmsNormOut(x, weight, 1e-5, out);
    const at::Tensor wide_x = x.to(at::kDouble);
    const at::Tensor expected =
        wide_x.mul(wide_x.square().mean(1, true).add(1e-5).rsqrt()).mul(weight.to(at::kDouble));
    EXPECT_LT(out.sub(expected).abs().max().item<double>(), 2e-6) << width;
    SetNumThreads(3);
    for (int64_t r = 0; r < 40; ++r) {
      const at::Tensor one = at::empty({1, width}, at::kFloat);
      RmsNormOut(x.narrow(0, r, 1), weight, 1e-5, one);
      ASSERT_TRUE(BitwiseEqual(one, out.narrow(0, r, 1)));
    }
    const at::Tensor in_place = x.clone();
    RmsNormOut(in_place, weight, 1e-5, in_place);
    EXPECT_TRUE(BitwiseEqual(in_place, out));
  }
}

TEST_P(ElementwiseTest, SiluMulMatchesFormula) {
  const at::Tensor both = RandomFloats(random_, {20, 2 * 37}).mul_(5);
  both.select(0, 0).fill_(-200);
  both.select(0, 1).fill_(200);
  const at::Tensor gate = both.narrow(1, 0, 37);
  const at::Tensor up = both.narrow(1, 37, 37);
  const at::Tensor out = at::empty({20, 37}, at::kFloat);
  SiluMulOut(gate, up, out);
  const at::Tensor g = gate.to(at::kDouble);
  const at::Tensor expected = g.div(g.neg().exp().add(1)).mul(up.to(at::kDouble));
  EXPECT_LT(
      out.sub(expected).abs().div(expected.abs().add(1e-20)).narrow(0, 1, 19).max().item<double>(),
      1e-6);
  EXPECT_LT(out.select(0, 0).abs().max().item<float>(), 1e-30f);
}

TEST_P(ElementwiseTest, RotaryTurnsByExactAnglesFarOut) {
  const at::Tensor positions = at::empty({4}, at::kLong);
  auto* p = positions.mutable_data_ptr<int64_t>();
  p[0] = 0;
  p[1] = 1;
  p[2] = 4095;
  p[3] = 7654321;
  const at::Tensor inv_freq =
      at::pow(10000.0, at::arange(0, 16, at::kDouble).div(-16.0)).contiguous();
  const at::Tensor cos = at::empty({4, 16}, at::kFloat);
  const at::Tensor sin = at::empty({4, 16}, at::kFloat);
  RotaryTableOut(positions, inv_freq, 1.5, cos, sin);
  const at::Tensor angle = at::outer(positions.to(at::kDouble), inv_freq);
  EXPECT_LT(cos.sub(angle.cos().mul(1.5)).abs().max().item<double>(), 1e-7);
  EXPECT_LT(sin.sub(angle.sin().mul(1.5)).abs().max().item<double>(), 1e-7);
  const at::Tensor narrow_cos = at::empty({4, 16}, at::kFloat);
  const at::Tensor narrow_sin = at::empty({4, 16}, at::kFloat);
  RotaryTableOut(positions.to(at::kInt), inv_freq, 1.5, narrow_cos, narrow_sin);
  EXPECT_TRUE(BitwiseEqual(cos, narrow_cos));
  EXPECT_TRUE(BitwiseEqual(sin, narrow_sin));
}

TEST_P(ElementwiseTest, RotaryMatchesFormulaAndLeavesTheRest) {
  for (const int64_t head_size : {32, 48}) {
    const at::Tensor wide = RandomFloats(random_, {6, 5, head_size});
    const at::Tensor x = wide.narrow(1, 1, 3);
    const at::Tensor cos = RandomFloats(random_, {6, 16});
    const at::Tensor sin = RandomFloats(random_, {6, 16});
    const at::Tensor a = x.narrow(2, 0, 16);
    const at::Tensor b = x.narrow(2, 16, 16);
    const at::Tensor c = cos.unsqueeze(1);
    const at::Tensor s = sin.unsqueeze(1);
    const at::Tensor expected = at::cat(
        {a.mul(c).sub(b.mul(s)), b.mul(c).add(a.mul(s)), x.narrow(2, 32, head_size - 32)}, 2);
    const at::Tensor out = at::empty({6, 3, head_size}, at::kFloat);
    RotaryOut(x, cos, sin, out);
    EXPECT_LT(out.sub(expected).abs().max().item<float>(), 1e-6f);
    RotaryOut(x, cos, sin, x);
    EXPECT_TRUE(BitwiseEqual(x, out));
  }
}

TEST_P(ElementwiseTest, WrongArgumentsAreRefused) {
  const at::Tensor x = at::zeros({2, 8});
  EXPECT_THAT(MessageOf([&] { RmsNormOut(x, at::zeros({7}), 1e-5, x); }),
              HasSubstr("rms_norm: weight must have size 8"));
  EXPECT_THAT(MessageOf([&] { RmsNormOut(x.to(at::kHalf), at::zeros({8}), 1e-5, x); }),
              HasSubstr("x must be Float"));
  EXPECT_THAT(MessageOf([&] {
                SiluMulOut(x, at::zeros({2, 7}), x);
              }),
              HasSubstr("silu_mul: up must have size 8"));
  const at::Tensor heads = at::zeros({2, 1, 8});
  EXPECT_THAT(MessageOf([&] {
                RotaryOut(heads, at::zeros({2, 5}), at::zeros({2, 5}), heads);
              }),
              HasSubstr("the table turns 10"));
  EXPECT_THAT(MessageOf([&] {
                RotaryOut(heads, at::zeros({3, 4}), at::zeros({3, 4}), heads);
              }),
              HasSubstr("cos must have size 2"));
  EXPECT_THAT(MessageOf([&] {
                RotaryTableOut(at::zeros({2}, at::kShort), at::zeros({4}, at::kDouble), 1.0,
                               at::zeros({2, 4}), at::zeros({2, 4}));
              }),
              HasSubstr("positions must be Long"));
}

INSTANTIATE_TEST_SUITE_P(Variants, ElementwiseTest,
                         ::testing::Values(Variant::kPortable, Variant::kAvx2, Variant::kAvx512Vnni,
                                           Variant::kAmx),
                         [](const auto& info) { return VariantName(info.param); });

}  // namespace
}  // namespace mneme::kernels
