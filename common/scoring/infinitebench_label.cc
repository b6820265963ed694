#include "common/scoring/infinitebench_label.h"

#include <limits>
#include <nlohmann/json.hpp>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/scoring/numbers.h"
#include "common/status/status_macros.h"

namespace mneme::scoring {
namespace {

using nlohmann::json;

absl::StatusOr<LabelValue> ReadValue(const json& value) {
  if (value.is_string()) return value.get<std::string>();
  if (value.is_number_float()) return value.get<double>();
  if (value.is_number_unsigned() &&
      value.get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
    return absl::InvalidArgumentError("a label's integer is over 64 bits");
  }
  if (value.is_number_integer()) return value.get<int64_t>();
  return absl::InvalidArgumentError(
      absl::StrCat("a label's value is neither text nor number: ", value.type_name()));
}

}  // namespace

absl::StatusOr<Label> ReadLabel(const json& json) {
  Label label;
  if (!json.is_array()) {
    ASSIGN_OR_RETURN(label.emplace_back(), ReadValue(json));
    return label;
  }
  for (const auto& value : json) {
    ASSIGN_OR_RETURN(label.emplace_back(), ReadValue(value));
  }
  if (label.empty()) return absl::InvalidArgumentError("a label is an empty list");
  return label;
}

absl::StatusOr<std::string> TextOf(const LabelValue& value) {
  if (const auto* const text = std::get_if<std::string>(&value)) return *text;
  if (const auto* const integer = std::get_if<int64_t>(&value)) return absl::StrCat(*integer);
  return absl::InvalidArgumentError("a label is a number with decimals, this task takes texts");
}

bool EqualsInteger(const LabelValue& value, absl::string_view integer) {
  if (const auto* const number = std::get_if<double>(&value)) {
    double read = 0;
    return absl::SimpleAtod(integer, &read) && read == *number;
  }
  if (const auto* const number = std::get_if<int64_t>(&value)) {
    return absl::StrCat(*number) == integer;
  }
  return ReadInteger(std::get<std::string>(value)) == integer;
}

}  // namespace mneme::scoring
