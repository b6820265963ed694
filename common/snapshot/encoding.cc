#include "common/snapshot/encoding.h"

#include "absl/strings/str_cat.h"

namespace mneme::snapshot {

v1::Encoding ExactEncoding(at::ScalarType dtype) {
  return dtype == at::kFloat ? v1::ENCODING_FLOAT32 : v1::ENCODING_BFLOAT16;
}

absl::StatusOr<v1::Encoding> ResolveEncoding(v1::Encoding encoding, at::ScalarType dtype) {
  if (encoding == v1::ENCODING_UNSPECIFIED) return ExactEncoding(dtype);
  if (!IsKnown(encoding)) {
    return absl::InvalidArgumentError(
        absl::StrCat("this version does not know the snapshot encoding: ", encoding));
  }
  return encoding;
}

}  // namespace mneme::snapshot
