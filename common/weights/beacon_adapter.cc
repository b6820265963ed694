#include "common/weights/beacon_adapter.h"

#include <utility>

#include "absl/memory/memory.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/status/annotate.h"
#include "common/status/status_macros.h"
#include "common/weights/fingerprint.h"
#include "common/weights/strict_json.h"

namespace mneme::weights {
namespace {

constexpr uint64_t kMaxConfigBytes = 16 << 20;

}  // namespace

absl::StatusOr<std::unique_ptr<BeaconAdapter>> BeaconAdapter::Open(absl::string_view folder) {
  auto adapter = absl::WrapUnique(new BeaconAdapter());
  adapter->path_ = std::string(folder);
  ASSIGN_OR_RETURN(const std::string text,
                   ReadTextFile(absl::StrCat(folder, "/config.json"), kMaxConfigBytes));
  absl::StatusOr<std::optional<BeaconConfig>> config = ParseBeaconConfig(text);
  if (!config.ok()) return status::Annotate(config.status(), folder);
  if (!config->has_value()) {
    return absl::InvalidArgumentError(
        absl::StrCat("config.json has no beacon_* keys, so this is no beacon adapter: ", folder));
  }
  adapter->config_ = *std::move(config);
  ASSIGN_OR_RETURN(std::unique_ptr<SafetensorsModel> tensors, SafetensorsModel::Open(folder));
  Fingerprint fingerprint;
  bool has_beacon = false;
  for (const TensorView* const view : tensors->tensors()) {
    if (!absl::StrContains(view->name, "beacon")) continue;
    fingerprint.AddTensor(view->name, *view);
    has_beacon = true;
  }
  if (!has_beacon) {
    return absl::InvalidArgumentError(absl::StrCat("there are no beacon weights in ", folder));
  }
  adapter->fingerprint_ = fingerprint.Hex();
  adapter->tensors_ = std::move(tensors);
  return adapter;
}

}  // namespace mneme::weights
