#include "common/evolution/cma_es.h"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/model/torch_status.h"
#include "common/status/annotate.h"
#include "common/status/status_macros.h"

namespace mneme::evolution {
namespace {

// The published constants do not follow larger dimensions.
constexpr int64_t kMaxDimension = 40'000;
constexpr double kShift = 1e-6;
constexpr double kLeastEigenvalue = 1e-20;

double Square(double x) { return x * x; }

at::Tensor Doubles(const std::vector<double>& values) { return at::tensor(values, at::kDouble); }

absl::Status CheckOptions(int64_t dimension, const CmaOptions& options) {
  if (dimension < 1) return status::InvalidField("mean", "needs at least one number");
  if (options.population < 2) {
    return status::InvalidField("population",
                                absl::StrCat("must be at least 2: ", options.population));
  }
  if (!(options.elite_ratio > 0 && options.elite_ratio <= 1)) {
    return status::InvalidField("elite_ratio",
                                absl::StrCat("must be over 0, at most 1: ", options.elite_ratio));
  }
  if (!(options.initial_sigma > 0) || std::isinf(options.initial_sigma)) {
    return status::InvalidField("initial_sigma",
                                absl::StrCat("must be over 0: ", options.initial_sigma));
  }
  return absl::OkStatus();
}

bool IsVector(const at::Tensor& tensor, int64_t size) {
  return tensor.defined() && tensor.dim() == 1 && tensor.size(0) == size;
}

}  // namespace

absl::StatusOr<CmaConstants> MakeCmaConstants(int64_t dimension, const CmaOptions& options) {
  RETURN_IF_ERROR(CheckOptions(dimension, options));
  const auto n = static_cast<double>(dimension);
  const auto clipped = static_cast<double>(std::min(dimension, kMaxDimension));
  const int64_t lambda = options.population;
  const int64_t mu = std::max<int64_t>(
      1, static_cast<int64_t>(std::floor(static_cast<double>(lambda) * options.elite_ratio)));
  CmaConstants constants;
  std::vector<double> raw;
  for (int64_t i = 1; i <= lambda; ++i) {
    raw.push_back(std::log((static_cast<double>(lambda) + 1) / 2) -
                  std::log(static_cast<double>(i)));
  }
  const auto effective = [&](int64_t begin, int64_t end) {
    double sum = 0;
    double squares = 0;
    for (int64_t i = begin; i < end; ++i) {
      sum += raw[i];
      squares += Square(raw[i]);
    }
    return squares > 0 ? Square(sum) / squares : 0;
  };
  constants.mu_eff = effective(0, mu);
  const double mu_eff = constants.mu_eff;
  const double mu_eff_worse = effective(mu, lambda);
  constants.c_1 = options.c_1.value_or(2 / (Square(clipped + 1.3) + mu_eff));
  constants.c_mu = options.c_mu.value_or(std::min(
      1 - constants.c_1 - 1e-8, 2 * (mu_eff - 2 + 1 / mu_eff) / (Square(clipped + 2) + mu_eff)));
  const double alpha =
      std::min({1 + constants.c_1 / constants.c_mu, 1 + 2 * mu_eff_worse / (mu_eff + 2),
                (1 - constants.c_1 - constants.c_mu) / (n * constants.c_mu)});
  double positive = 0;
  double negative = 0;
  for (const double weight : raw) (weight > 0 ? positive : negative) += weight;
  for (int64_t i = 0; i < lambda; ++i) {
    const double weight = raw[i] >= 0 ? raw[i] / positive : alpha * raw[i] / std::abs(negative);
    constants.weights.push_back(weight);
    constants.elite_weights.push_back(i < mu ? weight : 0);
  }
  constants.c_sigma = options.c_sigma.value_or((mu_eff + 2) / (n + mu_eff + 5));
  constants.d_sigma = options.d_sigma.value_or(
      1 + 2 * std::max(0.0, std::sqrt((mu_eff - 1) / (n + 1)) - 1) + constants.c_sigma);
  constants.c_c = options.c_c.value_or((4 + mu_eff / n) / (n + 4 + 2 * mu_eff / n));
  constants.c_m = options.c_m.value_or(1);
  constants.normal_length = std::sqrt(n) * (1 - 1 / (4 * n) + 1 / (21 * Square(clipped)));
  return constants;
}

absl::StatusOr<CmaEs> CmaEs::Create(const at::Tensor& mean, const CmaOptions& options) {
  const int64_t n = mean.defined() ? mean.numel() : 0;
  ASSIGN_OR_RETURN(CmaConstants constants, MakeCmaConstants(n, options));
  CmaState state;
  state.mean = mean.flatten().to(at::kFloat).clone();
  state.sigma = options.initial_sigma;
  state.covariance = at::eye(n, at::kFloat);
  state.path_c = at::zeros({n}, at::kFloat);
  state.path_sigma = at::zeros({n}, at::kFloat);
  state.best_member = state.mean.clone();
  state.best_fitness = std::numeric_limits<float>::lowest();
  return CmaEs(std::move(state), std::move(constants), options);
}

absl::StatusOr<CmaEs> CmaEs::Resume(CmaState state, const CmaOptions& options) {
  const int64_t n = state.mean.defined() ? state.mean.numel() : 0;
  ASSIGN_OR_RETURN(CmaConstants constants, MakeCmaConstants(n, options));
  const bool fits = IsVector(state.mean, n) && IsVector(state.path_c, n) &&
                    IsVector(state.path_sigma, n) && IsVector(state.best_member, n) &&
                    state.covariance.defined() && state.covariance.dim() == 2 &&
                    state.covariance.size(0) == n && state.covariance.size(1) == n;
  if (!fits || !(state.sigma > 0) || state.generation < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("the state of an evolution does not fit its mean of ", n, " numbers"));
  }
  return CmaEs(std::move(state), std::move(constants), options);
}

absl::StatusOr<CmaEs::Sample> CmaEs::Decompose() const {
  return CatchTorch("the eigenvectors of the covariance", [&] {
    at::Tensor covariance = state_.covariance;
    if (state_.generation == 0 && options_.shifts_first_generation) {
      covariance = covariance + kShift;
    }
    covariance = (covariance + covariance.t()) / 2;
    // In float64: at thousands of dimensions the small eigenvalues would be noise otherwise.
    auto [values, vectors] = at::linalg_eigh(covariance.to(at::kDouble));
    values = at::where(values > 0, values, at::full_like(values, kLeastEigenvalue));
    return Sample{.covariance = covariance,
                  .directions = vectors.to(at::kFloat),
                  .deviations = values.sqrt().to(at::kFloat)};
  });
}

CmaEs::Members CmaEs::Draw(const Sample& sample, const at::Tensor& normal) const {
  Members members;
  members.y = at::matmul(normal.to(at::kFloat) * sample.deviations, sample.directions.t());
  members.x = state_.mean + state_.sigma * members.y;
  return members;
}

absl::Status CmaEs::Tell(const Sample& sample, const at::Tensor& y, const at::Tensor& fitness) {
  const int64_t n = dimension();
  const int64_t lambda = options_.population;
  if (!y.defined() || y.dim() != 2 || y.size(0) != lambda || y.size(1) != n) {
    return absl::InvalidArgumentError(
        absl::StrCat("a generation has ", lambda, " members of ", n, " numbers"));
  }
  if (!IsVector(fitness, lambda) || at::isnan(fitness).any().item<bool>()) {
    return absl::InvalidArgumentError(
        absl::StrCat("every one of the ", lambda, " members needs a fitness that is a number"));
  }
  return CatchTorch("a generation", [&] {
    const CmaConstants& c = constants_;
    const auto [sorted_fitness, order] =
        at::sort(fitness.to(at::kDouble), /*stable=*/true, /*dim=*/0, /*descending=*/true);
    const at::Tensor sorted = y.index_select(0, order).to(at::kDouble);  // [lambda, n]
    const at::Tensor basis = sample.directions.to(at::kDouble);
    // R v = B diag(1/D) B^T v, for rows v.
    const auto whiten = [&](const at::Tensor& rows) {
      return at::matmul(at::matmul(rows, basis) / sample.deviations.to(at::kDouble), basis.t());
    };
    CmaState next = state_;
    next.generation = state_.generation + 1;

    const at::Tensor step = at::matmul(Doubles(c.elite_weights), sorted);  // y_w
    next.mean = (state_.mean.to(at::kDouble) + c.c_m * state_.sigma * step).to(at::kFloat);

    const at::Tensor path_sigma = (1 - c.c_sigma) * state_.path_sigma.to(at::kDouble) +
                                  std::sqrt(c.c_sigma * (2 - c.c_sigma) * c.mu_eff) * whiten(step);
    const double length = path_sigma.norm().item<double>();
    const double unbiased =
        length / std::sqrt(1 - std::pow(1 - c.c_sigma, 2.0 * static_cast<double>(next.generation)));
    const double h = unbiased < (1.4 + 2 / (static_cast<double>(n) + 1)) * c.normal_length ? 1 : 0;
    next.path_sigma = path_sigma.to(at::kFloat);

    const at::Tensor path_c = (1 - c.c_c) * state_.path_c.to(at::kDouble) +
                              h * std::sqrt(c.c_c * (2 - c.c_c) * c.mu_eff) * step;
    next.path_c = path_c.to(at::kFloat);

    // Members worse than most push the covariance away from them, all by the same length.
    const at::Tensor weights = Doubles(c.weights);
    const at::Tensor lengths = whiten(sorted).square().sum(1);
    const at::Tensor balanced =
        at::where(weights > 0, weights, weights * static_cast<double>(n) / (lengths + 1e-20));
    const double keep =
        1 + c.c_1 * (1 - h) * c.c_c * (2 - c.c_c) - c.c_1 - c.c_mu * weights.sum().item<double>();
    const at::Tensor towards = at::matmul((sorted * balanced.unsqueeze(1)).t(), sorted);
    next.covariance = (keep * state_.covariance.to(at::kDouble) +
                       c.c_1 * at::outer(path_c, path_c) + c.c_mu * towards)
                          .to(at::kFloat);
    next.sigma = state_.sigma * std::exp(c.c_sigma / c.d_sigma * (length / c.normal_length - 1));

    if (const double best = sorted_fitness[0].item<double>(); best > state_.best_fitness) {
      next.best_fitness = best;
      next.best_member = (state_.mean + state_.sigma * y[order[0].item<int64_t>()]).to(at::kFloat);
    }
    state_ = std::move(next);
  });
}

}  // namespace mneme::evolution
