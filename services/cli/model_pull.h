// Fetches a model from a hub into the cache folder.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "services/cli/hub_client.h"

namespace mneme::cli {

// Returns the files of a repository that a model needs: the one asked for, or configuration,
// tokenizer and safetensors, or the only GGUF file. NOT_FOUND names what there is to choose from.
absl::StatusOr<std::vector<HubFile>> FilesOfModel(const HubAddress& address,
                                                  const std::vector<HubFile>& listing);

// Downloads a model and returns its path, a folder or a GGUF file below `cache_folder`/models. What
// is there already with the right hash is not fetched again. `progress` gets a line's text.
absl::StatusOr<std::string> PullModel(const HubClient& hub, const HubAddress& address,
                                      const std::string& cache_folder,
                                      const std::function<void(const std::string&)>& progress);

}  // namespace mneme::cli
