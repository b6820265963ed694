// What InfiniteBench expects as an answer: one text or number, or a list of them.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace mneme::scoring {

using LabelValue = std::variant<std::string, int64_t, double>;

// At least one value: alternatives, or what the task says.
using Label = std::vector<LabelValue>;

// Reads a label as the data files hold it. INVALID_ARGUMENT: not a text, a number or a list of
// these, an empty list, or an integer of over 64 bits.
absl::StatusOr<Label> ReadLabel(const nlohmann::json& json);

// Returns the value as text. INVALID_ARGUMENT: a number with decimals, which has no one spelling.
absl::StatusOr<std::string> TextOf(const LabelValue& value);

// Says whether the integer, as ReadInteger spells it, is the value; a text is read as an integer.
bool EqualsInteger(const LabelValue& value, absl::string_view integer);

}  // namespace mneme::scoring
