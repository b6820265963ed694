#include "services/cli/log_line.h"

#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"

namespace mneme::cli {
namespace {

std::string TextOf(const nlohmann::json& line, const char* key) {
  const auto found = line.find(key);
  return found != line.end() && found->is_string() ? found->get<std::string>() : std::string();
}

}  // namespace

std::string MessageOfLogLine(absl::string_view line) {
  const nlohmann::json parsed =
      nlohmann::json::parse(line.begin(), line.end(), nullptr, /*allow_exceptions=*/false);
  if (!parsed.is_object()) return std::string(line);
  const std::string error = TextOf(parsed, "error");
  if (!error.empty()) return error;
  const std::string message = TextOf(parsed, "message");
  return message.empty() ? std::string(line) : message;
}

}  // namespace mneme::cli
