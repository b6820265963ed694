// Beacon weights that come without their base model: a folder with config.json, of which the
// beacon_* keys are read, and safetensors with the tensors whose names contain "beacon".
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/weights/beacon_config.h"
#include "common/weights/safetensors.h"

namespace mneme::weights {

// Immutable, so thread-safe.
class BeaconAdapter {
 public:
  // NOT_FOUND: no config.json or no safetensors there. INVALID_ARGUMENT: a broken file, no beacon_*
  // keys, or no tensor of a beacon.
  static absl::StatusOr<std::unique_ptr<BeaconAdapter>> Open(absl::string_view folder);

  const std::string& path() const { return path_; }
  const std::optional<BeaconConfig>& config() const { return config_; }  // never nothing
  const std::shared_ptr<const SafetensorsModel>& tensors() const { return tensors_; }
  // 64 hex digits: over the beacon tensors, as ModelFiles::fingerprint over a model's.
  const std::string& fingerprint() const { return fingerprint_; }

 private:
  BeaconAdapter() = default;

  std::string path_;
  std::string fingerprint_;
  std::optional<BeaconConfig> config_;
  std::shared_ptr<const SafetensorsModel> tensors_;
};

}  // namespace mneme::weights
