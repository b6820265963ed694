// Typed reading of a JSON object that a client sent: a wrong type is an error that names the field.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "nlohmann/json.hpp"

namespace mneme::gateway {

using Json = nlohmann::json;

// Parses a request body. INVALID_ARGUMENT: not UTF-8, not JSON (with the byte where it breaks),
// nested deeper than 64, or not an object.
absl::StatusOr<Json> ParseObject(absl::string_view body);

// Reads the fields of one object. The first error is kept and everything after it reads as absent;
// null is absent too. Not thread-safe.
class JsonFields {
 public:
  // `object` must be one and outlive this. `path` goes before the names in errors: "messages[0].".
  explicit JsonFields(const Json& object, std::string path = "")
      : object_(object), path_(std::move(path)) {}

  bool Has(const char* name) const { return Find(name) != nullptr; }
  std::optional<double> Number(const char* name);
  // Also takes 3.0 for 3.
  std::optional<int64_t> Integer(const char* name, int64_t lowest, int64_t highest);
  std::optional<uint64_t> Seed(const char* name);
  std::optional<bool> Bool(const char* name);
  std::optional<std::string> String(const char* name);
  const Json* Array(const char* name);
  const Json* Object(const char* name);
  // Whatever it is; null where absent.
  const Json* Any(const char* name) const { return Find(name); }

  // Keeps an error about a field, unless there is one already.
  void Fail(const std::string& name, absl::string_view message);
  const absl::Status& status() const { return status_; }

 private:
  const Json* Find(const char* name) const;

  const Json& object_;
  const std::string path_;
  absl::Status status_;
};

}  // namespace mneme::gateway
