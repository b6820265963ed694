// Opens a model, whatever its form: a Hugging Face folder (config.json, one or several safetensors)
// or a GGUF file. Tensors are asked for by their Hugging Face names in both.
//
//   ASSIGN_OR_RETURN(std::unique_ptr<ModelFiles> model, ModelFiles::Open(path));
//   ASSIGN_OR_RETURN(Weight q, model->Find("model.layers.0.self_attn.q_proj.weight"));
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/weights/gguf.h"
#include "common/weights/model_config.h"
#include "common/weights/safetensors.h"
#include "common/weights/tensor_view.h"

namespace mneme::weights {

// A tensor and how its rows are ordered.
struct Weight {
  TensorView view;
  // Rows of q_proj and k_proj (weights and biases) in GGUF files of architecture llama are ordered
  // for interleaved RoPE: within a head of size D, file row 2i is Hugging Face row i and file row
  // 2i+1 is Hugging Face row D/2+i. Either rotate pairs (2i, 2i+1) or reorder the rows.
  bool qk_permuted = false;
};

// An open model. Immutable, so thread-safe; views live as long as it does.
class ModelFiles {
 public:
  // Opens a GGUF file, a folder holding config.json, or a folder holding exactly one GGUF file.
  // Every tensor that the config calls for is looked up and its shape compared, so that a wrong
  // model fails here and not in the middle of a forward pass.
  // NOT_FOUND: nothing there. INVALID_ARGUMENT: broken file, or shapes that contradict the config.
  // UNIMPLEMENTED: a model of a kind that is not supported.
  static absl::StatusOr<std::unique_ptr<ModelFiles>> Open(absl::string_view path);

  const ModelConfig& config() const { return config_; }
  const std::string& path() const { return path_; }  // the GGUF file or the folder

  // NOT_FOUND: the model has no such tensor (message names it and the file).
  absl::StatusOr<Weight> Find(absl::string_view hf_name) const;
  bool Has(absl::string_view hf_name) const { return weights_.contains(hf_name); }
  // All tensors by Hugging Face name, sorted; GGUF tensors without one keep their own name.
  std::vector<std::string> names() const;

  // "Q4_1", "Q4_K_M", "BF16": what the file calls its precision, else the type of most bytes.
  const std::string& file_type() const { return file_type_; }
  int64_t num_parameters() const { return num_parameters_; }
  uint64_t weight_bytes() const { return weight_bytes_; }
  // 64 hex digits: sha256 over config or metadata, the tensor table and samples of every tensor's
  // data. Reads some pages only. Two copies of a model agree; a re-quantised, re-trained or edited
  // one differs (an edit that misses every sample and the header does not show: it is an identity,
  // not a protection against forgery).
  const std::string& fingerprint() const { return fingerprint_; }

  // The GGUF file with its tokenizer metadata; null for a Hugging Face folder.
  const GgufFile* gguf() const { return gguf_.get(); }

 private:
  ModelFiles() = default;
  absl::Status OpenGguf(const std::string& path);
  absl::Status OpenHuggingFace(const std::string& folder);
  absl::Status CheckTensors() const;
  void Summarise();

  std::string path_;
  ModelConfig config_;
  std::unique_ptr<GgufFile> gguf_;
  std::unique_ptr<SafetensorsModel> safetensors_;
  std::string config_text_;  // of a Hugging Face folder, for the fingerprint
  absl::flat_hash_map<std::string, Weight> weights_;
  std::string file_type_;
  std::string fingerprint_;
  int64_t num_parameters_ = 0;
  uint64_t weight_bytes_ = 0;
};

// Returns the Hugging Face name of a GGUF tensor ("blk.3.attn_q.weight" ->
// "model.layers.3.self_attn.q_proj.weight"), or "" where there is none.
std::string HuggingFaceName(absl::string_view gguf_name);

}  // namespace mneme::weights
