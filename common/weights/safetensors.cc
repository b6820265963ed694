#include "common/weights/safetensors.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <optional>
#include <system_error>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/memory/memory.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/status/status_macros.h"
#include "common/weights/strict_json.h"

namespace mneme::weights {
namespace {

using nlohmann::json;

constexpr absl::string_view kCutHint =
    "the file is cut or damaged: download it again and compare its checksum";
constexpr uint64_t kMaxIndexBytes = 64 << 20;
constexpr size_t kMaxDimensions = 16;

std::string Quote(absl::string_view name) {
  return absl::StrCat("'", absl::Utf8SafeCEscape(name.substr(0, 200)), "'");
}

std::optional<TensorType> TypeOf(absl::string_view name) {
  for (const TensorType type :
       {TensorType::kF32, TensorType::kF16, TensorType::kBF16, TensorType::kI8, TensorType::kI16,
        TensorType::kI32, TensorType::kI64, TensorType::kU8, TensorType::kF64, TensorType::kBool,
        TensorType::kF8E4M3, TensorType::kF8E5M2}) {
    if (TypeName(type) == name) return type;
  }
  return std::nullopt;
}

// Returns the member if it is an array of unsigned numbers below 2^62.
std::optional<std::vector<int64_t>> UnsignedArray(const json& object, const char* key) {
  const auto found = object.find(key);
  if (found == object.end() || !found->is_array()) return std::nullopt;
  std::vector<int64_t> numbers;
  for (const json& item : *found) {
    if (!item.is_number_unsigned() || item.get<uint64_t>() >= uint64_t{1} << 62) {
      return std::nullopt;
    }
    numbers.push_back(static_cast<int64_t>(item.get<uint64_t>()));
  }
  return numbers;
}

// One entry of the header, its offsets checked against the `data_size` bytes behind the header.
absl::StatusOr<TensorView> ReadEntry(const std::string& name, const json& entry,
                                     uint64_t data_size) {
  const auto fail = [&name](const auto&... what) {
    return absl::InvalidArgumentError(absl::StrCat("tensor ", Quote(name), " ", what...));
  };
  if (!entry.is_object()) return fail("is not described by an object");
  const auto type_name = entry.find("dtype");
  if (type_name == entry.end() || !type_name->is_string()) return fail("has no dtype");
  const std::optional<TensorType> type = TypeOf(type_name->get_ref<const std::string&>());
  if (!type.has_value()) {
    return fail("has dtype ", Quote(type_name->get_ref<const std::string&>()),
                ", which is not supported (F64, F32, F16, BF16, F8_E4M3, F8_E5M2, I64, I32, I16, "
                "I8, U8, BOOL are)");
  }
  std::optional<std::vector<int64_t>> shape = UnsignedArray(entry, "shape");
  if (!shape.has_value() || shape->size() > kMaxDimensions) {
    return fail("has no shape of at most ", kMaxDimensions, " sizes below 2^62");
  }
  const std::optional<std::vector<int64_t>> range = UnsignedArray(entry, "data_offsets");
  if (!range.has_value() || range->size() != 2) return fail("has no two data_offsets below 2^62");
  const uint64_t begin = static_cast<uint64_t>((*range)[0]);
  const uint64_t end = static_cast<uint64_t>((*range)[1]);
  if (begin > end || end > data_size) {
    return fail("has data offsets ", begin, " to ", end, " outside the data section of ", data_size,
                " bytes");
  }
  const absl::StatusOr<uint64_t> size = ByteSize(*type, *shape);
  if (!size.ok()) return fail("at data offset ", begin, ": ", size.status().message());
  TensorView tensor;
  tensor.name = name;
  tensor.type = *type;
  tensor.shape = *std::move(shape);
  tensor.size_bytes = end - begin;
  tensor.file_offset = begin;  // relative to the data section until the caller moves it
  if (*size != tensor.size_bytes) {
    return fail("at data offset ", begin, " has ", tensor.size_bytes, " bytes where ",
                tensor.Describe(), " takes ", *size);
  }
  return tensor;
}

bool IsPlainFileName(absl::string_view name) {
  return !name.empty() && name[0] != '.' && !absl::StrContains(name, '/') &&
         !absl::StrContains(name, absl::string_view("\0", 1)) &&
         absl::EndsWith(name, ".safetensors");
}

}  // namespace

absl::StatusOr<std::unique_ptr<SafetensorsFile>> SafetensorsFile::Open(absl::string_view path) {
  ASSIGN_OR_RETURN(MappedFile mapped, MappedFile::Open(path));
  auto owned = std::make_unique<MappedFile>(std::move(mapped));
  auto file = absl::WrapUnique(new SafetensorsFile(owned->bytes(), std::string(path)));
  file->file_ = std::move(owned);
  RETURN_IF_ERROR(file->ReadAll());
  return file;
}

absl::StatusOr<std::unique_ptr<SafetensorsFile>> SafetensorsFile::Parse(
    absl::Span<const uint8_t> bytes, absl::string_view name) {
  auto file = absl::WrapUnique(new SafetensorsFile(bytes, std::string(name)));
  RETURN_IF_ERROR(file->ReadAll());
  return file;
}

absl::Status SafetensorsFile::ReadAll() {
  const auto fail = [this](const auto&... what) {
    return absl::InvalidArgumentError(absl::StrCat("bad safetensors file: ", what..., " in ", path_,
                                                   " (", bytes_.size(), " bytes); ", kCutHint));
  };
  if (bytes_.size() < 8) return fail("the header's length is missing");
  uint64_t header_size;
  std::memcpy(&header_size, bytes_.data(), sizeof(header_size));
  if (header_size > bytes_.size() - 8) {
    return fail("the header is said to have ", header_size, " bytes, past the end,");
  }
  if (header_size > kMaxSafetensorsHeaderBytes) {
    return fail("the header has ", header_size, " bytes, over the bound of ",
                kMaxSafetensorsHeaderBytes, ",");
  }
  const absl::string_view text(reinterpret_cast<const char*>(bytes_.data()) + 8, header_size);
  absl::StatusOr<json> header = ParseStrictJson(text, /*max_depth=*/4);
  if (!header.ok()) return fail("header: ", header.status().message(), " (counted from byte 8)");
  if (!header->is_object()) return fail("the header is not a JSON object");

  const uint64_t data_offset = 8 + header_size;
  const uint64_t data_size = bytes_.size() - data_offset;
  for (const auto& [name, entry] : header->items()) {
    if (name == "__metadata__") {
      if (!entry.is_object()) return fail("__metadata__ is not an object");
      for (const auto& [key, value] : entry.items()) {
        if (!value.is_string()) return fail("__metadata__ ", Quote(key), " is not text");
        metadata_[key] = value.get<std::string>();
      }
      continue;
    }
    absl::StatusOr<TensorView> tensor = ReadEntry(name, entry, data_size);
    if (!tensor.ok()) return fail(tensor.status().message());
    tensors_.push_back(*std::move(tensor));
  }
  std::sort(tensors_.begin(), tensors_.end(), [](const TensorView& a, const TensorView& b) {
    return std::tie(a.file_offset, a.size_bytes, a.name) <
           std::tie(b.file_offset, b.size_bytes, b.name);
  });
  // The format wants the data section covered without gaps, so that no bytes can hide in it.
  uint64_t covered = 0;
  for (TensorView& tensor : tensors_) {
    if (tensor.file_offset != covered) {
      return fail("tensor ", Quote(tensor.name), " begins at data offset ", tensor.file_offset,
                  tensor.file_offset < covered ? " and overlaps the one before, which ends at "
                                               : " and leaves a gap after ",
                  covered);
    }
    covered += tensor.size_bytes;
    tensor.file_offset += data_offset;
    tensor.data = bytes_.data() + tensor.file_offset;
  }
  if (covered != data_size) {
    return fail("the tensors end at data offset ", covered, " and the file at ", data_size);
  }
  for (size_t i = 0; i < tensors_.size(); ++i) tensor_index_.emplace(tensors_[i].name, i);
  return absl::OkStatus();
}

const TensorView* SafetensorsFile::FindTensor(absl::string_view name) const {
  const auto found = tensor_index_.find(name);
  return found == tensor_index_.end() ? nullptr : &tensors_[found->second];
}

absl::StatusOr<std::unique_ptr<SafetensorsModel>> SafetensorsModel::Open(absl::string_view folder) {
  namespace fs = std::filesystem;
  const fs::path root{std::string(folder)};
  std::error_code ignored;
  auto model = absl::WrapUnique(new SafetensorsModel());
  fs::path single = root / "model.safetensors";
  const fs::path index = root / "model.safetensors.index.json";
  if (!fs::exists(single, ignored) && fs::exists(index, ignored)) {
    RETURN_IF_ERROR(model->OpenShards(root.string(), index.string()));
    return model;
  }
  if (!fs::exists(single, ignored)) {
    std::vector<fs::path> found;
    std::error_code error;
    for (fs::directory_iterator it(root, error), end; !error && it != end; it.increment(error)) {
      if (it->path().extension() == ".safetensors") found.push_back(it->path());
    }
    if (error) {
      return absl::NotFoundError(
          absl::StrCat("cannot list model folder: ", root.string(), ": ", error.message()));
    }
    if (found.size() != 1) {
      return absl::NotFoundError(absl::StrCat(
          "model folder has no model.safetensors, no model.safetensors.index.json and not exactly "
          "one other *.safetensors file (weights in another format must be converted first): ",
          root.string(), " has ", found.size()));
    }
    single = found[0];
  }
  ASSIGN_OR_RETURN(std::unique_ptr<SafetensorsFile> file, SafetensorsFile::Open(single.string()));
  for (const TensorView& tensor : file->tensors()) model->tensors_.push_back(&tensor);
  model->files_.push_back(std::move(file));
  model->IndexTensors();
  return model;
}

absl::Status SafetensorsModel::OpenShards(const std::string& folder,
                                          const std::string& index_path) {
  const auto fail = [&index_path](const auto&... what) {
    return absl::InvalidArgumentError(
        absl::StrCat("bad safetensors index: ", what..., " in ", index_path));
  };
  ASSIGN_OR_RETURN(const std::string text, ReadTextFile(index_path, kMaxIndexBytes));
  const absl::StatusOr<json> document = ParseStrictJson(text, /*max_depth=*/8);
  if (!document.ok()) return fail(document.status().message());
  if (!document->is_object() || !document->contains("weight_map") ||
      !(*document)["weight_map"].is_object()) {
    return fail("no object weight_map");
  }
  absl::flat_hash_map<std::string, SafetensorsFile*> shards;
  for (const auto& [name, shard_name] : (*document)["weight_map"].items()) {
    if (!shard_name.is_string()) return fail("tensor ", Quote(name), " names no file");
    const std::string& file_name = shard_name.get_ref<const std::string&>();
    if (!IsPlainFileName(file_name)) {
      return fail("tensor ", Quote(name),
                  " names a file that is not a *.safetensors of the folder: ", Quote(file_name));
    }
    SafetensorsFile*& shard = shards[file_name];
    if (shard == nullptr) {
      ASSIGN_OR_RETURN(std::unique_ptr<SafetensorsFile> file,
                       SafetensorsFile::Open(absl::StrCat(folder, "/", file_name)));
      shard = file.get();
      files_.push_back(std::move(file));
    }
    const TensorView* tensor = shard->FindTensor(name);
    if (tensor == nullptr) {
      return fail("tensor ", Quote(name), " is not in the file it names, ", Quote(file_name), ",");
    }
    tensors_.push_back(tensor);
  }
  IndexTensors();
  return absl::OkStatus();
}

void SafetensorsModel::IndexTensors() {
  std::sort(tensors_.begin(), tensors_.end(),
            [](const TensorView* a, const TensorView* b) { return a->name < b->name; });
  for (const TensorView* tensor : tensors_) tensor_index_.emplace(tensor->name, tensor);
}

const TensorView* SafetensorsModel::FindTensor(absl::string_view name) const {
  const auto found = tensor_index_.find(name);
  return found == tensor_index_.end() ? nullptr : found->second;
}

}  // namespace mneme::weights
