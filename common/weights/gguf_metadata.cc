// Metadata values of an open GGUF file. Every length and offset was checked when it was opened.
#include "absl/strings/str_cat.h"
#include "common/status/status_macros.h"
#include "common/weights/gguf.h"
#include "common/weights/gguf_types.h"

namespace mneme::weights {

absl::StatusOr<const GgufFile::Value*> GgufFile::FindValue(absl::string_view key) const {
  const auto found = values_.find(key);
  if (found == values_.end()) {
    return absl::NotFoundError(absl::StrCat("GGUF metadata key is missing: ", key, " in ", path_));
  }
  return &found->second;
}

absl::StatusOr<const GgufFile::Value*> GgufFile::FindArray(absl::string_view key) const {
  ASSIGN_OR_RETURN(const Value* value, FindValue(key));
  if (value->type != GgufType::kArray) return WrongType(key, *value, "array");
  return value;
}

absl::Status GgufFile::WrongType(absl::string_view key, const Value& value,
                                 absl::string_view asked) const {
  std::string type(ValueTypeName(value.type));
  if (value.type == GgufType::kArray) {
    absl::StrAppend(&type, " of ", ValueTypeName(value.element_type));
  }
  return absl::InvalidArgumentError(absl::StrCat("GGUF metadata key ", key, " must be of type ",
                                                 asked, " and is of type ", type, ", at byte ",
                                                 value.offset, " of ", path_));
}

absl::StatusOr<int64_t> GgufFile::IntAt(absl::string_view key, GgufType type,
                                        uint64_t offset) const {
  const uint8_t* data = bytes_.data() + offset;
  switch (type) {
    case GgufType::kUint8:
      return Load<uint8_t>(data);
    case GgufType::kInt8:
      return Load<int8_t>(data);
    case GgufType::kUint16:
      return Load<uint16_t>(data);
    case GgufType::kInt16:
      return Load<int16_t>(data);
    case GgufType::kUint32:
      return Load<uint32_t>(data);
    case GgufType::kInt32:
      return Load<int32_t>(data);
    case GgufType::kInt64:
      return Load<int64_t>(data);
    case GgufType::kUint64: {
      const uint64_t value = Load<uint64_t>(data);
      if (value > static_cast<uint64_t>(INT64_MAX)) {
        return absl::InvalidArgumentError(
            absl::StrCat("GGUF metadata key ", key, " is over 2^63: ", value, " in ", path_));
      }
      return static_cast<int64_t>(value);
    }
    default:
      return WrongType(key, Value{.type = type, .offset = offset}, "integer");
  }
}

absl::StatusOr<double> GgufFile::FloatAt(absl::string_view key, GgufType type,
                                         uint64_t offset) const {
  const uint8_t* data = bytes_.data() + offset;
  if (type == GgufType::kFloat32) return Load<float>(data);
  if (type == GgufType::kFloat64) return Load<double>(data);
  if (!IsIntegerType(type)) {
    return WrongType(key, Value{.type = type, .offset = offset}, "number");
  }
  ASSIGN_OR_RETURN(const int64_t value, IntAt(key, type, offset));
  return static_cast<double>(value);
}

absl::StatusOr<int64_t> GgufFile::GetInt(absl::string_view key) const {
  ASSIGN_OR_RETURN(const Value* value, FindValue(key));
  if (!IsIntegerType(value->type)) return WrongType(key, *value, "integer");
  return IntAt(key, value->type, value->offset);
}

absl::StatusOr<double> GgufFile::GetFloat(absl::string_view key) const {
  ASSIGN_OR_RETURN(const Value* value, FindValue(key));
  if (value->type == GgufType::kArray) return WrongType(key, *value, "number");
  return FloatAt(key, value->type, value->offset);
}

absl::StatusOr<bool> GgufFile::GetBool(absl::string_view key) const {
  ASSIGN_OR_RETURN(const Value* value, FindValue(key));
  if (value->type != GgufType::kBool) return WrongType(key, *value, "bool");
  return bytes_[value->offset] != 0;
}

absl::StatusOr<absl::string_view> GgufFile::GetString(absl::string_view key) const {
  ASSIGN_OR_RETURN(const Value* value, FindValue(key));
  if (value->type != GgufType::kString) return WrongType(key, *value, "string");
  const uint8_t* data = bytes_.data() + value->offset;
  return absl::string_view(reinterpret_cast<const char*>(data) + 8, Load<uint64_t>(data));
}

absl::StatusOr<std::vector<absl::string_view>> GgufFile::GetStrings(absl::string_view key) const {
  ASSIGN_OR_RETURN(const Value* value, FindArray(key));
  if (value->element_type != GgufType::kString) return WrongType(key, *value, "array of string");
  // All lengths were checked when the file was opened.
  std::vector<absl::string_view> strings;
  strings.reserve(value->count);
  const uint8_t* data = bytes_.data() + value->offset;
  for (uint64_t i = 0; i < value->count; ++i) {
    const uint64_t size = Load<uint64_t>(data);
    strings.emplace_back(reinterpret_cast<const char*>(data) + 8, size);
    data += 8 + size;
  }
  return strings;
}

absl::StatusOr<std::vector<float>> GgufFile::GetFloats(absl::string_view key) const {
  ASSIGN_OR_RETURN(const Value* value, FindArray(key));
  const uint64_t size = ScalarBytes(value->element_type);
  if (size == 0 || value->element_type == GgufType::kBool) {
    return WrongType(key, *value, "array of number");
  }
  std::vector<float> numbers;
  numbers.reserve(value->count);
  for (uint64_t i = 0; i < value->count; ++i) {
    ASSIGN_OR_RETURN(const double number,
                     FloatAt(key, value->element_type, value->offset + i * size));
    numbers.push_back(static_cast<float>(number));
  }
  return numbers;
}

absl::StatusOr<std::vector<int64_t>> GgufFile::GetInts(absl::string_view key) const {
  ASSIGN_OR_RETURN(const Value* value, FindArray(key));
  if (!IsIntegerType(value->element_type)) return WrongType(key, *value, "array of integer");
  const uint64_t size = ScalarBytes(value->element_type);
  std::vector<int64_t> numbers;
  numbers.reserve(value->count);
  for (uint64_t i = 0; i < value->count; ++i) {
    ASSIGN_OR_RETURN(const int64_t number,
                     IntAt(key, value->element_type, value->offset + i * size));
    numbers.push_back(number);
  }
  return numbers;
}

absl::StatusOr<std::vector<bool>> GgufFile::GetBools(absl::string_view key) const {
  ASSIGN_OR_RETURN(const Value* value, FindArray(key));
  if (value->element_type != GgufType::kBool) return WrongType(key, *value, "array of bool");
  std::vector<bool> flags;
  flags.reserve(value->count);
  for (uint64_t i = 0; i < value->count; ++i) flags.push_back(bytes_[value->offset + i] != 0);
  return flags;
}

absl::StatusOr<int64_t> GgufFile::GetIntOr(absl::string_view key, int64_t missing) const {
  return Has(key) ? GetInt(key) : missing;
}

absl::StatusOr<double> GgufFile::GetFloatOr(absl::string_view key, double missing) const {
  return Has(key) ? GetFloat(key) : missing;
}

absl::StatusOr<bool> GgufFile::GetBoolOr(absl::string_view key, bool missing) const {
  return Has(key) ? GetBool(key) : missing;
}

absl::StatusOr<absl::string_view> GgufFile::GetStringOr(absl::string_view key,
                                                        absl::string_view missing) const {
  return Has(key) ? GetString(key) : missing;
}

absl::StatusOr<uint64_t> GgufFile::GetArraySize(absl::string_view key) const {
  ASSIGN_OR_RETURN(const Value* value, FindArray(key));
  return value->count;
}

absl::string_view GgufFileTypeName(int64_t file_type) {
  switch (file_type) {
    case 0:
      return "F32";
    case 1:
      return "F16";
    case 2:
      return "Q4_0";
    case 3:
      return "Q4_1";
    case 7:
      return "Q8_0";
    case 8:
      return "Q5_0";
    case 9:
      return "Q5_1";
    case 10:
      return "Q2_K";
    case 11:
      return "Q3_K_S";
    case 12:
      return "Q3_K_M";
    case 13:
      return "Q3_K_L";
    case 14:
      return "Q4_K_S";
    case 15:
      return "Q4_K_M";
    case 16:
      return "Q5_K_S";
    case 17:
      return "Q5_K_M";
    case 18:
      return "Q6_K";
    case 32:
      return "BF16";
    default:
      return "";
  }
}

}  // namespace mneme::weights
