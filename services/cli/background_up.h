// A `mneme up` that a command starts for itself and stops again.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "mneme/cli/v1/state.pb.h"
#include "services/cli/child_process.h"
#include "services/cli/interrupt.h"

namespace mneme::cli {

// Move-only; the destructor stops it and waits. Should this process be killed, the kernel asks it
// to stop.
class BackgroundUp {
 public:
  // Starts `mneme up` with these further arguments and waits until it is ready, passing on what it
  // says. CANCELLED: Ctrl-C came. Else the error it ended with was printed by itself.
  static absl::StatusOr<BackgroundUp> Start(const std::vector<std::string>& arguments,
                                            const Interrupt& interrupt);

  BackgroundUp(BackgroundUp&&) = default;
  BackgroundUp& operator=(BackgroundUp&&) = delete;
  ~BackgroundUp();

  const v1::UpState& state() const { return state_; }

 private:
  explicit BackgroundUp(ChildProcess child) : child_(std::move(child)) {}

  ChildProcess child_;
  v1::UpState state_;
};

}  // namespace mneme::cli
