// Which encoding the entries of a pool have; what encodings are is in common/stored/encoding.h.
#pragma once

#include <ATen/core/Tensor.h>

#include "absl/status/statusor.h"
#include "common/stored/encoding.h"
#include "mneme/snapshot/v1/snapshot.pb.h"

namespace mneme::snapshot {

using stored::Dequantise;
using stored::HeadBytes;
using stored::IsKnown;
using stored::IsScaled;
using stored::NumberBytes;
using stored::Quantise;
using stored::ScaleOf;

// The encoding that keeps entries of a pool of this type exactly.
v1::Encoding ExactEncoding(at::ScalarType dtype);

// Returns the encoding itself, or where it is unspecified the exact one. INVALID_ARGUMENT: unknown.
absl::StatusOr<v1::Encoding> ResolveEncoding(v1::Encoding encoding, at::ScalarType dtype);

}  // namespace mneme::snapshot
