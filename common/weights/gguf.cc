#include "common/weights/gguf.h"

#include <algorithm>
#include <utility>

#include "absl/memory/memory.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "common/status/status_macros.h"
#include "common/weights/gguf_types.h"

namespace mneme::weights {
namespace {

constexpr absl::string_view kCutHint =
    "the file is cut or damaged: download it again and compare its checksum";
constexpr uint64_t kMaxNameBytes = 65535;  // the format's bound for keys
constexpr int kMaxArrayDepth = 4;
constexpr uint32_t kMaxDimensions = 4;

struct StoredType {
  uint32_t code;
  absl::string_view name;
};

// Types that ggml knows and this reader does not, for a message that names them.
constexpr StoredType kUnsupportedTypes[] = {
    {9, "Q8_1"},     {10, "Q2_K"},  {11, "Q3_K"},   {15, "Q8_K"},  {16, "IQ2_XXS"}, {17, "IQ2_XS"},
    {18, "IQ3_XXS"}, {19, "IQ1_S"}, {20, "IQ4_NL"}, {21, "IQ3_S"}, {22, "IQ2_S"},   {23, "IQ4_XS"},
    {29, "IQ1_M"},   {34, "TQ1_0"}, {35, "TQ2_0"},  {39, "MXFP4"},
};

std::optional<TensorType> TensorTypeOf(uint32_t code) {
  switch (code) {
    case 0:
      return TensorType::kF32;
    case 1:
      return TensorType::kF16;
    case 2:
      return TensorType::kQ4_0;
    case 3:
      return TensorType::kQ4_1;
    case 6:
      return TensorType::kQ5_0;
    case 7:
      return TensorType::kQ5_1;
    case 8:
      return TensorType::kQ8_0;
    case 12:
      return TensorType::kQ4_K;
    case 13:
      return TensorType::kQ5_K;
    case 14:
      return TensorType::kQ6_K;
    case 24:
      return TensorType::kI8;
    case 25:
      return TensorType::kI16;
    case 26:
      return TensorType::kI32;
    case 27:
      return TensorType::kI64;
    case 28:
      return TensorType::kF64;
    case 30:
      return TensorType::kBF16;
    default:
      return std::nullopt;
  }
}

// Names come from the file: printable and short before they enter a message.
std::string Quote(absl::string_view name) {
  return absl::StrCat("'", absl::Utf8SafeCEscape(name.substr(0, 200)), "'");
}

}  // namespace

// Walks over the file, never past its end.
class GgufFile::Reader {
 public:
  Reader(absl::Span<const uint8_t> bytes, absl::string_view path) : bytes_(bytes), path_(path) {}

  uint64_t offset() const { return offset_; }
  uint64_t left() const { return bytes_.size() - offset_; }

  absl::Status Fail(absl::string_view what, uint64_t offset, absl::string_view hint) const {
    return absl::InvalidArgumentError(absl::StrCat("bad GGUF file: ", what, " at byte ", offset,
                                                   " of ", path_, " (", bytes_.size(), " bytes); ",
                                                   hint));
  }

  template <typename T>
  absl::StatusOr<T> Read(absl::string_view what) {
    if (left() < sizeof(T)) {
      return Fail(absl::StrCat("the file ends within ", what), offset_, kCutHint);
    }
    const T value = Load<T>(bytes_.data() + offset_);
    offset_ += sizeof(T);
    return value;
  }

  absl::StatusOr<absl::string_view> ReadString(absl::string_view what, uint64_t max_bytes) {
    const uint64_t start = offset_;
    ASSIGN_OR_RETURN(const uint64_t size, Read<uint64_t>(what));
    if (size > left()) {
      return Fail(absl::StrCat(what, " is said to have ", size, " bytes, past the end"), start,
                  kCutHint);
    }
    if (size > max_bytes) {
      return Fail(absl::StrCat(what, " has ", size, " bytes, over the bound of ", max_bytes), start,
                  kCutHint);
    }
    const absl::string_view text(reinterpret_cast<const char*>(bytes_.data()) + offset_, size);
    offset_ += size;
    return text;
  }

  // Skips `count` values of the type, checking every length inside them.
  absl::Status Skip(absl::string_view key, GgufType type, uint64_t count, int depth) {
    if (const uint64_t size = ScalarBytes(type); size > 0) {
      if (count > left() / size) {
        return Fail(absl::StrCat("the value of ", Quote(key), " (", count, " ", ValueTypeName(type),
                                 ") passes the end"),
                    offset_, kCutHint);
      }
      offset_ += count * size;
      return absl::OkStatus();
    }
    // Each string takes at least 8 bytes and each array 12, so a hostile count ends the loop early.
    for (uint64_t i = 0; i < count; ++i) {
      if (type == GgufType::kString) {
        // The text of the message is built only for a bad one: vocabularies have 100 000 strings.
        if (left() >= 8 && Load<uint64_t>(bytes_.data() + offset_) <= left() - 8) {
          offset_ += 8 + Load<uint64_t>(bytes_.data() + offset_);
          continue;
        }
        RETURN_IF_ERROR(
            ReadString(absl::StrCat("string ", i, " of ", Quote(key)), UINT64_MAX).status());
      } else {
        ASSIGN_OR_RETURN(const ArrayHead head, ReadArrayHead(key));
        if (depth >= kMaxArrayDepth) {
          return Fail(absl::StrCat("the value of ", Quote(key), " nests arrays too deeply"),
                      offset_, kCutHint);
        }
        RETURN_IF_ERROR(Skip(key, head.type, head.count, depth + 1));
      }
    }
    return absl::OkStatus();
  }

  absl::StatusOr<GgufType> ReadType(absl::string_view key) {
    const uint64_t start = offset_;
    ASSIGN_OR_RETURN(const uint32_t code, Read<uint32_t>(absl::StrCat("the type of ", Quote(key))));
    if (code > static_cast<uint32_t>(GgufType::kFloat64)) {
      return Fail(absl::StrCat("the value of ", Quote(key), " has unknown type ", code), start,
                  kCutHint);
    }
    return static_cast<GgufType>(code);
  }

  struct ArrayHead {
    GgufType type;
    uint64_t count;
  };
  absl::StatusOr<ArrayHead> ReadArrayHead(absl::string_view key) {
    ASSIGN_OR_RETURN(const GgufType type, ReadType(key));
    ASSIGN_OR_RETURN(const uint64_t count,
                     Read<uint64_t>(absl::StrCat("the length of array ", Quote(key))));
    return ArrayHead{type, count};
  }

 private:
  absl::Span<const uint8_t> bytes_;
  absl::string_view path_;
  uint64_t offset_ = 0;
};

absl::StatusOr<std::unique_ptr<GgufFile>> GgufFile::Open(absl::string_view path) {
  ASSIGN_OR_RETURN(MappedFile mapped, MappedFile::Open(path));
  auto file_bytes = std::make_unique<MappedFile>(std::move(mapped));
  auto file = absl::WrapUnique(new GgufFile(file_bytes->bytes(), std::string(path)));
  file->file_ = std::move(file_bytes);
  RETURN_IF_ERROR(file->ReadAll());
  return file;
}

absl::StatusOr<std::unique_ptr<GgufFile>> GgufFile::Parse(absl::Span<const uint8_t> bytes,
                                                          absl::string_view name) {
  auto file = absl::WrapUnique(new GgufFile(bytes, std::string(name)));
  RETURN_IF_ERROR(file->ReadAll());
  return file;
}

absl::Status GgufFile::ReadAll() {
  Reader reader(bytes_, path_);
  ASSIGN_OR_RETURN(const uint32_t magic, reader.Read<uint32_t>("the magic number"));
  if (magic != 0x46554747) {  // "GGUF"
    return reader.Fail("no GGUF magic number", 0, "this is a file of another kind");
  }
  ASSIGN_OR_RETURN(version_, reader.Read<uint32_t>("the version"));
  if (version_ != 2 && version_ != 3) {
    const bool big_endian = (version_ & 0xffff) == 0 && version_ != 0;
    return reader.Fail(
        big_endian ? "big-endian file" : absl::StrCat("version ", version_), 4,
        "only little-endian files of versions 2 and 3 are supported: convert the model again");
  }
  ASSIGN_OR_RETURN(const uint64_t num_tensors, reader.Read<uint64_t>("the tensor count"));
  ASSIGN_OR_RETURN(const uint64_t num_values, reader.Read<uint64_t>("the metadata count"));
  // The smallest entries: key length, type, one byte; name length, dimensions, type, offset.
  if (num_values > reader.left() / 13) {
    return reader.Fail(absl::StrCat("a count of ", num_values, " metadata values"), 16, kCutHint);
  }
  if (num_tensors > reader.left() / 24) {
    return reader.Fail(absl::StrCat("a count of ", num_tensors, " tensors"), 8, kCutHint);
  }
  RETURN_IF_ERROR(ReadMetadata(reader, num_values));
  ASSIGN_OR_RETURN(const int64_t num_splits, GetIntOr("split.count", 1));
  if (num_splits > 1) {
    return absl::UnimplementedError(
        absl::StrCat("GGUF file is one part of a split model; join the parts first "
                     "(llama-gguf-split --merge): ",
                     path_));
  }
  RETURN_IF_ERROR(ReadTensorTable(reader, num_tensors));
  const uint64_t padding = (alignment_ - reader.offset() % alignment_) % alignment_;
  // A file without tensors may end right after its metadata.
  data_offset_ = std::min<uint64_t>(reader.offset() + padding, bytes_.size());
  return PlaceTensors();
}

absl::Status GgufFile::ReadMetadata(Reader& reader, uint64_t count) {
  for (uint64_t i = 0; i < count; ++i) {
    const uint64_t start = reader.offset();
    ASSIGN_OR_RETURN(const absl::string_view key,
                     reader.ReadString(absl::StrCat("metadata key ", i), kMaxNameBytes));
    Value value;
    ASSIGN_OR_RETURN(value.type, reader.ReadType(key));
    if (value.type == GgufType::kArray) {
      ASSIGN_OR_RETURN(const Reader::ArrayHead head, reader.ReadArrayHead(key));
      value.element_type = head.type;
      value.count = head.count;
      value.offset = reader.offset();
      RETURN_IF_ERROR(reader.Skip(key, head.type, head.count, 1));
    } else {
      value.offset = reader.offset();
      RETURN_IF_ERROR(reader.Skip(key, value.type, 1, 0));
    }
    if (!values_.emplace(key, value).second) {
      return reader.Fail(absl::StrCat("metadata key ", Quote(key), " appears twice, again"), start,
                         "convert the model again");
    }
    keys_.push_back(key);
  }
  if (Has("general.alignment")) {
    const uint64_t offset = values_.find("general.alignment")->second.offset;
    ASSIGN_OR_RETURN(const int64_t alignment, GetInt("general.alignment"));
    if (alignment < 8 || alignment > (1 << 20) || (alignment & (alignment - 1)) != 0) {
      return reader.Fail(absl::StrCat("general.alignment is ", alignment), offset,
                         "it must be a power of two from 8 to 1048576: convert the model again");
    }
    alignment_ = static_cast<uint64_t>(alignment);
  }
  return absl::OkStatus();
}

absl::Status GgufFile::ReadTensorTable(Reader& reader, uint64_t count) {
  for (uint64_t i = 0; i < count; ++i) {
    const uint64_t start = reader.offset();
    ASSIGN_OR_RETURN(const absl::string_view name,
                     reader.ReadString(absl::StrCat("the name of tensor ", i), kMaxNameBytes));
    const std::string entry = absl::StrCat("the table entry of tensor ", Quote(name));
    ASSIGN_OR_RETURN(const uint32_t num_dimensions, reader.Read<uint32_t>(entry));
    if (num_dimensions < 1 || num_dimensions > kMaxDimensions) {
      return reader.Fail(absl::StrCat("tensor ", Quote(name), " has ", num_dimensions,
                                      " dimensions (1 to 4 are possible)"),
                         start, kCutHint);
    }
    TensorView tensor;
    tensor.name = std::string(name);
    tensor.shape.resize(num_dimensions);
    for (uint32_t d = 0; d < num_dimensions; ++d) {
      ASSIGN_OR_RETURN(const uint64_t size, reader.Read<uint64_t>(entry));
      // Stored innermost first. A size over 2^63 turns negative and is refused below.
      tensor.shape[num_dimensions - 1 - d] = static_cast<int64_t>(size);
    }
    const uint64_t type_offset = reader.offset();
    ASSIGN_OR_RETURN(const uint32_t type_code, reader.Read<uint32_t>(entry));
    const std::optional<TensorType> type = TensorTypeOf(type_code);
    if (!type.has_value()) {
      for (const StoredType& known : kUnsupportedTypes) {
        if (known.code == type_code) {
          return absl::UnimplementedError(absl::StrCat(
              "GGUF tensor type ", known.name,
              " is not supported (F32, F16, BF16, Q8_0, Q4_0, "
              "Q4_1, Q5_0, Q5_1, Q4_K, Q5_K, Q6_K are); take another quantisation of the model: "
              "tensor ",
              Quote(name), " of ", path_));
        }
      }
      return reader.Fail(absl::StrCat("tensor ", Quote(name), " has unknown type ", type_code),
                         type_offset, kCutHint);
    }
    tensor.type = *type;
    const absl::StatusOr<uint64_t> size = ByteSize(tensor.type, tensor.shape);
    if (!size.ok()) {
      return reader.Fail(absl::StrCat("tensor ", Quote(name), ": ", size.status().message()), start,
                         kCutHint);
    }
    tensor.size_bytes = *size;
    // Relative to the data section until PlaceTensors knows where that begins.
    const uint64_t offset_offset = reader.offset();
    ASSIGN_OR_RETURN(tensor.file_offset, reader.Read<uint64_t>(entry));
    if (tensor.file_offset % alignment_ != 0) {
      return reader.Fail(
          absl::StrCat("tensor ", Quote(name), " lies at data offset ", tensor.file_offset,
                       ", no multiple of the alignment ", alignment_),
          offset_offset, kCutHint);
    }
    if (!tensor_index_.emplace(name, tensors_.size()).second) {
      return reader.Fail(absl::StrCat("tensor ", Quote(name), " appears twice, again"), start,
                         "convert the model again");
    }
    tensors_.push_back(std::move(tensor));
  }
  return absl::OkStatus();
}

absl::Status GgufFile::PlaceTensors() {
  const Reader reader(bytes_, path_);
  const uint64_t data_bytes = bytes_.size() - data_offset_;
  for (TensorView& tensor : tensors_) {
    if (tensor.file_offset > data_bytes || tensor.size_bytes > data_bytes - tensor.file_offset) {
      return reader.Fail(absl::StrCat("tensor ", Quote(tensor.name), " (", tensor.Describe(), ", ",
                                      tensor.size_bytes, " bytes at data offset ",
                                      tensor.file_offset, ") passes the end; its data begin"),
                         // Saturated: the stored offset may be near 2^64.
                         tensor.file_offset > UINT64_MAX - data_offset_
                             ? UINT64_MAX
                             : data_offset_ + tensor.file_offset,
                         kCutHint);
    }
    tensor.file_offset += data_offset_;
    tensor.data = bytes_.data() + tensor.file_offset;
  }
  std::vector<const TensorView*> by_offset;
  by_offset.reserve(tensors_.size());
  for (const TensorView& tensor : tensors_) {
    if (tensor.size_bytes > 0) by_offset.push_back(&tensor);
  }
  std::sort(by_offset.begin(), by_offset.end(), [](const TensorView* a, const TensorView* b) {
    return a->file_offset < b->file_offset;
  });
  for (size_t i = 1; i < by_offset.size(); ++i) {
    const TensorView& before = *by_offset[i - 1];
    if (before.file_offset + before.size_bytes > by_offset[i]->file_offset) {
      return reader.Fail(absl::StrCat("tensors ", Quote(before.name), " and ",
                                      Quote(by_offset[i]->name), " overlap"),
                         by_offset[i]->file_offset, kCutHint);
    }
  }
  return absl::OkStatus();
}

const TensorView* GgufFile::FindTensor(absl::string_view name) const {
  const auto found = tensor_index_.find(name);
  return found == tensor_index_.end() ? nullptr : &tensors_[found->second];
}

}  // namespace mneme::weights
