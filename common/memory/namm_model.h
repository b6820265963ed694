// A NAMM in the form of the published research code: features, network, selection and, where it is
// trained, the statistics that belong to its parameters. One model serves all layers, heads and
// sequences. Start here, then namm_layer.h.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "common/memory/namm_network.h"
#include "common/memory/namm_selection.h"
#include "common/memory/namm_spectrogram.h"
#include "common/memory/namm_statistics.h"

namespace mneme::memory {

// The defaults are the published configuration.
struct NammConfig {
  SpectrogramOptions spectrogram;
  int64_t recency_dim = 8;
  double recency_max_frequency = 50000;
  int64_t start_recency_from = 0;  // the newest token's recency
  BamOptions network;              // input_size follows from the features
  ThresholdSelection selection;
  int64_t delay = 512;  // tokens of the sequence between two updates
};

// Immutable, thread-safe.
class NammModel {
 public:
  // `statistics`: frozen ones; empty: every sequence measures its own. INVALID_ARGUMENT, naming the
  // field: values out of range, a delay that is no multiple of the hop, or a wrong number of
  // parameters or frequencies.
  static absl::StatusOr<NammModel> Create(NammConfig config, absl::Span<const float> parameters,
                                          FrequencyStatistics statistics);

  // Reads an artifact: a .safetensors file with tensors namm_params [P] and, unless unfrozen,
  // norm_mean, norm_var and norm_num [F], whose metadata has the configuration under "config"; or a
  // .pt checkpoint of the research code's trainer, whose network has the published configuration
  // (the hidden size is found from the number of parameters). NOT_FOUND: no such file.
  // INVALID_ARGUMENT: not such a file.
  static absl::StatusOr<NammModel> Load(const std::string& path);
  // Reads a checkpoint (.pt) of a network with another configuration.
  static absl::StatusOr<NammModel> LoadCheckpoint(const std::string& path, NammConfig config);
  // Writes an artifact that Load reads. Codes of weights::WriteSafetensors.
  absl::Status Save(const std::string& path) const;

  const NammConfig& config() const { return config_; }
  const Spectrogram& spectrogram() const { return spectrogram_; }
  const BamNetwork& network() const { return network_; }
  const FrequencyStatistics& statistics() const { return statistics_; }
  // SHA-256 of configuration, parameters and statistics, in hexadecimal digits: two models with the
  // same digest treat every sequence alike.
  const std::string& digest() const { return digest_; }

  // E + F, numbers per token that the network sees.
  int64_t num_features() const { return config_.network.input_size; }

  // Features [H, K, E + F]: the recency, then the averages `ema` [H, K, F] normalised with
  // `statistics`. positions int64 [H, K], ascending.
  at::Tensor Features(const at::Tensor& ema, const at::Tensor& positions,
                      const FrequencyStatistics& statistics) const;

 private:
  NammModel(NammConfig config, Spectrogram spectrogram, RecencyEmbedding recency,
            BamNetwork network, FrequencyStatistics statistics);

  NammConfig config_;
  Spectrogram spectrogram_;
  RecencyEmbedding recency_;
  BamNetwork network_;
  FrequencyStatistics statistics_;
  std::string digest_;
};

// Returns the configuration that an artifact's metadata describes, as JSON text with the fields
// n_fft, hop, ema_coeff, recency_embed_dim, recency_max_freq, start_recency_from, attn_hidden,
// num_heads, masking, mult, residual, use_rope, rope_theta, attn_bias, mlp_bias, threshold,
// cache_size, delay; absent ones have their defaults, others are passed over. INVALID_ARGUMENT: not
// JSON, or a value of another type.
absl::StatusOr<NammConfig> ParseNammConfig(absl::string_view json);
std::string FormatNammConfig(const NammConfig& config);

}  // namespace mneme::memory
