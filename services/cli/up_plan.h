// Turns the settings of `mneme up` into services to supervise: finds the model and the programs,
// takes the ports, writes each service's configuration file.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "mneme/cli/v1/config.pb.h"
#include "mneme/cli/v1/state.pb.h"
#include "services/cli/data_folder.h"
#include "services/cli/held_port.h"
#include "services/cli/supervisor.h"

namespace mneme::cli {

inline constexpr int kDefaultHttpPort = 8080;
inline constexpr int kDefaultGrpcPort = 8081;

struct UpPlan {
  std::vector<ServiceSpec> services;
  std::vector<HeldPort> ports;  // to be kept as long as the services run
  v1::UpState state;            // addresses, model and logs; processes not yet
};

// `folder` has been created and its lock is held. Errors say what to do about them: a port that is
// taken, a model that is missing, a program that is not installed, a Redis that does not answer.
absl::StatusOr<UpPlan> PlanUp(const v1::UpConfig& config, const DataFolder& folder);

// Copies what the supervisor knows into the state.
void UpdateState(const std::vector<ServiceStatus>& statuses, v1::UpState* state);

}  // namespace mneme::cli
