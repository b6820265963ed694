// Writes small models with random weights in Hugging Face form, for tests that need a model and not
// its answers. Not linked into services.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace mneme::model {

struct TinyModel {
  std::string model_type = "llama";  // or mistral, qwen2
  int64_t vocab_size = 128;
  int64_t hidden_size = 64;
  int64_t intermediate_size = 96;
  int64_t num_layers = 3;
  int64_t num_heads = 6;
  int64_t num_kv_heads = 2;
  int64_t head_size = 16;
  int64_t context_length = 256;
  int64_t sliding_window = 0;  // mistral only; 0: none
  bool tie_word_embeddings = false;
  uint64_t seed = 1;
  // Left out of the file, or written with a row too few: to provoke errors.
  std::string missing_tensor;
  std::string short_tensor;
};

// Writes config.json and model.safetensors (float32, qwen2 with q, k and v biases) into `folder`,
// which must exist. The same options give the same bytes. Codes of weights::WriteSafetensors.
absl::Status WriteTinyModel(absl::string_view folder, const TinyModel& options);

}  // namespace mneme::model
