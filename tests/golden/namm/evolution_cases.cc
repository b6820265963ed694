// The evolution strategy against the reference: its constants, and runs that are replayed with the
// reference's own draws; and how scores become a fitness.
#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/evolution/cma_es.h"
#include "common/evolution/fitness.h"
#include "tests/golden/namm/namm_cases.h"

namespace mneme::testing {
namespace {

constexpr double kTolerance = 1e-5;
// The reference computes these two in float32.
constexpr double kRateTolerance = 1e-3;

at::Tensor ToTensor(const std::vector<double>& values) { return at::tensor(values, at::kDouble); }

double Scalar(const GoldenFile& golden, const std::string& name) {
  return golden[name].to(at::kDouble).item<double>();
}

void ExpectConstants(const GoldenFile& golden, const std::string& prefix,
                     const evolution::CmaConstants& constants) {
  golden.ExpectNear(prefix + "weights", ToTensor(constants.weights), kTolerance);
  golden.ExpectNear(prefix + "weights_truncated", ToTensor(constants.elite_weights), kTolerance);
  golden.ExpectNear(prefix + "mu_eff", at::scalar_tensor(constants.mu_eff), kTolerance);
  golden.ExpectNear(prefix + "c_sigma", at::scalar_tensor(constants.c_sigma), kTolerance);
  golden.ExpectNear(prefix + "d_sigma", at::scalar_tensor(constants.d_sigma), kTolerance);
  golden.ExpectNear(prefix + "c_c", at::scalar_tensor(constants.c_c), kTolerance);
  golden.ExpectNear(prefix + "expected_normal_mag_f64",
                    at::scalar_tensor(constants.normal_length, at::kDouble), kTolerance);
  for (const auto& [name, value] :
       {std::pair("c_1", constants.c_1), std::pair("c_mu", constants.c_mu)}) {
    const double expected = Scalar(golden, prefix + name);
    EXPECT_NEAR(value, expected, kRateTolerance * std::abs(expected)) << prefix << name;
  }
}

evolution::CmaOptions OptionsOf(const nlohmann::json& config) {
  evolution::CmaOptions options;
  options.population = config["pop_size"].get<int64_t>();
  options.elite_ratio = config["elite_ratio"].get<double>();
  options.initial_sigma = config["init_sigma"].get<double>();
  options.c_m = config["c_m"].get<double>();
  options.shifts_first_generation = config.value("shift_first_gen", true);
  return options;
}

}  // namespace

void CheckEvolutionConstants(const GoldenFile& golden) {
  for (const nlohmann::json& entry : golden.config()["cases"]) {
    const std::string prefix = entry["prefix"];
    SCOPED_TRACE(prefix);
    const auto constants =
        evolution::MakeCmaConstants(entry["param_size"].get<int64_t>(), OptionsOf(entry));
    ASSERT_TRUE(constants.ok()) << constants.status();
    ExpectConstants(golden, prefix, *constants);
  }
}

void CheckEvolutionRun(const GoldenFile& golden) {
  auto strategy =
      evolution::CmaEs::Create(golden["init_mean"].to(at::kFloat), OptionsOf(golden.config()));
  ASSERT_TRUE(strategy.ok()) << strategy.status();
  ExpectConstants(golden, "", strategy->constants());
  const int64_t generations = golden.Integer("generations");
  const auto expect_state = [&](int64_t s) {
    const std::string prefix = absl::StrCat("s", s, ".");
    SCOPED_TRACE(prefix);
    const evolution::CmaState& state = strategy->state();
    EXPECT_EQ(state.generation, static_cast<int64_t>(Scalar(golden, prefix + "g")));
    golden.ExpectNear(prefix + "mean", state.mean, kTolerance);
    golden.ExpectNear(prefix + "sigma", at::scalar_tensor(state.sigma), kTolerance);
    golden.ExpectNear(prefix + "C", state.covariance, kTolerance);
    golden.ExpectNear(prefix + "evo_path_c", state.path_c, kTolerance);
    golden.ExpectNear(prefix + "evo_path_sigma", state.path_sigma, kTolerance);
    golden.ExpectNear(prefix + "best_member", state.best_member, kTolerance);
    if (s > 0) {
      golden.ExpectNear(prefix + "best_fitness", at::scalar_tensor(state.best_fitness), kTolerance);
      const bool takes_mean = golden.config()["prefer_mean_to_best"];
      golden.ExpectNear(prefix + "best_params", takes_mean ? state.mean : state.best_member,
                        kTolerance);
    }
  };
  expect_state(0);
  for (int64_t g = 0; g < generations; ++g) {
    const std::string prefix = absl::StrCat("g", g, ".");
    SCOPED_TRACE(prefix);
    const auto sample = strategy->Decompose();
    ASSERT_TRUE(sample.ok()) << sample.status();
    golden.ExpectNear(prefix + "sample_C", sample->covariance, kTolerance);
    // Signs and, among equals, the order of eigenvectors are free: what they make is not.
    golden.ExpectNear(prefix + "sample_D", sample->deviations, kTolerance);
    const at::Tensor made =
        at::matmul(sample->directions * sample->deviations.square(), sample->directions.t());
    golden.ExpectNear(prefix + "sample_C", made, kTolerance);
    const at::Tensor y = golden[prefix + "y"];
    golden.ExpectNear(prefix + "x", strategy->state().mean + strategy->state().sigma * y,
                      kTolerance);
    const absl::Status told = strategy->Tell(*sample, y, golden[prefix + "fitness"]);
    ASSERT_TRUE(told.ok()) << told;
    expect_state(g + 1);
  }
}

TEST(NammFitnessGoldenTest, FitnessAggregationEqualsTheReference) {
  std::ifstream file(NammGoldenFolder() + "/fitness_aggregation.json");
  const nlohmann::json golden = nlohmann::json::parse(file, nullptr, /*allow_exceptions=*/false);
  ASSERT_FALSE(golden.is_discarded()) << "fitness_aggregation.json is missing; set MNEME_GOLDEN";
  evolution::BaseScores base;
  for (const auto& [task, scores] : golden["reference"].items()) {
    for (const auto& [request, score] : scores.items()) base[task][std::stoll(request)] = score;
  }
  ASSERT_FALSE(golden["cases"].empty());
  for (const nlohmann::json& entry : golden["cases"]) {
    SCOPED_TRACE(entry.dump());
    std::map<std::string, evolution::TaskScore> scores;
    for (const auto& [task, score] : entry["scores"].items()) {
      scores[task].score = score;
      if (entry.contains("sample_idxs") && entry["sample_idxs"].is_object() &&
          entry["sample_idxs"].contains(task)) {
        scores[task].requests = entry["sample_idxs"][task].get<std::vector<int64_t>>();
      }
    }
    const auto expect = [](const nlohmann::json& expected, const auto& fitness) {
      ASSERT_TRUE(fitness.ok()) << fitness.status();
      EXPECT_NEAR(fitness->fitness, expected["score"].template get<double>(), 1e-9);
      for (const auto& [task, value] : expected["per_task"].items()) {
        EXPECT_NEAR(fitness->by_task.at(task), value.template get<double>(), 1e-9) << task;
      }
    };
    expect(entry["normalised"], evolution::NormalisedFitness(scores, base));
    expect(entry["unnormalised"], evolution::UnnormalisedFitness(scores));
  }
}

}  // namespace mneme::testing
