#include "common/memory/untrained_namm.h"

#include <random>
#include <vector>

#include "common/memory/namm_model.h"
#include "common/status/status_macros.h"

namespace mneme::memory {

absl::Status WriteUntrainedNamm(const std::string& path) {
  NammConfig config;
  config.spectrogram = {.n_fft = 16, .hop = 8};
  config.delay = 32;
  config.network.input_size = config.recency_dim + 9;
  config.network.hidden_size = 16;
  std::mt19937 random(3);
  std::normal_distribution<float> normal(0, 0.3F);
  std::vector<float> parameters(BamNetwork::NumParameters(config.network));
  for (float& value : parameters) value = normal(random);
  ASSIGN_OR_RETURN(const NammModel namm, NammModel::Create(config, parameters, {}));
  return namm.Save(path);
}

}  // namespace mneme::memory
