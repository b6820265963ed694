// What the two halves of GgufFile (opening; metadata) share about stored values. Internal.
#pragma once

#include <cstdint>
#include <cstring>

#include "absl/strings/string_view.h"
#include "common/weights/gguf.h"

namespace mneme::weights {

// Bytes of a scalar of the type; 0 for strings, arrays and unknown codes.
inline uint64_t ScalarBytes(GgufType type) {
  switch (type) {
    case GgufType::kUint8:
    case GgufType::kInt8:
    case GgufType::kBool:
      return 1;
    case GgufType::kUint16:
    case GgufType::kInt16:
      return 2;
    case GgufType::kUint32:
    case GgufType::kInt32:
    case GgufType::kFloat32:
      return 4;
    case GgufType::kUint64:
    case GgufType::kInt64:
    case GgufType::kFloat64:
      return 8;
    case GgufType::kString:
    case GgufType::kArray:
      return 0;
  }
  return 0;
}

inline absl::string_view ValueTypeName(GgufType type) {
  static constexpr absl::string_view kNames[] = {"uint8",  "int8",  "uint16", "int16",  "uint32",
                                                 "int32",  "float", "bool",   "string", "array",
                                                 "uint64", "int64", "double"};
  return kNames[static_cast<uint32_t>(type)];
}

inline bool IsIntegerType(GgufType type) {
  return ScalarBytes(type) > 0 && type != GgufType::kFloat32 && type != GgufType::kFloat64 &&
         type != GgufType::kBool;
}

// Reads a value that need not be aligned.
template <typename T>
T Load(const uint8_t* data) {
  T value;
  std::memcpy(&value, data, sizeof(T));
  return value;
}

}  // namespace mneme::weights
