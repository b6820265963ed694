#include "common/weights/model_files.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <system_error>
#include <utility>

#include "absl/memory/memory.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "common/status/annotate.h"
#include "common/status/status_macros.h"
#include "common/weights/fingerprint.h"
#include "common/weights/rope.h"
#include "common/weights/strict_json.h"

namespace mneme::weights {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kMaxConfigBytes = 16 << 20;

// The parts of a GGUF layer tensor's name and what Hugging Face calls them.
constexpr std::pair<absl::string_view, absl::string_view> kLayerNames[] = {
    {"attn_norm", "input_layernorm"},    {"attn_q", "self_attn.q_proj"},
    {"attn_k", "self_attn.k_proj"},      {"attn_v", "self_attn.v_proj"},
    {"attn_output", "self_attn.o_proj"}, {"ffn_norm", "post_attention_layernorm"},
    {"ffn_gate", "mlp.gate_proj"},       {"ffn_up", "mlp.up_proj"},
    {"ffn_down", "mlp.down_proj"},
};

bool IsWeightType(TensorType type) {
  return IsQuantized(type) || type == TensorType::kF32 || type == TensorType::kF16 ||
         type == TensorType::kBF16;
}

bool IsGgufPath(const fs::path& path) { return path.extension() == ".gguf"; }

// Reads what a trainer or a download tool writes about itself out of the config, so that it does
// not make two copies of a model differ.
std::string CanonicalConfig(absl::string_view text) {
  absl::StatusOr<nlohmann::json> config = ParseStrictJson(text, /*max_depth=*/32);
  if (!config.ok() || !config->is_object()) return std::string(text);
  config->erase("_name_or_path");
  config->erase("transformers_version");
  return config->dump();
}

}  // namespace

std::string HuggingFaceName(absl::string_view gguf_name) {
  if (gguf_name == "token_embd.weight") return "model.embed_tokens.weight";
  if (gguf_name == "output_norm.weight") return "model.norm.weight";
  if (gguf_name == "output.weight") return "lm_head.weight";
  absl::string_view rest = gguf_name;
  if (!absl::ConsumePrefix(&rest, "blk.")) return "";
  const size_t dot = rest.find('.');
  const size_t last_dot = rest.rfind('.');
  if (dot == absl::string_view::npos || last_dot <= dot) return "";
  const absl::string_view layer = rest.substr(0, dot);
  int64_t number = 0;
  if (!absl::SimpleAtoi(layer, &number) || number < 0 || absl::StrCat(number) != layer) return "";
  const absl::string_view part = rest.substr(dot + 1, last_dot - dot - 1);
  const absl::string_view suffix = rest.substr(last_dot + 1);
  if (suffix != "weight" && suffix != "bias") return "";
  for (const auto& [gguf, hugging_face] : kLayerNames) {
    if (part == gguf) return absl::StrCat("model.layers.", layer, ".", hugging_face, ".", suffix);
  }
  return "";
}

absl::StatusOr<std::unique_ptr<ModelFiles>> ModelFiles::Open(absl::string_view path) {
  fs::path file{std::string(path)};
  std::error_code error;
  const fs::file_status info = fs::status(file, error);
  if (!fs::exists(info)) {
    return absl::NotFoundError(absl::StrCat("no such model file or folder: ", path));
  }
  auto model = absl::WrapUnique(new ModelFiles());
  if (fs::is_directory(info)) {
    if (fs::exists(file / "config.json", error)) {
      RETURN_IF_ERROR(model->OpenHuggingFace(file.string()));
    } else {
      std::vector<fs::path> found;
      for (fs::directory_iterator it(file, error), end; !error && it != end; it.increment(error)) {
        if (IsGgufPath(it->path())) found.push_back(it->path());
      }
      if (found.size() != 1) {
        return absl::NotFoundError(
            absl::StrCat("model folder has neither config.json nor exactly one *.gguf file: ", path,
                         " has ", found.size()));
      }
      RETURN_IF_ERROR(model->OpenGguf(found[0].string()));
    }
  } else {
    RETURN_IF_ERROR(model->OpenGguf(file.string()));
  }
  RETURN_IF_ERROR(status::Annotate(model->CheckTensors(), model->path_));
  RETURN_IF_ERROR(status::Annotate(ComputeRope(model->config_, 1).status(), model->path_));
  model->Summarise();
  return model;
}

absl::Status ModelFiles::OpenGguf(const std::string& path) {
  path_ = path;
  ASSIGN_OR_RETURN(gguf_, GgufFile::Open(path));
  ASSIGN_OR_RETURN(config_, ReadGgufConfig(*gguf_));
  for (const TensorView& tensor : gguf_->tensors()) {
    const std::string name = HuggingFaceName(tensor.name);
    const bool qk_permuted =
        config_.architecture == Architecture::kLlama &&
        (absl::StrContains(name, ".q_proj.") || absl::StrContains(name, ".k_proj."));
    weights_.emplace(name.empty() ? tensor.name : name, Weight{tensor, qk_permuted});
  }
  ASSIGN_OR_RETURN(const int64_t file_type, gguf_->GetIntOr("general.file_type", -1));
  file_type_ = std::string(GgufFileTypeName(file_type));
  return absl::OkStatus();
}

absl::Status ModelFiles::OpenHuggingFace(const std::string& folder) {
  path_ = folder;
  ASSIGN_OR_RETURN(config_, ReadHuggingFaceConfig(folder));
  ASSIGN_OR_RETURN(config_text_,
                   ReadTextFile(absl::StrCat(folder, "/config.json"), kMaxConfigBytes));
  ASSIGN_OR_RETURN(safetensors_, SafetensorsModel::Open(folder));
  for (const TensorView* tensor : safetensors_->tensors()) {
    weights_.emplace(tensor->name, Weight{*tensor, false});
  }
  return absl::OkStatus();
}

absl::StatusOr<Weight> ModelFiles::Find(absl::string_view hf_name) const {
  const auto found = weights_.find(hf_name);
  if (found == weights_.end()) {
    return absl::NotFoundError(absl::StrCat("model has no tensor ", hf_name, " in ", path_));
  }
  return found->second;
}

std::vector<std::string> ModelFiles::names() const {
  std::vector<std::string> names;
  for (const auto& [name, weight] : weights_) names.push_back(name);
  std::sort(names.begin(), names.end());
  return names;
}

absl::Status ModelFiles::CheckTensors() const {
  const auto check = [this](const std::string& name, std::vector<int64_t> shape) -> absl::Status {
    const auto found = weights_.find(name);
    if (found == weights_.end()) {
      return absl::InvalidArgumentError(absl::StrCat("tensor is missing, the config calls for it: ",
                                                     name, " [", absl::StrJoin(shape, ", "), "]"));
    }
    const TensorView& view = found->second.view;
    if (view.shape != shape) {
      return absl::InvalidArgumentError(absl::StrCat(
          "tensor has another shape than the config calls for: ", name, " is ", view.Describe(),
          " at byte ", view.file_offset, " and should be [", absl::StrJoin(shape, ", "), "]"));
    }
    if (!IsWeightType(view.type) || (shape.size() == 1 && IsQuantized(view.type))) {
      return absl::UnimplementedError(
          absl::StrCat("tensor type is not supported for this weight: ", name, " is ",
                       view.Describe(), " at byte ", view.file_offset));
    }
    return absl::OkStatus();
  };
  const auto check_linear = [&](const std::string& name, int64_t out, int64_t in,
                                bool bias) -> absl::Status {
    RETURN_IF_ERROR(check(name + ".weight", {out, in}));
    if (bias) return check(name + ".bias", {out});
    // An unexpected bias left out would give wrong answers without a word.
    if (Has(name + ".bias")) {
      return absl::InvalidArgumentError(
          absl::StrCat("tensor is there but the config says there is none: ", name, ".bias"));
    }
    return absl::OkStatus();
  };
  const int64_t hidden = config_.hidden_size;
  const int64_t inner = config_.intermediate_size;
  const int64_t q_size = config_.num_heads * config_.head_size;
  const int64_t kv_size = config_.num_kv_heads * config_.head_size;
  RETURN_IF_ERROR(check("model.embed_tokens.weight", {config_.vocab_size, hidden}));
  RETURN_IF_ERROR(check("model.norm.weight", {hidden}));
  if (!config_.tie_word_embeddings) {
    RETURN_IF_ERROR(check("lm_head.weight", {config_.vocab_size, hidden}));
  }
  for (int64_t i = 0; i < config_.num_layers; ++i) {
    const std::string layer = absl::StrCat("model.layers.", i, ".");
    const std::string attention = layer + "self_attn.";
    const std::string mlp = layer + "mlp.";
    RETURN_IF_ERROR(check(layer + "input_layernorm.weight", {hidden}));
    RETURN_IF_ERROR(check(layer + "post_attention_layernorm.weight", {hidden}));
    RETURN_IF_ERROR(check_linear(attention + "q_proj", q_size, hidden, config_.qkv_bias));
    RETURN_IF_ERROR(check_linear(attention + "k_proj", kv_size, hidden, config_.qkv_bias));
    RETURN_IF_ERROR(check_linear(attention + "v_proj", kv_size, hidden, config_.qkv_bias));
    RETURN_IF_ERROR(check_linear(attention + "o_proj", hidden, q_size, config_.output_bias));
    RETURN_IF_ERROR(check_linear(mlp + "gate_proj", inner, hidden, config_.mlp_bias));
    RETURN_IF_ERROR(check_linear(mlp + "up_proj", inner, hidden, config_.mlp_bias));
    RETURN_IF_ERROR(check_linear(mlp + "down_proj", hidden, inner, config_.mlp_bias));
  }
  return absl::OkStatus();
}

void ModelFiles::Summarise() {
  Fingerprint fingerprint;
  if (gguf_ != nullptr) {
    fingerprint.Add("mneme gguf 1");
    fingerprint.Add(gguf_->header_bytes().data(), gguf_->header_bytes().size());
  } else {
    fingerprint.Add("mneme huggingface 1");
    fingerprint.Add(CanonicalConfig(config_text_));
  }
  std::map<absl::string_view, uint64_t> bytes_by_type;
  // By name, so that the same tensors in other shards give the same fingerprint.
  for (const std::string& name : names()) {
    const TensorView& view = weights_.at(name).view;
    fingerprint.AddTensor(name, view);
    weight_bytes_ += view.size_bytes;
    bytes_by_type[TypeName(view.type)] += view.size_bytes;
    if (IsWeightType(view.type) && name != "rope_freqs.weight") {
      num_parameters_ += view.num_elements();
    }
  }
  fingerprint_ = fingerprint.Hex();
  if (file_type_.empty()) {
    const auto most =
        std::max_element(bytes_by_type.begin(), bytes_by_type.end(),
                         [](const auto& a, const auto& b) { return a.second < b.second; });
    file_type_ = std::string(most->first);
  }
}

}  // namespace mneme::weights
