// Memory policies as the HTTP interface writes them:
//   {"type": "h2o", "budget": {"fraction": 0.25}, "recent": 64}
// The fields are those of mneme.inference.v1.MemoryPolicy.
#pragma once

#include <string>

#include "mneme/inference/v1/inference.pb.h"
#include "services/gateway/json_fields.h"

namespace mneme::gateway {

// Reads the field "memory_policy", where it is there; errors go to `fields`.
void ReadMemoryPolicy(JsonFields& fields, inference::v1::MemoryPolicy* policy);

// Writes a policy as such an object; null where none is chosen.
void AppendMemoryPolicy(const inference::v1::MemoryPolicy& policy, std::string* out);

}  // namespace mneme::gateway
