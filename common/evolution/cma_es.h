// The evolution strategy that NAMM is trained with: CMA-ES with full covariance and weights of the
// worse members below zero (Hansen 2016, arXiv 1604.00772), with the constants and the order of
// steps of the published trainer (Cetin et al. 2024, arXiv 2410.13166). It maximises.
//
//   ASSIGN_OR_RETURN(CmaEs strategy, CmaEs::Create(first_mean, options));
//   for (…) {
//     ASSIGN_OR_RETURN(const CmaEs::Sample sample, strategy.Decompose());
//     const CmaEs::Members members = strategy.Draw(sample, normal);       // normal: [lambda, n]
//     RETURN_IF_ERROR(strategy.Tell(sample, members.y, fitness));         // fitness of members.x
//   }
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"

namespace mneme::evolution {

struct CmaOptions {
  int64_t population = 32;   // lambda, at least 2
  double elite_ratio = 0.5;  // of the population, in (0, 1]
  double initial_sigma = 0.065;
  // Instead of what follows from dimension and population.
  std::optional<double> c_1, c_mu, c_sigma, d_sigma, c_c, c_m;
  // The published trainer adds 1e-6 to every entry of the first generation's covariance.
  bool shifts_first_generation = true;
};

// What follows from dimension and population.
struct CmaConstants {
  std::vector<double> weights;  // of the members, best first; those of the worse half are negative
  std::vector<double> elite_weights;  // the same for the elite, 0 beyond it
  double mu_eff = 0;
  double c_1 = 0;
  double c_mu = 0;
  double c_sigma = 0;
  double d_sigma = 0;
  double c_c = 0;
  double c_m = 1;
  double normal_length = 0;  // chi, expected length of a standard normal vector
};

// INVALID_ARGUMENT, naming the field: an option out of range, or no dimension.
absl::StatusOr<CmaConstants> MakeCmaConstants(int64_t dimension, const CmaOptions& options);

// Everything that goes on from generation to generation. Tensors are float32.
struct CmaState {
  int64_t generation = 0;
  at::Tensor mean;  // [n]
  double sigma = 0;
  at::Tensor covariance;   // [n, n]
  at::Tensor path_c;       // [n]
  at::Tensor path_sigma;   // [n]
  at::Tensor best_member;  // [n], of a noisy fitness: it is never evaluated again
  double best_fitness = 0;
};

// Not thread-safe. Randomness is the caller's, so that a run can be repeated and resumed exactly.
class CmaEs {
 public:
  // Starts from a mean [n]. Codes as MakeCmaConstants.
  static absl::StatusOr<CmaEs> Create(const at::Tensor& mean, const CmaOptions& options);
  // Goes on from a state. INVALID_ARGUMENT: its tensors don't fit each other.
  static absl::StatusOr<CmaEs> Resume(CmaState state, const CmaOptions& options);

  const CmaState& state() const { return state_; }
  const CmaConstants& constants() const { return constants_; }
  int64_t dimension() const { return state_.mean.size(0); }

  // The covariance that a generation is drawn from, taken apart: covariance = B diag(D^2) B^T.
  struct Sample {
    at::Tensor covariance;  // [n, n], symmetric
    at::Tensor directions;  // B [n, n], eigenvectors in columns
    at::Tensor deviations;  // D [n], square roots of the eigenvalues, ascending
  };
  // Costs O(n^3). INTERNAL: the eigenvalues don't converge.
  absl::StatusOr<Sample> Decompose() const;

  struct Members {
    at::Tensor y;  // [lambda, n], (x - mean) / sigma
    at::Tensor x;  // [lambda, n], the members
  };
  // Makes members of standard normal numbers [lambda, n].
  Members Draw(const Sample& sample, const at::Tensor& normal) const;

  // Takes the fitness [lambda] of the members that y [lambda, n] made, and moves to the next
  // generation. INVALID_ARGUMENT: wrong shapes, or a fitness that is no number; nothing has
  // changed.
  absl::Status Tell(const Sample& sample, const at::Tensor& y, const at::Tensor& fitness);

 private:
  CmaEs(CmaState state, CmaConstants constants, const CmaOptions& options)
      : state_(std::move(state)), constants_(std::move(constants)), options_(options) {}

  CmaState state_;
  CmaConstants constants_;
  CmaOptions options_;
};

}  // namespace mneme::evolution
