// The shape of a Llama-family decoder, read from a Hugging Face folder's config.json or from a GGUF
// file's metadata, with the defaults that transformers 5 uses for keys that are left out.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/weights/beacon_config.h"
#include "common/weights/gguf.h"

namespace mneme::weights {

// Falcon3, SmolLM and SmolLM2 are of architecture llama; GGUF files of Mistral models too.
enum class Architecture { kLlama, kMistral, kQwen2 };
absl::string_view ArchitectureName(Architecture architecture);

enum class RopeScalingKind {
  kNone,
  kLinear,      // positions divided by `factor`
  kDynamicNtk,  // base grows with the length beyond the context ("dynamic")
  kYarn,
  kLlama3,
  // The YaRN of Activation Beacon's models: other constants, and the factor grows with the length
  // beyond factor * context. "yarn" where config.json has beacon_* keys.
  kBeaconYarn,
  kYarnT,      // the same, scaling late queries by position instead of queries and keys ("yarn-t")
  kYarnTLogN,  // the same, by another formula ("yarn-t-logn")
};
absl::string_view RopeScalingName(RopeScalingKind kind);

// How rotary frequencies differ from the plain ones; rope.h turns it into numbers.
struct RopeScaling {
  RopeScalingKind kind = RopeScalingKind::kNone;
  double factor = 1;
  // The context length before scaling; 0: use the config's context_length.
  int64_t original_context_length = 0;
  // YaRN. Nothing in attention_factor: derived from factor and the mscales.
  std::optional<double> attention_factor;
  double beta_fast = 32;
  double beta_slow = 1;
  double mscale = 0;          // 0: not given
  double mscale_all_dim = 0;  // 0: not given
  bool truncate = true;       // correction range rounded to whole dimensions
  // Llama 3.
  double low_freq_factor = 1;
  double high_freq_factor = 4;
  // Divisors of the inverse frequencies, one per pair [D/2]; empty: none. GGUF files of Llama 3
  // carry their scaling only in this form (tensor rope_freqs.weight).
  std::vector<float> frequency_factors;
};

struct ModelConfig {
  Architecture architecture = Architecture::kLlama;
  std::string name;  // the file's own name for the model, may be empty
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  int64_t num_layers = 0;
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t head_size = 0;
  int64_t vocab_size = 0;  // V, rows of the embedding
  int64_t context_length = 0;
  double rms_norm_eps = 1e-6;
  double rope_theta = 10000;
  RopeScaling rope_scaling;
  // Per layer: how many latest positions a query sees, itself included; 0: all. Size num_layers.
  std::vector<int64_t> sliding_windows;
  bool qkv_bias = false;
  bool output_bias = false;  // of o_proj
  bool mlp_bias = false;     // of gate, up and down
  bool tie_word_embeddings = false;
  std::optional<int64_t> bos_token_id;
  // Tokens that end a text: generation_config.json's where it names any, else config.json's; of a
  // GGUF file its eos, eot and eom tokens.
  std::vector<int64_t> eos_token_ids;
  std::optional<int64_t> pad_token_id;
  std::optional<BeaconConfig> beacon;  // where config.json has beacon_* keys

  bool has_sliding_window() const;
};

// Returns the config of a folder with a config.json (and, where there is one, a
// generation_config.json). NOT_FOUND: no config.json. INVALID_ARGUMENT: a key missing, of a wrong
// type or out of bounds. UNIMPLEMENTED: an architecture, activation, rope scaling or quantisation
// that is not supported; the message says what is.
absl::StatusOr<ModelConfig> ReadHuggingFaceConfig(absl::string_view folder);
// The same from the text of both files; an empty `generation_config` stands for none.
absl::StatusOr<ModelConfig> ParseHuggingFaceConfig(absl::string_view config,
                                                   absl::string_view generation_config);
// Returns the config of a GGUF file; codes as above.
absl::StatusOr<ModelConfig> ReadGgufConfig(const GgufFile& file);
// Returns INVALID_ARGUMENT naming the first size that is out of bounds or contradicts another. The
// readers above have called it.
absl::Status CheckConfig(const ModelConfig& config);

}  // namespace mneme::weights
