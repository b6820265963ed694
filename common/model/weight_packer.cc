#include "common/model/weight_packer.h"

#include <ATen/Functions.h>

#include <utility>

#include "absl/strings/match.h"
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

}  // namespace

absl::StatusOr<Weight> WeightPacker::Find(const std::string& name) const {
  if (!IsOfAdapter(name)) return files_->Find(name);
  const TensorView* const view = adapter_->FindTensor(name);
  if (view == nullptr) return absl::NotFoundError(absl::StrCat("adapter has no tensor ", name));
  return Weight{*view, /*qk_permuted=*/false};
}

bool WeightPacker::Has(const std::string& name) const {
  return IsOfAdapter(name) ? adapter_->FindTensor(name) != nullptr : files_->Has(name);
}

bool WeightPacker::IsOfAdapter(const std::string& name) const {
  return adapter_ != nullptr && absl::StrContains(name, "beacon");
}

absl::StatusOr<PackedLinear> WeightPacker::Linear(const std::vector<std::string>& names,
                                                  int64_t k) {
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

absl::StatusOr<at::Tensor> WeightPacker::Dense(const std::string& name) const {
  ASSIGN_OR_RETURN(const Weight weight, Find(name));
  ASSIGN_OR_RETURN(at::Tensor dense,
                   CatchTorch(name, [&] { return at::empty(weight.view.shape); }));
  RETURN_IF_ERROR(status::Annotate(
      weights::Dequantize(weight.view,
                          absl::MakeSpan(dense.mutable_data_ptr<float>(), dense.numel())),
      name));
  return CatchTorch(name, [&] {
    if (weight.qk_permuted) dense = dense.index_select(0, HalfSplitOrder(dense.size(0)));
    return dense.to(device_);
  });
}

absl::StatusOr<at::Tensor> WeightPacker::Vectors(const std::vector<std::string>& names) {
  std::vector<at::Tensor> parts;
  for (const std::string& name : names) {
    ASSIGN_OR_RETURN(at::Tensor part, Dense(name));
    parts.push_back(part.flatten());
  }
  return CatchTorch(absl::StrJoin(names, ", "), [&] {
    at::Tensor all = at::cat(parts);
    num_bytes_ += static_cast<int64_t>(all.nbytes());
    return all;
  });
}

absl::StatusOr<WeightRows> WeightPacker::Rows(const std::string& name, int64_t k) const {
  ASSIGN_OR_RETURN(const Weight weight, Find(name));
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
                         [files = files_, adapter = adapter_](void*) {},
                         at::TensorOptions().dtype(at::kByte));
                     if (!device_.is_cpu()) return mapped.to(device_);
                     return view.is_aligned() ? mapped : mapped.clone();
                   }));
  return rows;
}

// Row 2i of a head in the file is row i, and 2i + 1 is row D/2 + i; so row i of the head is row
// order[i] of the file.
at::Tensor WeightPacker::HalfSplitOrder(int64_t rows) const {
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

}  // namespace mneme::model
