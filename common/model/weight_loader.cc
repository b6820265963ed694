#include "common/model/weight_loader.h"

#include <ATen/Functions.h>

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/model/torch_status.h"
#include "common/status/annotate.h"
#include "common/status/status_macros.h"
#include "common/weights/dequantize.h"

namespace mneme::model {
namespace {

using kernels::PackedLinear;
using kernels::WeightRows;
using kernels::WeightType;
using weights::ModelFiles;
using weights::TensorType;
using weights::TensorView;
using weights::Weight;

absl::StatusOr<WeightType> KernelType(const TensorView& view) {
  switch (view.type) {
    case TensorType::kF32:
      return WeightType::kF32;
    case TensorType::kF16:
      return WeightType::kF16;
    case TensorType::kBF16:
      return WeightType::kBF16;
    case TensorType::kQ8_0:
      return WeightType::kQ8_0;
    case TensorType::kQ4_0:
      return WeightType::kQ4_0;
    case TensorType::kQ4_1:
      return WeightType::kQ4_1;
    case TensorType::kQ5_0:
      return WeightType::kQ5_0;
    case TensorType::kQ5_1:
      return WeightType::kQ5_1;
    case TensorType::kQ4_K:
      return WeightType::kQ4K;
    case TensorType::kQ5_K:
      return WeightType::kQ5K;
    case TensorType::kQ6_K:
      return WeightType::kQ6K;
    default:
      return absl::UnimplementedError(
          absl::StrCat("no kernels for weights of this type: ", view.Describe()));
  }
}

class Loader {
 public:
  Loader(const std::shared_ptr<const ModelFiles>& files, at::Device device)
      : files_(files), device_(device) {}

  // Packs the weights `names`, all of width `k`, one below the other.
  absl::StatusOr<PackedLinear> Linear(const std::vector<std::string>& names, int64_t k) {
    std::vector<WeightRows> segments;
    for (const std::string& name : names) {
      absl::StatusOr<WeightRows> segment = Rows(name, k);
      if (!segment.ok()) return status::Annotate(segment.status(), name);
      segments.push_back(*std::move(segment));
    }
    ASSIGN_OR_RETURN(PackedLinear packed, CatchTorch(absl::StrJoin(names, ", "), [&] {
                       return PackedLinear::Create(segments, k);
                     }));
    num_bytes_ += packed.num_bytes();
    return packed;
  }

  // Returns a float32 vector. [n]
  absl::StatusOr<at::Tensor> Vector(const std::string& name) { return Vectors({name}); }

  // Returns the float32 vectors `names`, one behind the other.
  absl::StatusOr<at::Tensor> Vectors(const std::vector<std::string>& names) {
    std::vector<at::Tensor> parts;
    for (const std::string& name : names) {
      ASSIGN_OR_RETURN(const Weight weight, files_->Find(name));
      ASSIGN_OR_RETURN(at::Tensor part,
                       CatchTorch(name, [&] { return at::empty({weight.view.num_elements()}); }));
      RETURN_IF_ERROR(status::Annotate(
          weights::Dequantize(weight.view,
                              absl::MakeSpan(part.mutable_data_ptr<float>(), part.numel())),
          name));
      if (weight.qk_permuted) part = part.index_select(0, HalfSplitOrder(part.numel()));
      parts.push_back(std::move(part));
    }
    return CatchTorch(absl::StrJoin(names, ", "), [&] {
      at::Tensor all = at::cat(parts).to(device_);
      num_bytes_ += static_cast<int64_t>(all.nbytes());
      return all;
    });
  }

  int64_t num_bytes() const { return num_bytes_; }

 private:
  absl::StatusOr<WeightRows> Rows(const std::string& name, int64_t k) {
    ASSIGN_OR_RETURN(const Weight weight, files_->Find(name));
    const TensorView& view = weight.view;
    if (view.row_size() != k) {
      return absl::InvalidArgumentError(
          absl::StrCat("rows should have ", k, " elements: ", view.Describe()));
    }
    WeightRows rows{.rows = view.num_rows()};
    ASSIGN_OR_RETURN(rows.type, KernelType(view));
    if (weight.qk_permuted) rows.row_order = HalfSplitOrder(view.num_rows());
    ASSIGN_OR_RETURN(rows.data, CatchTorch("wrapping the tensor", [&] {
                       // The deleter owns the files: the mapping lives as long as the tensor.
                       const at::Tensor mapped = at::from_blob(
                           const_cast<uint8_t*>(view.data), {static_cast<int64_t>(view.size_bytes)},
                           [files = files_](void*) {}, at::TensorOptions().dtype(at::kByte));
                       if (!device_.is_cpu()) return mapped.to(device_);
                       return view.is_aligned() ? mapped : mapped.clone();
                     }));
    return rows;
  }

  // Row 2i of a head in the file is row i, and 2i + 1 is row D/2 + i; so row i of the head is row
  // order[i] of the file.
  at::Tensor HalfSplitOrder(int64_t rows) const {
    const int64_t head_size = files_->config().head_size;
    at::Tensor order = at::empty({rows}, at::kLong);
    int64_t* out = order.mutable_data_ptr<int64_t>();
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t head = row / head_size * head_size;
      const int64_t i = row % head_size;
      out[row] = head + (i < head_size / 2 ? 2 * i : 2 * (i - head_size / 2) + 1);
    }
    return order;
  }

  const std::shared_ptr<const ModelFiles> files_;
  const at::Device device_;
  int64_t num_bytes_ = 0;
};

absl::StatusOr<LayerWeights> LoadLayer(Loader& loader, const weights::ModelConfig& config,
                                       int64_t index) {
  const auto name = [index](const char* part) {
    return absl::StrCat("model.layers.", index, ".", part);
  };
  const int64_t hidden = config.hidden_size;
  LayerWeights layer;
  ASSIGN_OR_RETURN(layer.attention_norm, loader.Vector(name("input_layernorm.weight")));
  ASSIGN_OR_RETURN(layer.qkv,
                   loader.Linear({name("self_attn.q_proj.weight"), name("self_attn.k_proj.weight"),
                                  name("self_attn.v_proj.weight")},
                                 hidden));
  if (config.qkv_bias) {
    ASSIGN_OR_RETURN(layer.qkv_bias,
                     loader.Vectors({name("self_attn.q_proj.bias"), name("self_attn.k_proj.bias"),
                                     name("self_attn.v_proj.bias")}));
  }
  ASSIGN_OR_RETURN(layer.output, loader.Linear({name("self_attn.o_proj.weight")},
                                               config.num_heads * config.head_size));
  if (config.output_bias) {
    ASSIGN_OR_RETURN(layer.output_bias, loader.Vector(name("self_attn.o_proj.bias")));
  }
  ASSIGN_OR_RETURN(layer.mlp_norm, loader.Vector(name("post_attention_layernorm.weight")));
  ASSIGN_OR_RETURN(
      layer.gate_up,
      loader.Linear({name("mlp.gate_proj.weight"), name("mlp.up_proj.weight")}, hidden));
  ASSIGN_OR_RETURN(layer.down,
                   loader.Linear({name("mlp.down_proj.weight")}, config.intermediate_size));
  if (config.mlp_bias) {
    ASSIGN_OR_RETURN(layer.gate_up_bias,
                     loader.Vectors({name("mlp.gate_proj.bias"), name("mlp.up_proj.bias")}));
    ASSIGN_OR_RETURN(layer.down_bias, loader.Vector(name("mlp.down_proj.bias")));
  }
  return layer;
}

}  // namespace

absl::StatusOr<ModelWeights> LoadWeights(const std::shared_ptr<const ModelFiles>& files,
                                         at::Device device) {
  const weights::ModelConfig& config = files->config();
  Loader loader(files, device);
  ModelWeights all;
  ASSIGN_OR_RETURN(all.embedding, loader.Linear({"model.embed_tokens.weight"}, config.hidden_size));
  for (int64_t i = 0; i < config.num_layers; ++i) {
    ASSIGN_OR_RETURN(LayerWeights layer, LoadLayer(loader, config, i));
    all.layers.push_back(std::move(layer));
  }
  ASSIGN_OR_RETURN(all.norm, loader.Vector("model.norm.weight"));
  if (config.tie_word_embeddings) {
    all.lm_head = all.embedding;
  } else {
    ASSIGN_OR_RETURN(all.lm_head, loader.Linear({"lm_head.weight"}, config.hidden_size));
  }
  all.num_bytes = loader.num_bytes();
  return all;
}

}  // namespace mneme::model
