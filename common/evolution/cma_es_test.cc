#include "common/evolution/cma_es.h"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>

#include <cmath>
#include <functional>
#include <limits>
#include <random>
#include <span>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace mneme::evolution {
namespace {

using ::testing::HasSubstr;

at::Tensor Normal(int64_t rows, int64_t columns, std::mt19937& random) {
  std::normal_distribution<float> normal;
  at::Tensor tensor = at::empty({rows, columns}, at::kFloat);
  for (float& value : std::span(tensor.data_ptr<float>(), tensor.numel())) value = normal(random);
  return tensor;
}

// Runs generations with fitness -f(x).
void Minimise(CmaEs& strategy, int64_t population, int generations, std::mt19937& random,
              const std::function<at::Tensor(const at::Tensor& x)>& f) {
  for (int g = 0; g < generations; ++g) {
    const auto sample = strategy.Decompose();
    ASSERT_TRUE(sample.ok()) << sample.status();
    const CmaEs::Members members =
        strategy.Draw(*sample, Normal(population, strategy.dimension(), random));
    ASSERT_TRUE(strategy.Tell(*sample, members.y, -f(members.x)).ok());
  }
}

TEST(CmaEsTest, FindsTheMinimumOfAnIllConditionedEllipsoidAndOfRosenbrock) {
  std::mt19937 random(5);
  const at::Tensor scales = at::logspace(0, 4, 8, 10.0, at::kFloat);
  const CmaOptions options{.population = 16, .initial_sigma = 0.5};
  auto ellipsoid = CmaEs::Create(at::ones({8}), options);
  ASSERT_TRUE(ellipsoid.ok()) << ellipsoid.status();
  Minimise(*ellipsoid, 16, 400, random,
           [&](const at::Tensor& x) { return (x.square() * scales).sum(1); });
  EXPECT_LT(ellipsoid->state().mean.norm().item<float>(), 1e-3);
  EXPECT_GT(ellipsoid->state().best_fitness, -1e-4);
  auto rosenbrock = CmaEs::Create(at::zeros({4}), options);
  Minimise(*rosenbrock, 16, 500, random, [](const at::Tensor& x) {
    const at::Tensor a = x.narrow(1, 0, 3);
    const at::Tensor b = x.narrow(1, 1, 3);
    return (100 * (b - a.square()).square() + (1 - a).square()).sum(1);
  });
  EXPECT_LT((rosenbrock->state().mean - 1).abs().max().item<float>(), 1e-2);
}

TEST(CmaEsTest, GoesOnIdenticallyFromItsState) {
  std::mt19937 random(1);
  const CmaOptions options{.population = 8};
  const auto sphere = [](const at::Tensor& x) { return (x - 1).square().sum(1); };
  auto whole = CmaEs::Create(at::zeros({5}), options);
  Minimise(*whole, 8, 6, random, sphere);
  auto resumed = CmaEs::Resume(whole->state(), options);
  ASSERT_TRUE(resumed.ok()) << resumed.status();
  std::mt19937 same = random;
  Minimise(*whole, 8, 6, random, sphere);
  Minimise(*resumed, 8, 6, same, sphere);
  EXPECT_TRUE(at::equal(whole->state().mean, resumed->state().mean));
  EXPECT_TRUE(at::equal(whole->state().covariance, resumed->state().covariance));
  EXPECT_EQ(whole->state().sigma, resumed->state().sigma);
  EXPECT_EQ(whole->state().generation, 12);
}

TEST(CmaEsTest, WrongInputChangesNothing) {
  EXPECT_THAT(std::string(CmaEs::Create(at::zeros({3}), {.population = 1}).status().message()),
              HasSubstr("population"));
  EXPECT_THAT(std::string(CmaEs::Create(at::zeros({3}), {.elite_ratio = 0}).status().message()),
              HasSubstr("elite_ratio"));
  EXPECT_FALSE(CmaEs::Create(at::zeros({0}), {}).ok());
  EXPECT_FALSE(CmaEs::Create(at::zeros({3}), {.initial_sigma = std::nan("")}).ok());
  auto strategy = CmaEs::Create(at::zeros({3}), {.population = 4});
  ASSERT_TRUE(strategy.ok());
  const auto sample = strategy->Decompose();
  std::mt19937 random(1);
  const CmaEs::Members members = strategy->Draw(*sample, Normal(4, 3, random));
  EXPECT_FALSE(strategy->Tell(*sample, members.y, at::zeros({3})).ok());
  EXPECT_FALSE(strategy->Tell(*sample, members.y.t(), at::zeros({4})).ok());
  at::Tensor fitness = at::zeros({4});
  fitness[2] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_FALSE(strategy->Tell(*sample, members.y, fitness).ok());
  EXPECT_EQ(strategy->state().generation, 0);
  CmaState broken = strategy->state();
  broken.path_c = at::zeros({4});
  EXPECT_FALSE(CmaEs::Resume(broken, {.population = 4}).ok());
}

}  // namespace
}  // namespace mneme::evolution
