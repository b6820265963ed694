// The toy tokenizer of the golden files about texts: a list of strings that are one token each, and
// bytes. A file that lists no strings means the usual ones.
#pragma once

#include <nlohmann/json.hpp>

#include "common/dataset/byte_encoder.h"

namespace mneme::testing {

// `file`: a golden file, whose `special_tokens` are in the order in which they are tried.
// bos is 256.
dataset::ByteEncoder ToyTokenizer(const nlohmann::ordered_json& file, bool adds_bos);

}  // namespace mneme::testing
