// Memory policy beacon in JSON: {"type": "beacon", "ratios": [4], "window": 1024, "sinks": 0,
// "mix": "step-random", "seed": 1}, all but the ratios optional.
#pragma once

#include <string>

#include "mneme/inference/v1/inference.pb.h"
#include "services/gateway/json_fields.h"

namespace mneme::gateway {

// Reads the fields of the policy's object; `fields` keeps the first error.
void ReadBeacon(JsonFields& fields, inference::v1::MemoryPolicy::Beacon* beacon);
// Appends the whole object.
void AppendBeacon(const inference::v1::MemoryPolicy::Beacon& beacon, std::string* out);

}  // namespace mneme::gateway
